"""One number from an answer's scores."""

from __future__ import annotations

from collections.abc import Mapping

from r1jax.rewards.score import Score


def total(scores: Mapping[str, Score], weights: Mapping[str, float]) -> float:
    """The weighted sum of the scores' values.

    Raises:
      ValueError: a weight names a reward that was not scored.
    """
    missing = [name for name in weights if name not in scores]
    if missing:
        raise ValueError(f"weights name {', '.join(missing)}, which was not scored (scored: {', '.join(scores) or 'nothing'})")
    return sum(weight * scores[name].value for name, weight in weights.items())
