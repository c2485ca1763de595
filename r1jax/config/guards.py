"""What watches a run: rules over its metrics, updates that are not finite, and phases that do not end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from r1jax.config.base import ConfigError


@dataclass(frozen=True)
class Guards:
    """Rules over the metrics of a run's updates; all but the first are about sampled answers, so SFT has none of them. Each
    warns once when it begins to hold: a line on the terminal, and ``guard/NAME`` in the metrics for as long as it holds.
    Thresholds are ours: R1's team published none. Safe to change on resume."""

    not_finite: int = 3
    """The run stops after so many updates in a row whose loss or gradient was not finite; none of them is applied. 0 never
    stops."""
    window: int = 20
    """Updates over which the metrics below are averaged. A rule that held says nothing new until it has not held for so
    many."""
    reward_drop: float = 0.5
    """``reward``: the mean reward has fallen by this share of the best mean of an earlier window, and by three standard errors
    of the difference. 0 switches the rule off."""
    kl_max: float = 1.0
    """``kl``: the mean KL to the reference is above this, in nats per token. 0 switches the rule off."""
    entropy_min: float = 0.005
    """``entropy``: the policy's mean entropy is below this, in nats per token. 0 switches the rule off."""
    length_drop: float = 0.8
    """``length``: answers have become shorter by this share of the longest mean of an earlier window, and by three standard
    errors. 0 switches the rule off."""
    stop: tuple[Literal["reward", "kl", "entropy", "length"], ...] = ()
    """Rules that do not only warn: the run saves and stops with exit code 3 when one begins to hold. Started again, it goes
    on."""

    def __post_init__(self):
        if self.not_finite < 0 or self.window < 2:
            raise ConfigError("guards.not_finite must be >= 0 and guards.window at least 2")
        for name in ("reward_drop", "length_drop"):
            if not 0 <= vars(self)[name] <= 1:
                raise ConfigError(f"guards.{name} is {vars(self)[name]}; it is a share, from 0 to 1")
        if self.kl_max < 0 or self.entropy_min < 0:
            raise ConfigError("guards.kl_max and guards.entropy_min must be >= 0 (0 switches the rule off)")


@dataclass(frozen=True)
class Watchdog:
    """Looks whether a run still moves. Safe to change on resume."""

    stall_seconds: float = 3600.0
    """Without any progress (a phase that begins or ends, answers that are counted) for so long, the phase is named on stderr
    and the stacks of all threads are written below RUN/logs. 0 switches it off."""
    compile_seconds: float = 4 * 3600.0
    """Instead of ``stall_seconds`` while a program is compiled, of which nothing is heard until the end. 0 waits for ever."""
    stop: bool = False
    """Also end the process then, with exit code 3. What was saved is whole; what came after it is lost."""

    def __post_init__(self):
        if self.stall_seconds < 0 or self.compile_seconds < 0:
            raise ConfigError("watchdog.stall_seconds and watchdog.compile_seconds must be >= 0")
