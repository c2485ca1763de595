"""What a reward returns."""

from __future__ import annotations

from dataclasses import dataclass

STATUSES = ("ok", "error", "timeout", "crash", "invalid")
"""The reward returned; raised; took too long; ended its process; returned something that is no finite number."""


@dataclass(frozen=True)
class Score:
    """One reward of one answer. ``value`` is 0.0 unless ``status`` is ``ok``."""

    value: float
    status: str = "ok"
    why: str = ""
    """One line for people: what was compared, or what went wrong."""

    def __post_init__(self):
        if self.status not in STATUSES:
            raise ValueError(f"Score.status is {self.status!r}; it is one of {', '.join(STATUSES)}")
