"""DeepSeek-R1-Distill-Qwen-7B: Qwen2.5-Math-7B, fine-tuned on answers of R1.

    r1jax train distill_qwen_7b                         # one node of 8 x H800, H100 or A100

Device    8 GPUs of 80 GB. Not run here. Rows need the extra `parquet`.
Memory    49.6 GiB on each of 8: computed, the table that --dry-run prints.
Expected  with R1's own 800K samples: AIME 2024 pass@1 55.5 %, cons@64 83.3 %, MATH-500 92.8 %, GPQA Diamond 49.1 %,
          LiveCodeBench 37.6 %, Codeforces 1189 (arXiv 2501.12948v1, table 5). The released weights, measured by open-r1:
          AIME 2024 50.8 %, MATH-500 94.5 %. Those samples are unpublished; with the public ones here it is unknown:
          open-r1 had AIME 2024 52.7 %, MATH-500 89.0 %, GPQA Diamond 52.8 %, LiveCodeBench 39.4 % with them, in five epochs at
          lr 4e-5 and a larger RoPE base (github.com/huggingface/open-r1, OpenR1-Distill-7B).

Published (arXiv 2501.12948v2, appendix B.4.3): lr 8e-5; for the rest, and for what is not published, see `distill_qwen_1_5b`.
"""

import dataclasses

from r1jax.config import SFT
from r1jax.config.loading import load_config


def config() -> SFT:
    _, base = load_config("distill_qwen_1_5b")
    optimizer = dataclasses.replace(base.optimizer, lr=8e-5, lr_end=8e-6)
    return dataclasses.replace(base, init="Qwen/Qwen2.5-Math-7B", optimizer=optimizer, micro_batch=8)
