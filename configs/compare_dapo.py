"""DAPO on the task of compare_grpo.

    r1jax train compare_dapo --rl.seed 0 --run-dir runs/compare_dapo-0

Its four parts (arXiv 2503.14476, section 3): a higher bound for rising ratios, groups that are all right or all wrong replaced
by others, a mean over tokens, and a penalty for the last tokens before the cap (of 16 here, which right answers do not need).

Device    two cores of a CPU; see compare_grpo. Not run here to its end.
Memory    below 2 GiB.
Expected  see compare_grpo.
"""

import dataclasses

from r1jax.config import Pipeline
from r1jax.config.loading import load_config


def config() -> Pipeline:
    base = load_config("compare_grpo")[1]
    (source,) = base.rl.sources
    overlong = 'overlong{"max_tokens":16,"buffer":2}'
    rl = dataclasses.replace(
        base.rl,
        clip_low=0.2,
        clip_high=0.28,
        normalize="token",
        dynamic_sampling=4,  # the paper samples until a batch is full
        dynamic_reward="accuracy",
        sources=(dataclasses.replace(source, rewards=source.rewards | {overlong: 1.0}),),
    )
    return dataclasses.replace(base, rl=rl)
