"""Reward models as rewards of reinforcement learning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from r1jax.config.base import ConfigError


@dataclass(frozen=True)
class Preference:
    """A trained reward model whose score is one of the rewards of some sources (R1's RL-2: Nature 2025, Methods, eq. 8-10).

    The total of an answer is what its source's ``rewards`` say and ``weight`` times the score. Answers of a round are scored
    together, by the devices that train. Evaluation during training does not ask it.
    """

    name: str = "helpful"
    """In metrics (``reward/NAME``) and samples."""
    model: str = ""
    """A run of a ``RewardModel``, ``RUN@STEP``; inside a pipeline also an earlier stage's name."""
    sources: tuple[str, ...] = ()
    """The names of the sources that it scores answers to; () is all."""
    weight: float = 1.0
    last_steps: int = 0
    """It counts only in rounds that begin within the stage's last so many steps (R1: 400 of 1,700, for in time a policy only
    learns to please it: supplement B.5); 0 is in all. More ``steps`` on resume move them."""
    rows: Literal["with it", "always"] = "with it"
    """Whether the rows of ``sources`` come before those last steps: not at all, as R1's general prompts, or without this
    reward."""

    def __post_init__(self):
        if not self.name or not self.model:
            raise ConfigError("preference: give it a name, and in model a reward model: a run, or an earlier stage's name")
        if self.last_steps < 0:
            raise ConfigError(f"preference {self.name!r}: last_steps is {self.last_steps}; it must be >= 0 (0 is all steps)")

    def counts(self, step: int, steps: int) -> bool:
        """Whether it counts in a round that begins after ``step`` updates of ``steps``."""
        return not self.last_steps or step >= steps - self.last_steps
