"""DeepSeek-R1-Distill-Qwen-32B: Qwen2.5-32B, fine-tuned on answers of R1.

    r1jax train distill_qwen_32b                        # 4 nodes of 8 x H800, H100 or A100
    sbatch --nodes=4 launch/slurm.sbatch distill_qwen_32b     # the same under SLURM

Device    32 GPUs of 80 GB. Not run here. Rows need the extra `parquet`.
Memory    42.4 GiB on each of 32: computed, as --dry-run does there.
Expected  with R1's own 800K samples: AIME 2024 pass@1 72.6 %, cons@64 83.3 %, MATH-500 94.3 %, GPQA Diamond 62.1 %,
          LiveCodeBench 57.2 %, Codeforces 1691 (arXiv 2501.12948v1, table 5). The released weights, measured by open-r1:
          AIME 2024 69.7 %, MATH-500 95.6 %. Those samples are unpublished; with the public ones here it is unknown.

Published (arXiv 2501.12948v2, appendix B.4.3): lr 6e-5; for the rest, and for what is not published, see `distill_qwen_1_5b`.
Moments rest on the host, and a sequence is split over two GPUs.
"""

import dataclasses

from r1jax.config import SFT, Mesh
from r1jax.config.loading import load_config


def config() -> SFT:
    _, base = load_config("distill_qwen_1_5b")
    optimizer = dataclasses.replace(base.optimizer, lr=6e-5, lr_end=6e-6)
    mesh = Mesh(fsdp=0, context=2)  # unpublished
    return dataclasses.replace(
        base,
        init="Qwen/Qwen2.5-32B",
        optimizer=optimizer,
        micro_batch=16,
        offload=("optimizer",),  # unpublished
        mesh=mesh,
    )
