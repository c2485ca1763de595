"""PPO with lambda 0.95 on the task of compare_grpo.

    r1jax train compare_ppo_095 --rl.seed 0 --run-dir runs/compare_ppo_095-0

`compare_ppo_1` with a token's advantage reckoned more by the critic's next values than by what came of it.

Device    two cores of a CPU; see compare_grpo. Not run here to its end.
Memory    below 2 GiB.
Expected  see compare_grpo.
"""

import dataclasses

from r1jax.config import Pipeline
from r1jax.config.loading import load_config


def config() -> Pipeline:
    base = load_config("compare_ppo_1")[1]
    return dataclasses.replace(base, rl=dataclasses.replace(base.rl, gae_lambda=0.95))
