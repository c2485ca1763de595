"""A scalar head on the decoder."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_models import GQA, MLA, TOKENS, draw, jit

from r1jax import params as parameters
from r1jax.models import decoder, scalar

TIED = dataclasses.replace(GQA, tied=True)
POSITIONS = np.broadcast_to(np.arange(TOKENS.shape[1], dtype=np.int32), TOKENS.shape)
SEGMENTS = np.ones_like(TOKENS)
values = jit(scalar.values, static_argnames="model")


@pytest.mark.parametrize("model", [TIED, MLA], ids=["tied", "mla with multi-token prediction"])
def test_values_are_the_logits_of_an_entry_that_has_the_heads_kernel(model):
    """The policy's own path to logits, with the scalar kernel as the row or column of entry 5."""
    policy = draw(model)
    kernel = np.random.default_rng(3).standard_normal(model.d_model).astype(np.float32)
    head = {"kernel": jnp.asarray(kernel), "bias": jnp.float32(0.25)}
    found, aux = values(scalar.from_policy(policy, head), TOKENS, POSITIONS, SEGMENTS, model=model)
    hidden, expected_aux, _ = jit(decoder.forward, static_argnames="model")(policy, TOKENS, POSITIONS, SEGMENTS, model=model)
    if model.tied:
        policy = {"embed": {"table": policy["embed"]["table"].at[5].set(kernel)}}
    else:
        policy = {"head": {"kernel": policy["head"]["kernel"].at[:, 5].set(kernel)}}
    expected = decoder.logits(policy, hidden, model)[..., 5] + 0.25
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(aux.load[1], expected_aux.load[1])
    tree = jax.tree.map(jnp.shape, scalar.from_policy(draw(model), head))
    assert tree == jax.tree.map(lambda s: s.shape, scalar.specs(model), is_leaf=parameters.is_spec)


def test_a_head_of_zeros_gives_zeros_and_learns_the_mean_hidden_state():
    params = scalar.from_policy(draw(GQA), parameters.init(scalar.head_specs(GQA), jax.random.key(0)))
    hidden, _, _ = decoder.forward(params, TOKENS, POSITIONS, SEGMENTS, model=GQA)
    assert not scalar.read(hidden, params["value"]).any()
    grads = jax.grad(lambda head: scalar.read(hidden, head).sum())(params["value"])
    np.testing.assert_allclose(grads["kernel"], np.asarray(hidden).sum((0, 1)), rtol=1e-5, atol=1e-4)
    assert float(grads["bias"]) == TOKENS.size


def test_hidden_states_in_bfloat16_are_read_in_float32():
    """512 times 1 + 2^-9 is 513, which bfloat16 does not hold."""
    hidden = jnp.ones((1, 512), jnp.bfloat16)
    head = {"kernel": jnp.full(512, 1 + 2.0**-9, jnp.float32), "bias": jnp.float32(0)}
    assert scalar.read(hidden, head)[0] == 513.0
