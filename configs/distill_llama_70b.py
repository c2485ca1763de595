"""DeepSeek-R1-Distill-Llama-70B: Llama-3.3-70B-Instruct, fine-tuned on answers of R1.

    r1jax train distill_llama_70b                       # 8 nodes of 8 x H800, H100 or A100
    sbatch --nodes=8 launch/slurm.sbatch distill_llama_70b    # the same under SLURM

Device    64 GPUs of 80 GB. Not run here. Rows need the extra `parquet`. Weights are gated: accept their terms and set HF_TOKEN.
Memory    37.5 GiB on each of 64: computed, as --dry-run does there.
Expected  with R1's own 800K samples: AIME 2024 pass@1 70.0 %, cons@64 86.7 %, MATH-500 94.5 %, GPQA Diamond 65.2 %,
          LiveCodeBench 57.5 %, Codeforces 1633 (arXiv 2501.12948v1, table 5). The released weights, measured by open-r1:
          AIME 2024 63.0 %, MATH-500 95.1 %. Those samples are unpublished; with the public ones here it is unknown.

Published (arXiv 2501.12948v2, appendix B.4.3): lr 2e-5; for the rest, and for what is not published, see `distill_qwen_1_5b`.
Moments rest on the host, and a sequence is split over four GPUs.
"""

import dataclasses

from r1jax.config import SFT, Mesh
from r1jax.config.loading import load_config


def config() -> SFT:
    _, base = load_config("distill_qwen_1_5b")
    optimizer = dataclasses.replace(base.optimizer, lr=2e-5, lr_end=2e-6)
    mesh = Mesh(fsdp=0, context=4)  # unpublished
    return dataclasses.replace(
        base,
        init="meta-llama/Llama-3.3-70B-Instruct",
        optimizer=optimizer,
        micro_batch=16,
        offload=("optimizer",),  # unpublished
        mesh=mesh,
    )
