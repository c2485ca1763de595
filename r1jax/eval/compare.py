"""Two models on the same problems: how much better one is, how sure that is, and whether chance would do.

Problems differ far more than models do, so the models are compared problem by problem. R1's tables call a difference
significant by a t-test at 0.01 (arXiv 2501.12948v2, D.1); the tests here assume no distribution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from r1jax.eval.estimators import bootstrap

EQUAL = 1e-9
"""Values that differ by less are a tie."""


@dataclass(frozen=True)
class Paired:
    """``other`` minus ``first``, over the same problems."""

    difference: float
    """Of the means."""
    low: float
    high: float
    """95 % bootstrap interval of the difference, resampling problems."""
    p_permutation: float
    """Two-sided, of the mean difference, if on every problem either model might as well be the other."""
    p_sign: float
    """Two-sided exact sign test, which looks at who is better and not by how much."""
    better: int
    worse: int
    equal: int
    """Problems on which ``other`` is better, worse, or the same."""


def paired(first: np.ndarray, other: np.ndarray, samples: int) -> Paired:
    """
    Args:
      first, other: float64[Q], a value of each problem under each model, the mean of ``samples`` answers that count 0 or 1.

    Raises:
      ValueError: the models were not asked the same number of problems, or values are not multiples of 1 / samples.
    """
    first, other = np.asarray(first, np.float64), np.asarray(other, np.float64)
    if first.shape != other.shape or first.ndim != 1 or not first.size:
        raise ValueError(f"values of shapes {first.shape} and {other.shape} are no pairs; give one of each problem twice")
    gaps = other - first
    better, worse = int((gaps > EQUAL).sum()), int((gaps < -EQUAL).sum())
    low, high = bootstrap(gaps)
    return Paired(
        difference=float(gaps.mean()), low=low, high=high, p_permutation=permutation_test(gaps, samples),
        p_sign=sign_test(better, worse), better=better, worse=worse, equal=gaps.size - better - worse,
    )  # fmt: skip


def sign_test(better: int, worse: int) -> float:
    """``min(1, 2 P(X <= min(better, worse)))`` for X binomial with n = better + worse and 1/2: ties are left out. Of right and
    wrong answers it is McNemar's test in its exact form."""
    n = better + worse
    tail = sum(math.comb(n, i) for i in range(min(better, worse) + 1))
    return min(1.0, 2 * tail / 2**n)


def permutation_test(gaps: np.ndarray, samples: int) -> float:
    """Exact paired permutation test of a mean (Fisher 1935): the share of the 2^Q ways to swap the models on each problem whose
    sum of differences is at least as far from 0 as the one that was seen.

    The differences are whole multiples of ``1 / samples``, so the sums are whole numbers, and their distribution is that of a
    walk with steps of known size: one pass per problem, no drawing.

    Args:
      gaps: float64[Q], multiples of 1 / samples.

    Raises:
      ValueError: they are not.
    """
    steps = np.rint(np.asarray(gaps) * samples).astype(np.int64)
    if np.abs(steps - np.asarray(gaps) * samples).max(initial=0) > 1e-6:
        raise ValueError(f"the differences are no multiples of 1/{samples}; give those of means of {samples} answers")
    reached = abs(int(steps.sum()))
    steps = np.sort(np.abs(steps[steps != 0]))
    chances, most = np.ones(1), int(steps.sum())  # of the sums -most, ..., most so far
    for step in steps:
        chances = np.pad(chances, (0, 2 * step)) / 2 + np.pad(chances, (2 * step, 0)) / 2
    sums = np.arange(-most, most + 1)
    return min(1.0, float(chances[np.abs(sums) >= reached].sum()))
