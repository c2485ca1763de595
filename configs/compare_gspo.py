"""GSPO on the task of compare_grpo.

    r1jax train compare_gspo --rl.seed 0 --run-dir runs/compare_gspo-0

An answer has one ratio, the geometric mean of its tokens' (arXiv 2507.18071). The paper clips at 3e-4 and 4e-4, for a 30B model
at its rate; this one moves further in an update, so the bounds are wider: a choice of ours.

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
        ratio_level="sequence",
        clip_low=0.02,
        clip_high=0.03,
    )
    return dataclasses.replace(base, rl=rl)
