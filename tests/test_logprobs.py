"""Chunked log-probabilities and entropies, and their gradients, against torch's over the whole vocabulary."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.extend.core import jaxprs_in_params
from random_models import jit

from r1jax import config, sharding
from r1jax.models import logprobs

SHAPE, WIDTH = (2, 10), 8


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(logprobs, "CHUNK", 16)
    monkeypatch.setattr(logprobs, "ROWS", 6)


def drawn(vocab, scale=1.0):
    rng = np.random.default_rng(vocab)
    hidden, kernel = (scale * rng.standard_normal(shape).astype(np.float32) for shape in ((*SHAPE, WIDTH), (WIDTH, vocab)))
    targets = rng.integers(0, vocab, SHAPE).astype(np.int32)
    size = logprobs.chunk_size(vocab)
    targets[0, :5] = 0, size - 1, size % vocab, vocab - size, vocab - 1  # the edges of chunks, and where the last overlaps
    kernel[:, vocab - size] *= 2
    return hidden, kernel, targets, rng.standard_normal((2, *SHAPE)).astype(np.float32)


def ours(hidden, kernel, targets, weights, **options):
    """((log-probs, entropies), gradients in hidden and kernel of their sum by ``weights``)."""

    def total(hidden, kernel):
        out = jnp.stack(logprobs.token_logprobs(hidden, kernel, targets, **options))
        return (out * weights).sum(), out

    (_, out), grads = jit(jax.value_and_grad(total, (0, 1), has_aux=True))(hidden, kernel)
    return out, grads


def theirs(hidden, kernel, targets, weights, temperature):
    hidden, kernel = (torch.from_numpy(x.copy()).requires_grad_() for x in (hidden, kernel))
    every = torch.log_softmax(hidden @ kernel / temperature, -1)
    values = every.gather(-1, torch.from_numpy(targets).long()[..., None])[..., 0]
    out = torch.stack([values, -(every.exp() * every).sum(-1)])
    (out * torch.from_numpy(weights)).sum().backward()
    return out.detach().numpy(), (hidden.grad.numpy(), kernel.grad.numpy())


def close(found, expected, share):
    for ours, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=0, atol=share * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("vocab", "temperature", "scale", "share"),
    # one chunk; three equal ones; a prime, whose last chunk overlaps; logits up to 10,000, whose own rounding is 1e-3
    [(13, 1.0, 1.0, 5e-6), (48, 0.7, 1.0, 5e-6), (53, 1.3, 1.0, 5e-6), (53, 0.5, 20.0, 1e-3)],
)
def test_values_and_gradients_are_those_of_the_whole_softmax(vocab, temperature, scale, share):
    args = drawn(vocab, scale)
    close(ours(*args, temperature=temperature), theirs(*args, temperature), share)


@pytest.mark.parametrize("asked", [0, 1, 12, 13, 20])
def test_only_what_the_mask_asks_for_is_computed(asked):
    """Blocks of 6: none, one begun, two whole ones, a third begun, all and two more. Rows of other blocks are NaN."""
    hidden, kernel, targets, weights = drawn(53)
    mask = np.zeros(20, bool)
    mask[np.random.default_rng(0).permutation(20)[:asked]] = True
    mask = mask.reshape(SHAPE)
    weights = weights * mask
    out, (d_hidden, d_kernel) = theirs(hidden, kernel, targets, weights, 0.7)
    unread = np.flatnonzero(~mask)[-asked % 6 :]
    hidden.reshape(-1, WIDTH)[unread] = np.nan
    found, grads = ours(hidden, kernel, targets, weights, mask=mask, temperature=0.7)
    close((found * mask, grads), (out * mask, (d_hidden, d_kernel)), 5e-6)


def test_the_mask_changes_nothing_over_several_devices():
    hidden, kernel, targets, weights = drawn(48)
    mask = np.arange(20).reshape(SHAPE) % 3 > 0
    with sharding.using(sharding.make_mesh(config.Mesh(data=2, fsdp=1, tensor=4)), sharding.TRAIN):
        found, grads = ours(hidden, kernel, targets, weights * mask, mask=mask)
    expected, expected_grads = ours(hidden, kernel, targets, weights * mask)
    close((found * mask, grads), (expected * mask, expected_grads), 5e-6)


@pytest.mark.parametrize("vocab", [5, 16, 50])
def test_the_most_probable_token_is_the_first_of_the_largest(vocab):
    hidden, kernel, *_ = drawn(vocab)
    np.testing.assert_array_equal(logprobs.most_probable(hidden, kernel), (hidden @ kernel).argmax(-1))
    kernel[:, vocab - 1] = kernel[:, 1]  # equal ones in other chunks
    np.testing.assert_array_equal(logprobs.most_probable(hidden, kernel), (hidden @ kernel[:, :-1]).argmax(-1))


def test_operands_in_bfloat16():
    """Within the rounding of operands of the exact values, and every product, forward and backward, has such operands."""
    hidden, kernel, targets, weights = drawn(53)
    exact, rounded = (ours(hidden, kernel, targets, weights, dtype=dtype) for dtype in ("float32", "bfloat16"))
    for found, wanted in zip(jax.tree.leaves(rounded), jax.tree.leaves(exact), strict=True):
        assert found.dtype == jnp.float32
        assert 1e-5 < np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < 2**-6

    def total(hidden, kernel):
        return sum(x.sum() for x in logprobs.token_logprobs(hidden, kernel, targets, dtype="bfloat16"))

    found = list(_products(jax.make_jaxpr(jax.grad(total, (0, 1)))(hidden, kernel).jaxpr))
    assert len(found) == 4  # the logits twice, and two gradients
    assert {v.aval.dtype.name for product in found for v in product.invars} == {"bfloat16"}
    assert {product.params["preferred_element_type"].name for product in found} == {"float32"}


def test_activations_in_bfloat16_give_logits_that_are_not_rounded():
    hidden, kernel, targets, weights = drawn(53, scale=4.0)
    hidden, kernel = (np.asarray(jnp.asarray(x, jnp.bfloat16).astype(jnp.float32)) for x in (hidden, kernel))
    exact, _ = ours(hidden, kernel, targets, weights)
    found, grads = ours(jnp.asarray(hidden, jnp.bfloat16), kernel, targets, weights, dtype="bfloat16")
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-4)  # logits reach 100, where bfloat16's steps are 0.5
    assert grads[0].dtype == jnp.bfloat16 and grads[1].dtype == jnp.float32


def _products(jaxpr):
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from _products(inner)


def test_no_array_of_all_logits_is_made(monkeypatch):
    """Four times the vocabulary needs the working memory of once, but for the kernel's own gradient."""
    monkeypatch.setattr(logprobs, "CHUNK", 512)
    b, t, d = 2, 64, 8
    hidden, targets = jax.ShapeDtypeStruct((b, t, d), jnp.float32), jax.ShapeDtypeStruct((b, t), jnp.int32)

    def temp(vocab, mask):
        def total(hidden, kernel, targets, mask):
            return sum(x.sum() for x in logprobs.token_logprobs(hidden, kernel, targets, mask=mask))

        kernel = jax.ShapeDtypeStruct((d, vocab), jnp.float32)
        compiled = jax.jit(jax.grad(total, (0, 1))).lower(hidden, kernel, targets, mask).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    for mask in (None, jax.ShapeDtypeStruct((b, t), jnp.bool_)):
        small, large = (partial(temp, mask=mask)(vocab) for vocab in (2048, 8192))
        assert large - small <= 2 * 4 * d * (8192 - 2048) < b * t * 8192, (small, large)


def test_vocabularies_are_cut_into_few_chunks(monkeypatch):
    monkeypatch.setattr(logprobs, "CHUNK", 16_384)
    assert [logprobs.chunk_size(v) for v in (512, 16_384, 16_385, 129_280)] == [512, 16_384, 8_193, 16_160]
