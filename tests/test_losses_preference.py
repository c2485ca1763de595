"""Losses of reward models, by hand and against torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from r1jax.losses.preference import pairwise, pointwise

MASK = np.array([[True, False, True], [True, True, False]])


def of(*values):
    """Values at the places where MASK is true, and NaN elsewhere."""
    out = np.full(MASK.shape, np.nan, np.float32)
    out[MASK] = values
    return jnp.asarray(out)


def test_pairs_by_hand():
    """Three pairs ahead by ln 3, 0 and -ln 3, and one by ln 3 that should be by ln 9: -log(3/4), ln 2, -log(1/4), -log(1/4)."""
    log3 = np.log(3.0)
    chosen, rejected = of(1 + log3, 2.0, -1.0, log3), of(1.0, 2.0, log3 - 1, 0.0)
    loss, sums = pairwise(chosen, rejected, MASK, of(0, 0, 0, 2 * log3))
    assert float(loss) == pytest.approx(np.log(4 / 3) + np.log(2) + 2 * np.log(4), rel=1e-6)
    assert {k: float(v) for k, v in sums.items()} == pytest.approx(
        {"judged": 4, "right": 2, "margin": log3, "good": 2 + 2 * log3, "bad": 2 + log3}, rel=1e-6
    )
    without, _ = pairwise(chosen, rejected, MASK)
    assert float(without) == pytest.approx(2 * np.log(4 / 3) + np.log(2) + np.log(4), rel=1e-6)


def test_answers_by_hand():
    """Log-odds ln 3 are a probability of 3/4: right for a good answer, wrong for a bad one; 0 is neither."""
    log3 = np.log(3.0)
    loss, sums = pointwise(of(log3, log3, -log3, 0.0), of(1, 0, 0, 1), MASK)
    assert float(loss) == pytest.approx(np.log(4 / 3) + np.log(4) + np.log(4 / 3) + np.log(2), rel=1e-6)
    assert {k: float(v) for k, v in sums.items()} == pytest.approx(
        {"judged": 4, "right": 2, "positive": 2, "good": log3, "bad": 0}, rel=1e-6, abs=1e-6
    )


def test_values_and_gradients_are_torchs():
    rng = np.random.default_rng(0)
    a, b, margin = (rng.normal(0, 20, MASK.sum()).astype(np.float32) for _ in range(3))
    labels = np.array([1, 0, 1, 0], np.float32)
    x, y = (torch.tensor(v, requires_grad=True) for v in (a, b))
    expected = -torch.nn.functional.logsigmoid(x - y - torch.tensor(margin)).sum()
    expected.backward()
    value, grads = jax.value_and_grad(lambda c, r: pairwise(c, r, MASK, of(*margin))[0], argnums=(0, 1))(of(*a), of(*b))
    assert float(value) == pytest.approx(expected.item(), rel=1e-6)
    for found, leaf in zip(grads, (x, y), strict=True):
        np.testing.assert_allclose(found[MASK], leaf.grad, rtol=1e-5, atol=1e-7)
        assert not np.any(found[~MASK])
    x = torch.tensor(a, requires_grad=True)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(x, torch.tensor(labels), reduction="sum")
    expected.backward()
    value, grad = jax.value_and_grad(lambda v: pointwise(v, of(*labels), MASK)[0])(of(*a))
    assert float(value) == pytest.approx(expected.item(), rel=1e-6)
    np.testing.assert_allclose(grad[MASK], x.grad, rtol=1e-5, atol=1e-7)
    assert not np.any(grad[~MASK])
