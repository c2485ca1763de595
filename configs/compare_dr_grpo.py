"""Dr. GRPO on the task of compare_grpo.

    r1jax train compare_dr_grpo --rl.seed 0 --run-dir runs/compare_dr_grpo-0

Advantages are not divided by the group's deviation, and losses not by an answer's length (arXiv 2503.20783).

Device    two cores of a CPU; see compare_grpo. Not run here to its end.
Memory    below 2 GiB.
Expected  see compare_grpo.
"""

import dataclasses

from r1jax.config import Pipeline
from r1jax.config.loading import load_config


def config() -> Pipeline:
    base = load_config("compare_grpo")[1]
    rl = dataclasses.replace(
        base.rl,
        advantage_std=False,
        normalize="constant",
    )
    return dataclasses.replace(base, rl=rl)
