"""PPO with lambda 1 on the task of compare_grpo.

    r1jax train compare_ppo_1 --rl.seed 0 --run-dir runs/compare_ppo_1-0

A critic that begins as the policy says what an answer will earn (arXiv 1707.06347); its advantages are generalised estimates
(arXiv 1506.02438). R1 gave lambda alone: the rates, the clip of values and whitening are choices of ours, see `config.Critic`.

Device    two cores of a CPU; see compare_grpo. Not run here to its end.
Memory    below 2 GiB.
Expected  see compare_grpo.
"""

import dataclasses

from r1jax.config import Critic, Optimizer, Pipeline
from r1jax.config.loading import load_config


def config() -> Pipeline:
    base = load_config("compare_grpo")[1]
    rl = dataclasses.replace(
        base.rl,
        advantage="gae",
        gae_lambda=1.0,
        critic=Critic(optimizer=Optimizer(lr=1e-3, lr_end=1e-4, warmup_steps=8, weight_decay=0.0)),
    )
    return dataclasses.replace(base, rl=rl)
