"""R1-Zero on Qwen2-Math-7B: the smallest model that R1's authors report it to work on.

    r1jax train r1_zero_qwen_7b                                   # one node of 8 x H800, H100 or A100
    r1jax train r1_zero_qwen_7b --init Qwen/Qwen2.5-Math-7B       # a newer one of the same size

Device    8 GPUs of 80 GB. Not run here. Rows need the extra `parquet`.
Memory    37.2 GiB on each of 8: computed, the table that --dry-run prints.
Expected  AIME 2024 pass@1 22.3 %, AIME 2025 18.1 % after about 10,000 steps; Qwen2-Math-7B-Instruct has 7.9 and 4.6 %
          (arXiv 2501.12948v2, table 17). An early 7B model without so much mathematics did not get better (appendix G.1).

Published is no more than this. The settings are those of `r1_zero_qwen_32b`; answers are as long as the 4,096 tokens that this
model was trained for, and layout and batch in memory are chosen for one node (all unpublished).
"""

import dataclasses

from r1jax.config import GRPO, Mesh
from r1jax.config.loading import load_config


def config() -> GRPO:
    _, base = load_config("r1_zero_qwen_32b")
    return dataclasses.replace(
        base,
        init="Qwen/Qwen2-Math-7B",
        sampling=dataclasses.replace(base.sampling, max_new_tokens=3072),
        engine=dataclasses.replace(base.engine, slots=256),
        sequence_length=4096,
        micro_batch=32,
        mesh=Mesh(fsdp=0),
    )
