"""PPO's critic."""

from __future__ import annotations

from dataclasses import dataclass, field

from r1jax.config.base import ConfigError
from r1jax.config.train import Optimizer


@dataclass(frozen=True)
class Critic:
    """A second model that says what a begun answer will earn: the policy's layers as they are at step 0, with a head of one
    number that begins at zero. R1 compared GRPO with PPO and gave lambda alone (arXiv 2501.12948v2, A.3)."""

    optimizer: Optimizer = field(default_factory=lambda: Optimizer(lr=1e-5))
    """The rate is verl's, about ten times a policy's."""
    clip: float = 0.2
    """A value that moved further than this from the rollout's is held there where that makes its error larger (PPO's clipped
    value loss, as OpenAI's baselines and TRL have it); 0 takes the plain squared error."""
    whiten: bool = True
    """Advantages of a round have mean 0 and variance 1 over its trained tokens, as in TRL and verl."""

    def __post_init__(self):
        if self.clip < 0:
            raise ConfigError(f"critic.clip is {self.clip}; it must be >= 0 (0 does not clip)")
