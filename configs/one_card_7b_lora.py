"""R1-Zero on Qwen2.5-7B by adapters of rank 32 (LoRA), on one GPU: GSM8K's word problems.

    r1jax train one_card_7b_lora                          # 24 GB
    r1jax train one_card_7b_lora --engine.slots 64        # 48 GB
    r1jax train one_card_7b_lora --engine.slots 128       # 80 GB

Device    one GPU of 24, 48 or 80 GB. Not run here. Rows need the extra `parquet`.
Memory    computed, the table that --dry-run prints, where JAX has 0.92 of the card (GiB):

          card    micro_batch    at the most    optimizer    activations    on the host
          24 GB             3           21.9          0.6            5.9            0.0
          48 GB            14           43.5          0.6           27.5            0.0
          80 GB            16           47.5          0.6           31.5            0.0

          Weights are 14.5 GiB, held once in bfloat16: trainer and sampler share them. Twice as many slots do not fit 24 GB.
Expected  unknown: of these settings nothing was published. eval/pass@1 before the first step says where it begins.
"""

import dataclasses

from r1jax.config import GRPO, LoRA
from r1jax.config.loading import load_config


def config() -> GRPO:
    _, base = load_config("one_card_1_5b")
    return dataclasses.replace(
        base,
        init="Qwen/Qwen2.5-7B",
        lora=LoRA(rank=32, alpha=32.0),
        optimizer=dataclasses.replace(base.optimizer, lr=1e-5),
        engine=dataclasses.replace(base.engine, slots=16),
    )
