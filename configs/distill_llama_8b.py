"""DeepSeek-R1-Distill-Llama-8B: Llama-3.1-8B, fine-tuned on answers of R1.

    r1jax train distill_llama_8b                        # one node of 8 x H800, H100 or A100

Device    8 GPUs of 80 GB. Not run here. Rows need the extra `parquet`. Weights are gated: accept their terms and set HF_TOKEN.
Memory    51.9 GiB on each of 8: computed, the table that --dry-run prints.
Expected  with R1's own 800K samples: AIME 2024 pass@1 50.4 %, cons@64 80.0 %, MATH-500 89.1 %, GPQA Diamond 49.0 %,
          LiveCodeBench 39.6 %, Codeforces 1205 (arXiv 2501.12948v1, table 5). The released weights, measured by open-r1:
          AIME 2024 43.9 %, MATH-500 88.6 %. Those samples are unpublished; with the public ones here it is unknown.

Published (arXiv 2501.12948v2, appendix B.4.3): lr 5e-5; for the rest, and for what is not published, see `distill_qwen_1_5b`.
"""

import dataclasses

from r1jax.config import SFT
from r1jax.config.loading import load_config


def config() -> SFT:
    _, base = load_config("distill_qwen_1_5b")
    optimizer = dataclasses.replace(base.optimizer, lr=5e-5, lr_end=5e-6)
    return dataclasses.replace(base, init="meta-llama/Llama-3.1-8B", optimizer=optimizer, micro_batch=8)
