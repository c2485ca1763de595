"""pass@k, cons@k and the interval against counting, published numbers and simulation."""

import itertools
import math

import numpy as np
import pytest

from r1jax.eval.estimators import cons_at_k, interval, pass_at_k


def test_pass_at_k_by_hand():
    # 2 right of 5: 1 - C(3,2)/C(5,2) = 1 - 3/10; the plug-in 1 - (3/5)^2 = 0.64 is biased.
    np.testing.assert_allclose(pass_at_k(np.array([[1, 0, 0, 0, 1], [0] * 5, [1] * 5]), 2), [0.7, 0, 1])


def test_pass_at_k_is_the_share_of_draws_with_a_right_answer():
    rng = np.random.default_rng(0)
    correct = rng.random((12, 6)) < rng.random((12, 1))
    for k in range(1, 7):
        draws = [[any(row[i] for i in draw) for draw in itertools.combinations(range(6), k)] for row in correct]
        np.testing.assert_allclose(pass_at_k(correct, k), np.mean(draws, axis=1), atol=1e-12)
    np.testing.assert_allclose(pass_at_k(correct, 1), correct.mean(axis=1))
    np.testing.assert_array_equal(pass_at_k(correct, 6), correct.any(axis=1))


def test_pass_at_k_of_many_samples_is_exact():
    # C(2000, 1000) overflows float64. Integers do not.
    correct = np.zeros((2, 2000))
    correct[0, 0] = correct[1, :7] = 1
    expected = [0.5, 1 - math.comb(1993, 1000) / math.comb(2000, 1000)]
    np.testing.assert_allclose(pass_at_k(correct, 1000), expected, rtol=1e-12)


def test_pass_at_k_refuses_what_it_cannot_count():
    with pytest.raises(ValueError, match="pass@5 needs at least 5 answers to each problem and k >= 1; there are 4"):
        pass_at_k(np.zeros((3, 4)), 5)
    with pytest.raises(ValueError, match="pass@0"):
        pass_at_k(np.zeros((3, 4)), 0)
    with pytest.raises(ValueError, match="partial credit"):
        pass_at_k(np.full((3, 4), 0.5), 2)
    with pytest.raises(ValueError, match=r"shape \(4,\)"):
        pass_at_k(np.zeros(4), 1)


def test_cons_at_k_by_hand():
    answers = [
        ["7", "7", "9", None],  # 7 has most votes, and is wrong
        ["7", "9", None, None],  # a tie of one right and one wrong
        ["7", "7", "9", "9"],  # the same with two votes each
        [None, None, None, "9"],  # None has no vote
        [None] * 4,
        ["1", "2", "3", "9"],  # four tied, one right
    ]
    correct = np.array([[a == "9" for a in row] for row in answers])
    np.testing.assert_array_equal(cons_at_k(answers, correct), [0, 0.5, 0.5, 1, 0, 0.25])


def test_cons_at_k_does_not_depend_on_the_order_of_answers():
    rng = np.random.default_rng(0)
    answers = rng.choice(["a", "b", "c"], size=(20, 5))
    correct = answers == "a"
    order = rng.permutation(5)
    np.testing.assert_array_equal(cons_at_k(answers, correct), cons_at_k(answers[:, order], correct[:, order]))


def test_cons_at_k_refuses_ragged_answers():
    with pytest.raises(ValueError, match=r"2 rows of lengths \[1, 2\], but correct has shape \(2, 2\)"):
        cons_at_k([["a", "b"], ["a"]], np.zeros((2, 2)))


def test_interval_of_single_answers_is_wilsons():
    # 8 of 10 at 95 %: z = 1.959964, z^2 = 3.841459; (0.8 + 0.192073 +- 1.959964 sqrt(0.016 + 0.009604)) / 1.384146
    #   = (0.992073 +- 0.313616) / 1.384146 = 0.490162, 0.943318
    assert interval(np.array([1] * 8 + [0] * 2)) == pytest.approx((0.490162, 0.943318), abs=2e-6)
    # 0 of 512: from 0 to z^2 / (512 + z^2).
    assert interval(np.zeros(512)) == pytest.approx((0, 3.841459 / 515.841459), abs=1e-8)
    assert interval(np.ones(512), samples=8)[0] == pytest.approx(512 / 515.841459, abs=1e-8)
    assert interval(np.ones(3), confidence=0.9)[0] > interval(np.ones(3), confidence=0.99)[0]


def test_interval_takes_as_many_trials_as_the_spread_is_worth():
    # Problems all right or all wrong: 8 answers to each are worth one.
    clustered = np.array([1.0] * 30 + [0.0] * 20)
    assert interval(clustered, samples=8) == pytest.approx(interval(clustered))
    # Every problem half right: as good as 50 * 8 independent answers, of which 200 are right.
    alike = interval(np.full(50, 0.5), samples=8)
    assert alike == pytest.approx(interval(np.repeat([0.0, 1.0], 200)))
    # In between: values 0.25 and 0.75 have variance 1/16, a quarter of p (1 - p), so 50 problems are worth 200.
    assert interval(np.tile([0.25, 0.75], 25), samples=8) == pytest.approx(interval(np.repeat([0.0, 1.0], 100)))


@pytest.mark.parametrize(("a", "b"), [(0.5, 0.5), (4.0, 1.0), (30.0, 30.0)])
def test_interval_covers_the_truth_when_answers_are_clustered(a, b):
    # Problems differ in difficulty (a Beta distribution with mean a / (a + b)), 60 problems, 8 answers each.
    rng = np.random.default_rng(0)
    truth, runs = a / (a + b), 2000
    values = rng.binomial(8, rng.beta(a, b, (runs, 60))) / 8
    covered = np.mean([low <= truth <= high for low, high in (interval(v, samples=8) for v in values)])
    assert 0.93 <= covered <= 0.97  # the standard error of this share is 0.005


def test_interval_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="at least one problem"):
        interval(np.zeros(0))
    with pytest.raises(ValueError, match="run from 0.0 to 1.5"):
        interval(np.array([0, 1.5]))
    with pytest.raises(ValueError, match="confidence is 95"):
        interval(np.zeros(3), confidence=95)
