"""Rules over the rows of ``metrics.jsonl``: which hold, and which begin to. Functions of the rows alone, so that a resumed run
says what an uninterrupted one does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from r1jax.config.guards import Guards

MARK = "guard/"
"""Before the name of a rule: 1 in the rows of updates at which it holds."""
KEYS = {"reward": "reward/total", "kl": "kl", "entropy": "entropy", "length": "length/mean"}
"""Rule -> the metric that it looks at."""
ERRORS = 3.0
"""Standard errors by which a mean must have fallen."""
_WHAT_TO_DO = {
    "reward": "look at the newest answers (r1jax samples RUN), or go back to RUN@best with a lower optimizer.lr",
    "kl": "lower optimizer.lr, raise kl_beta, or go back to an earlier checkpoint",
    "entropy": "hardly anything new is tried any more: raise clip_high or sampling.temperature",
    "length": "look at the newest answers (r1jax samples RUN): what is short may earn too much",
}


def holding(guards: Guards, rows: Sequence[Mapping[str, float]]) -> dict[str, str]:
    """Rule -> what it sees, for each that holds after the last row.

    Args:
      rows: of metrics. A row without a rule's metric, an evaluation's for instance, is none of its rows; values that are not
        finite count for nothing, since such updates are not applied.
    """
    found = {
        "reward": _fallen(_series(rows, KEYS["reward"]), guards.window, guards.reward_drop),
        "length": _fallen(_series(rows, KEYS["length"]), guards.window, guards.length_drop),
        "kl": _above(_series(rows, KEYS["kl"]), guards.window, guards.kl_max),
        "entropy": _below(_series(rows, KEYS["entropy"]), guards.window, guards.entropy_min),
    }
    return {name: f"{KEYS[name]} {why}" for name, why in found.items() if why}


def beginning(guards: Guards, rows: Sequence[Mapping[str, float]], held: Mapping[str, str]) -> list[str]:
    """Of the rules that hold after ``rows``, those that held at none of the last ``window`` of these."""
    recent = [row for row in rows if "loss" in row][-guards.window :]
    return [name for name in held if not any(row.get(MARK + name) for row in recent)]


def line(name: str, why: str) -> str:
    """What is said when a rule begins to hold."""
    return f"guard {name}: {why}; {_WHAT_TO_DO[name]} (guards in the config)"


def _series(rows: Sequence[Mapping[str, float]], key: str) -> np.ndarray:
    return np.array([row[key] for row in rows if key in row and math.isfinite(row[key])], np.float64)


def _fallen(values: np.ndarray, window: int, share: float) -> str:
    """Whether the mean of the last ``window`` values is below the best of the windows that end before it begins."""
    if not share or len(values) < 2 * window:
        return ""
    before, now = np.lib.stride_tricks.sliding_window_view(values[:-window], window), values[-window:]
    best = before[before.mean(1).argmax()]
    error = math.sqrt((best.var(ddof=1) + now.var(ddof=1)) / window)
    fall = float(best.mean() - now.mean())
    if fall <= 0 or fall < share * abs(best.mean()) or fall < ERRORS * error:
        return ""
    return f"has fallen to {now.mean():.4g} over the last {window} updates, from {best.mean():.4g} over as many at its best"


def _above(values: np.ndarray, window: int, most: float) -> str:
    recent = values[-window:]
    if not most or not len(recent) or recent.mean() <= most:
        return ""
    return f"is {recent.mean():.4g} over the last {len(recent)} updates, above {most:g}"


def _below(values: np.ndarray, window: int, least: float) -> str:
    if not least or len(values) < window or values[-window:].mean() >= least:
        return ""
    return f"is {values[-window:].mean():.4g} over the last {window} updates, below {least:g}"
