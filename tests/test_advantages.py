"""Group-relative advantages against hand-computed numbers, torch, and what must not change them."""

import numpy as np
import pytest
import torch
import torch_reference
from hypothesis import given, settings
from hypothesis import strategies as st

from r1jax.advantages import group_advantages, no_signal


def test_by_hand():
    # 1, 0, 0, 0: mean 0.25, sample variance (0.75^2 + 3 * 0.25^2) / 3 = 0.25, std 0.5: 1.5 and -0.5 (ddof 0 would give 1.732).
    # 3, 1, 1, 3: mean 2, sample variance 4/3, std 1.154701: +-0.866025.
    advantages = group_advantages(np.array([1, 0, 0, 0, 3, 1, 1, 3]), 4)
    np.testing.assert_allclose(advantages, [1.5, -0.5, -0.5, -0.5, 0.866025, -0.866025, -0.866025, 0.866025], rtol=1e-5)
    assert advantages.dtype == np.float32
    np.testing.assert_array_equal(group_advantages(np.array([1, 0, 0, 0]), 4, std=False), [0.75, -0.25, -0.25, -0.25])
    # eps 0.5 doubles the divisor.
    np.testing.assert_allclose(group_advantages(np.array([1, 0, 0, 0]), 4, eps=0.5), [0.75, -0.25, -0.25, -0.25])


@pytest.mark.parametrize("std", [True, False])
def test_agrees_with_torch(std):
    rewards = np.random.default_rng(0).normal(size=6 * 5).astype(np.float32)
    expected = torch_reference.group_advantages(torch.tensor(rewards), 5, std=std)
    np.testing.assert_allclose(group_advantages(rewards, 5, std=std), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("std", [True, False])
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 0.1 + 0.2, 1 / 3, 1e6 + 0.1, -0.7])
def test_equal_rewards_give_exactly_zero(reward, std):
    for group in (2, 3, 7, 16):
        for eps in (1e-6, 0.0):
            assert group_advantages(np.full(group, reward), group, std=std, eps=eps).tolist() == [0.0] * group


def test_sums_that_differ_in_the_last_bit_of_float64_are_equal():
    rewards = np.array([0.1 + 0.2, 0.3, 0.3, 0.3, 1, 0, 0, 1])
    assert rewards[0] != rewards[1]
    assert not group_advantages(rewards, 4)[:4].any()
    np.testing.assert_array_equal(no_signal(rewards, 4), [True, False])


rewards_of_groups = st.lists(st.lists(st.integers(-8, 8), min_size=4, max_size=4), min_size=1, max_size=5)


@settings(max_examples=50, deadline=None)
@given(rewards_of_groups, st.integers(-16, 16), st.randoms(use_true_random=False))
def test_invariances(groups, shift, random):
    r = np.array(groups, np.float32) / 4
    a = group_advantages(r.reshape(-1), 4).reshape(r.shape)
    np.testing.assert_allclose(a.sum(1), 0, atol=1e-5)
    signal = ~no_signal(r.reshape(-1), 4)
    np.testing.assert_array_equal(signal, [len(set(g)) > 1 for g in groups])
    np.testing.assert_allclose(np.square(a).sum(1), np.where(signal, 3, 0), rtol=1e-4)  # a unit sample variance
    np.testing.assert_array_equal(group_advantages((r + shift).reshape(-1), 4), a.reshape(-1))
    np.testing.assert_allclose(group_advantages((4 * r).reshape(-1), 4), a.reshape(-1), rtol=1e-4)  # but for eps
    order = random.sample(range(4), 4)
    np.testing.assert_allclose(group_advantages(r[:, order].reshape(-1), 4).reshape(r.shape), a[:, order], rtol=1e-6)
    # A question's advantages do not depend on the other questions.
    np.testing.assert_array_equal(group_advantages(r[0], 4), a[0])


def test_mistakes_are_told_with_their_numbers():
    with pytest.raises(ValueError, match="10 rewards do not divide into groups of 4"):
        group_advantages(np.zeros(10), 4)
    with pytest.raises(ValueError, match="group is 1"):
        no_signal(np.zeros(10), 1)
    with pytest.raises(ValueError, match="1 of 4 rewards are not finite, the first at 2: nan"):
        group_advantages(np.array([0, 1, np.nan, 0]), 4)
    with pytest.raises(ValueError, match=r"shape \(2, 2\)"):
        group_advantages(np.zeros((2, 2)), 2)
