"""pass@k, cons@k, intervals and paired tests against counting, closed forms, published numbers and simulation."""

import itertools
import math

import numpy as np
import pytest

from r1jax.eval.compare import paired, permutation_test, sign_test
from r1jax.eval.estimators import RESAMPLES, bootstrap, cons_at_k, interval, pass_at_k
from r1jax.eval.votes import vote


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


# -- Bootstrap


def binomial_quantile(n, p, share):
    """The smallest k with P(X <= k) >= share."""
    total = 0.0
    for k in range(n + 1):
        total += math.comb(n, k) * p**k * (1 - p) ** (n - k)
        if total >= share:
            return k


@pytest.mark.parametrize(("right", "of"), [(8, 10), (12, 40), (150, 200)])
def test_bootstrap_of_right_and_wrong_is_binomial(right, of):
    """A resample of n answers of which a share p is right has a binomial number of right ones."""
    values = np.array([1.0] * right + [0.0] * (of - right))
    low, high = bootstrap(values)
    expected = [binomial_quantile(of, right / of, share) for share in (0.025, 0.975)]
    # The quantile of 10,000 draws may be the neighbour where the distribution steps over 2.5 % nearby.
    for found, k in zip((low, high), expected, strict=True):
        assert abs(round(found * of) - k) <= (of > 20) and found * of == pytest.approx(round(found * of))
    assert bootstrap(values, confidence=0.5)[0] > low


def test_bootstrap_has_the_width_of_the_normal_interval_where_there_is_much():
    values = np.random.default_rng(0).exponential(300, 800)  # lengths, say
    half = 1.959964 * values.std() / math.sqrt(800)
    low, high = bootstrap(values)
    error = 4 * half / math.sqrt(RESAMPLES)  # of a quantile, a few standard errors
    assert low == pytest.approx(values.mean() - half, abs=error + half * 0.05)
    assert high == pytest.approx(values.mean() + half, abs=error + half * 0.05)


def test_bootstrap_is_of_the_values_and_not_of_their_order(monkeypatch):
    values = np.array([0.25, 1, 0, 0.75, 0.75, 0.5])
    assert bootstrap(values) == bootstrap(values[::-1])
    assert bootstrap(values - 2) == pytest.approx(np.array(bootstrap(values)) - 2)
    assert bootstrap(np.full(9, 0.4)) == pytest.approx((0.4, 0.4))
    monkeypatch.setattr("r1jax.eval.estimators.DRAWN", 64)  # in many pieces
    assert bootstrap(values) == pytest.approx(bootstrap(values[::-1]))
    for wrong in (np.zeros(0), np.array([1.0, np.nan]), np.zeros((2, 2))):
        with pytest.raises(ValueError, match="one finite value per problem"):
            bootstrap(wrong)


# -- Votes


def test_equal_answers_are_one_vote():
    same = {
        "accuracy": [r"\boxed{0.50}", r"so <answer>$\frac{1}{2}$</answer>", "#### 1/2", r"\boxed{50\%}"],
        "choice": ["Answer: B", "<answer>(b)</answer>", "I choose Paris"],
        "exact": ["yes", "<answer>yes</answer>"],
    }
    row = {"options": ["Rome", "Paris"], "answer": "A"}
    for reward, texts in same.items():
        votes = [vote(reward, text, row) for text in texts]
        assert len(set(votes)) == 1 and votes[0] is not None, votes
    assert vote("accuracy", r"\boxed{2}", {}) != vote("accuracy", r"\boxed{2 cm}", {})
    assert vote("exact", r"\boxed{0.5}", {}) != vote("exact", r"\boxed{1/2}", {})
    assert vote("accuracy", "<think>7", {}) is None and vote("choice", "Rome or Paris", row) is None


# -- Two models


def test_sign_test_by_hand():
    # 9 better, 1 worse: 2 (1 + 10) / 2^10
    assert sign_test(9, 1) == sign_test(1, 9) == pytest.approx(22 / 1024)
    assert sign_test(5, 5) == sign_test(0, 0) == 1 and sign_test(0, 6) == 2 / 64
    n = 1000  # normal with continuity correction: z = (2 * 50 - 1) / sqrt(1000)
    z = (2 * 50 - 1) / math.sqrt(n)
    assert sign_test(n // 2 + 50, n // 2 - 50) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=1e-2)


def test_permutation_test_counts_every_way_to_swap():
    rng = np.random.default_rng(0)
    for samples in (1, 3, 8):
        gaps = rng.integers(-samples, samples + 1, 9) / samples
        sums = np.array([np.dot(signs, gaps) for signs in itertools.product((-1, 1), repeat=9)])
        assert permutation_test(gaps, samples) == pytest.approx(np.mean(np.abs(sums) >= abs(gaps.sum()) - 1e-9))
    assert permutation_test(np.zeros(5), 4) == 1
    with pytest.raises(ValueError, match="no multiples of 1/2"):
        permutation_test(np.array([0.25]), 2)


def test_of_one_answer_each_the_two_tests_are_mcnemars():
    first, other = np.zeros((2, 30))
    first[:3] = other[2:14] = 1  # 11 better, 2 worse, 17 the same
    found = paired(first, other, 1)
    assert (found.better, found.worse, found.equal) == (11, 2, 17)
    exact = 2 * sum(math.comb(13, i) for i in range(3)) / 2**13
    assert found.p_sign == pytest.approx(exact) and found.p_permutation == pytest.approx(exact)
    assert found.difference == pytest.approx(9 / 30) and found.low < 0.3 < found.high
    assert bootstrap(other - first) == (found.low, found.high)


def test_a_large_difference_on_few_problems_is_told_from_many_small_ones():
    """Ten problems a little better and one much worse: by the signs better, by the mean not."""
    first = np.array([0.5] * 10 + [1.0])
    other = np.array([0.5625] * 10 + [0.25])
    found = paired(first, other, 16)
    assert found.p_sign == pytest.approx(2 * 12 / 2**11) and found.difference < 0
    # 12 of 16 against ten times 1: |+-12 +- 1 ...| >= 2 always but where ten of one sign... 12 - 10 = 2, so it always holds.
    assert found.p_permutation == 1
    assert paired(first, first, 16).p_permutation == 1


def test_pairs_must_be_pairs():
    with pytest.raises(ValueError, match=r"values of shapes \(3,\) and \(2,\) are no pairs"):
        paired(np.zeros(3), np.zeros(2), 1)


def test_paired_intervals_cover_the_difference():
    """Answers of two models to problems of very different difficulty: 8 answers each, 60 problems."""
    rng, covered = np.random.default_rng(1), []
    for _ in range(80):
        p = rng.beta(0.6, 0.6, 60)
        q = np.clip(p + 0.05, 0, 1)
        found = paired(rng.binomial(8, p, 60) / 8, rng.binomial(8, q, 60) / 8, 8)
        covered.append(found.low <= (q - p).mean() <= found.high)
    assert 0.89 <= np.mean(covered) <= 0.99
