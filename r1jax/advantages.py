"""Rewards become advantages, on the host: each answer against the other answers to its question."""

from __future__ import annotations

import numpy as np


def group_advantages(rewards: np.ndarray, group: int, *, std: bool = True, eps: float = 1e-6) -> np.ndarray:
    """Group-relative advantages (DeepSeekMath, arXiv 2402.03300, section 4.1.2; R1, Nature 2025, eq. 3).

    ``A_i = (r_i - mean(r)) / (std(r) + eps)`` with mean and standard deviation over the ``G`` answers to one question.
    ``std=False`` leaves the division out (Dr. GRPO, arXiv 2503.20783).

    The papers do not say which standard deviation: this is the sample one (ddof 1), as in TRL and verl, and so is ``eps``.
    A group whose rewards are all equal, as float32, gets exactly 0, whatever ``eps`` is: the mean is taken in float64, where it
    is exact for equal rewards, and nothing is divided. So sums such as 0.1 + 0.2 and 0.3 make no signal.

    Args:
      rewards: float32[N], the ``group`` answers to a question side by side.
      group: answers per question, G.
      std: divide by the group's standard deviation.
      eps: added to the standard deviation.

    Returns:
      float32[N]; computed in float64.

    Raises:
      ValueError: ``group`` is below 2 or does not divide N, or a reward is not finite.
    """
    r = _grouped(rewards, group)
    advantages = r.astype(np.float64) - r.mean(axis=1, dtype=np.float64, keepdims=True)
    if std:
        scale = r.std(axis=1, ddof=1, dtype=np.float64, keepdims=True) + eps
        np.divide(advantages, scale, out=advantages, where=~_equal(r)[:, None])
    return advantages.astype(np.float32).reshape(-1)


def no_signal(rewards: np.ndarray, group: int) -> np.ndarray:
    """bool[Q]: the groups whose rewards are all equal, so that every advantage is 0. Arguments as for ``group_advantages``."""
    return _equal(_grouped(rewards, group))


def _equal(rewards: np.ndarray) -> np.ndarray:
    """bool[Q] of float32[Q, G]."""
    return rewards.max(axis=1) == rewards.min(axis=1)


def _grouped(rewards: np.ndarray, group: int) -> np.ndarray:
    """float32[Q, G]."""
    rewards = np.asarray(rewards, np.float32)
    if rewards.ndim != 1:
        raise ValueError(f"rewards has shape {rewards.shape}; give one reward per answer, [N]")
    if group < 2:
        raise ValueError(f"group is {group}; an advantage compares at least 2 answers to one question")
    if rewards.size % group:
        raise ValueError(f"{rewards.size} rewards do not divide into groups of {group}; every question needs {group} answers")
    if (bad := np.flatnonzero(~np.isfinite(rewards))).size:
        raise ValueError(f"{bad.size} of {rewards.size} rewards are not finite, the first at {bad[0]}: {rewards[bad[0]]}")
    return rewards.reshape(-1, group)
