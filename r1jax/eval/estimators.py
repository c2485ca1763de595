"""From answers that were right or wrong to the figures people quote: pass@k, cons@k, and how sure they are.

Every estimator returns one value per problem, float64[Q]; the figure is their mean, and ``bootstrap`` and ``interval`` are its
confidence intervals: of any values by resampling problems, and of shares by Wilson's formula, which holds at 0 and 1 too.
pass@1 is ``pass_at_k(correct, 1)``, the share of right answers, as R1 reports it (Nature 2025, supplement D.1).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

RESAMPLES = 10_000
"""Of a bootstrap."""
DRAWN = 1 << 22
"""Numbers that a bootstrap holds at once."""


def pass_at_k(correct: np.ndarray, k: int) -> np.ndarray:
    """Chance that at least one of ``k`` answers is right (Chen et al. 2021, arXiv 2107.03374, eq. 1).

    ``1 - C(n - c, k) / C(n, k)`` for ``c`` right ones of ``n`` answers: unbiased, unlike ``1 - (1 - c/n)^k``. Computed as
    ``1 - prod_j max(n - c - j, 0) / (n - j)`` over j < k, whose factors are all in [0, 1], so nothing overflows.

    Args:
      correct: bool[Q, n], whether each of a problem's answers is right.
      k: 1..n.

    Returns:
      float64[Q].

    Raises:
      ValueError: ``k`` is not in 1..n, or ``correct`` holds something else than 0 and 1.
    """
    correct = _table(correct)
    n = correct.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs at least {max(k, 1)} answers to each problem and k >= 1; there are {n} answers")
    if not np.isin(correct, (0, 1)).all():
        raise ValueError("pass@k counts answers that are right or wrong; give 0 and 1, partial credit against a threshold")
    j = np.arange(k)
    wrong = n - correct.sum(axis=1, keepdims=True)
    return 1.0 - np.prod(np.maximum(wrong - j, 0) / (n - j), axis=1)


def cons_at_k(answers: Sequence[Sequence[str | None]], correct: np.ndarray) -> np.ndarray:
    """Whether the answer most often given is right: majority vote over all ``k`` answers (Wang et al. 2023, arXiv 2203.11171).

    Equal strings are one vote; None, where no answer was found, does not vote, and a problem without a vote is wrong. A tie
    counts the share of the tied answers that is right, the mean of drawing one of them at random, so that the order of the
    answers has no effect.

    Args:
      answers: Q lists of k final answers, in a form where equal ones are equal strings.
      correct: bool[Q, k], whether each is right. Where equal strings were graded differently, their mean counts.

    Returns:
      float64[Q].

    Raises:
      ValueError: ``answers`` and ``correct`` differ in shape.
    """
    correct = _table(correct)
    if [len(row) for row in answers] != [correct.shape[1]] * len(correct):
        lengths = sorted({len(row) for row in answers})
        raise ValueError(f"answers has {len(answers)} rows of lengths {lengths}, but correct has shape {correct.shape}")
    return np.array([_majority(row, right) for row, right in zip(answers, correct, strict=True)])


def interval(values: np.ndarray, *, samples: int = 1, confidence: float = 0.95) -> tuple[float, float]:
    """Confidence interval of a mean over problems: Wilson's, with the number of problems that the spread is worth.

    The problems are the independent units; answers to one problem are not, so they enter only through their problem's value.
    With p the mean and s2 the (ddof 0) variance of the values, ``n = Q p (1 - p) / s2`` is the effective number of trials
    (Kish's design effect): from Q, where every problem is all right or all wrong, to at most Q * samples. The interval is
    ``(p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)`` (Wilson 1927). One answer to each problem gives Wilson's
    interval itself, which does not collapse at 0 or 1.

    Args:
      values: float[Q] in [0, 1], one per problem.
      samples: answers that each value is the mean of; 1 (for pass@k and cons@k) never lets n rise above Q, which errs on the
        wide side.
      confidence: e.g. 0.95.

    Returns:
      (low, high), within [0, 1].

    Raises:
      ValueError: no values, values outside [0, 1], or ``confidence`` outside (0, 1).
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not values.size:
        raise ValueError(f"values has shape {values.shape}; give one value per problem, and at least one problem")
    if not (values.min() >= 0 and values.max() <= 1):
        raise ValueError(f"values run from {values.min()} to {values.max()}; an interval is known for values in [0, 1]")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; give a share such as 0.95")
    p = float(values.mean())
    spread = p * (1 - p)
    n = values.size * (spread / max(float(values.var()), spread / samples) if spread > 0 else 1)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(spread / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low, high = (centre - half) / scale, (centre + half) / scale
    return max(min(low, p), 0.0), min(max(high, p), 1.0)  # rounding may put an end at 0 or 1 beyond the mean


def bootstrap(values: np.ndarray, *, confidence: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap over problems (Efron 1979) of the mean of ``values``: the quantiles of the means of ``RESAMPLES``
    samples of Q problems, drawn with replacement. The same values in any order give the same interval.

    Where all values are equal it has no width and says nothing: ``interval`` is for that.

    Args:
      values: float[Q], one per problem, of any range: a share, a length, a difference.

    Returns:
      (low, high).

    Raises:
      ValueError: no values, one that is not finite, or ``confidence`` outside (0, 1).
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise ValueError(f"values has shape {values.shape}; give one finite value per problem, and at least one problem")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; give a share such as 0.95")
    values = np.sort(values)
    rng, means = np.random.default_rng(0), []
    together = max(1, DRAWN // values.size)
    for first in range(0, RESAMPLES, together):
        drawn = rng.integers(values.size, size=(min(together, RESAMPLES - first), values.size))
        means.append(values[drawn].mean(axis=1))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)


def _majority(answers: Sequence[str | None], correct: np.ndarray) -> float:
    votes: dict[str, list[float]] = defaultdict(list)
    for answer, right in zip(answers, correct, strict=True):
        if answer is not None:
            votes[answer].append(float(right))
    if not votes:
        return 0.0
    most = max(map(len, votes.values()))
    return float(np.mean([np.mean(graded) for graded in votes.values() if len(graded) == most]))


def _table(correct: np.ndarray) -> np.ndarray:
    correct = np.asarray(correct, np.float64)
    if correct.ndim != 2 or not correct.shape[1]:
        raise ValueError(f"correct has shape {correct.shape}; give one row per problem and one column per answer")
    return correct
