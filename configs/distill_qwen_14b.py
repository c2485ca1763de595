"""DeepSeek-R1-Distill-Qwen-14B: Qwen2.5-14B, fine-tuned on answers of R1.

    r1jax train distill_qwen_14b                        # 2 nodes of 8 x H800, H100 or A100
    sbatch --nodes=2 launch/slurm.sbatch distill_qwen_14b     # the same under SLURM

Device    16 GPUs of 80 GB. Not run here. Rows need the extra `parquet`.
Memory    65.6 GiB on each of 16: computed, as --dry-run does there.
Expected  with R1's own 800K samples: AIME 2024 pass@1 69.7 %, cons@64 80.0 %, MATH-500 93.9 %, GPQA Diamond 59.1 %,
          LiveCodeBench 53.1 %, Codeforces 1481 (arXiv 2501.12948v1, table 5). The released weights, measured by open-r1:
          AIME 2024 65.9 %, MATH-500 94.1 %. Those samples are unpublished; with the public ones here it is unknown.

Published (arXiv 2501.12948v2, appendix B.4.3): lr 7e-5; for the rest, and for what is not published, see `distill_qwen_1_5b`.
"""

import dataclasses

from r1jax.config import SFT
from r1jax.config.loading import load_config


def config() -> SFT:
    _, base = load_config("distill_qwen_1_5b")
    optimizer = dataclasses.replace(base.optimizer, lr=7e-5, lr_end=7e-6)
    return dataclasses.replace(base, init="Qwen/Qwen2.5-14B", optimizer=optimizer, micro_batch=16)
