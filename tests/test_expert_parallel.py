"""Experts over eight devices give what every expert for every token gives on one: values, gradients, and nothing is gathered."""

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_models import draw, jit

from r1jax import config, lora, sharding
from r1jax import params as parameters
from r1jax.models import decoder
from r1jax.nn import expert_parallel, moe, quantized

ROWS, LENGTH = 16, 6
MOE = config.MoE(n_experts=16, top_k=4, d_ff=24, n_shared=0, n_groups=4, top_groups=2, scale=2.5)
MODEL = config.Model(d_model=16, segments=(config.Segment("moe"),), moe=MOE)
FREE = dataclasses.replace(MODEL, moe=dataclasses.replace(MOE, n_groups=1, top_groups=1, top_k=3, scoring="softmax"))
SPECS = {name: spec for name, spec in moe.specs(MODEL).items() if name != "router_bias"}


def inputs(seed=0):
    rng = np.random.default_rng(seed)
    params = {name: jnp.asarray(rng.standard_normal(spec.shape) / 3, jnp.float32) for name, spec in SPECS.items()}
    params["router_bias"] = jnp.asarray(rng.standard_normal(MOE.n_experts) / 10, jnp.float32)
    return params, jnp.asarray(rng.standard_normal((ROWS, LENGTH, MODEL.d_model)), jnp.float32)


def dense(params, x, routing, model):
    return moe.experts_dense(params, x, routing, model), jnp.zeros(())


def values_and_gradients(form, model, params, x, sizes, table=sharding.TRAIN, routes=None):
    """((out, dropped), gradients of kernels, router and tokens), compiled for a mesh."""
    mesh = sharding.make_mesh(sizes)
    moves, still = parameters.split(params, jax.tree.map(lambda a: a.dtype == jnp.float32, params))

    @jit
    @partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def loss(moves, x):
        params = parameters.merge(moves, still)
        out, dropped = form(params, x, moe.route(params, x, model.moe, routes), model)
        weights = jax.random.normal(jax.random.key(3), out.shape)
        return (out.astype(jnp.float32) * weights).sum(), (out, dropped)

    with sharding.using(mesh, table):
        (_, found), grads = loss(moves, jax.device_put(x, sharding.NamedSharding(mesh, sharding.PartitionSpec())))
    return jax.device_get((found, grads))


ONE = config.Mesh(fsdp=1)


def check_same(model, params, x, sizes, table=sharding.TRAIN, routes=None, tolerance=1e-5):
    ours = values_and_gradients(expert_parallel.experts_parallel, model, params, x, sizes, table, routes)
    theirs = values_and_gradients(dense, model, params, x, ONE, routes=routes)
    assert ours[0][1] == 0, "dropped"

    def close(a, b):
        a, b = (np.asarray(v, np.float32) for v in (a, b))
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(np.abs(b).max(), 1e-3))

    jax.tree.map(close, ours, theirs)


@pytest.mark.parametrize(
    ("model", "sizes"),
    [
        (MODEL, config.Mesh(expert=4, fsdp=2)),
        (MODEL, config.Mesh(expert=8, fsdp=1)),
        (FREE, config.Mesh(expert=2, fsdp=1, tensor=2, context=2)),
        (FREE, config.Mesh(data=2, fsdp=2, expert=1, tensor=2)),
    ],
)
def test_values_and_gradients_are_those_of_every_expert_for_every_token(model, sizes):
    check_same(model, *inputs(), sizes)


def test_all_tokens_may_choose_the_experts_of_one_device():
    routes = jnp.broadcast_to(jnp.array([13, 12, 15, 14]), (ROWS, LENGTH, 4))
    check_same(MODEL, *inputs(), config.Mesh(expert=4, fsdp=2), routes=routes)


def test_rows_that_share_the_tensor_axis_with_the_channels_of_experts():
    """As those of latent attention do in decoding."""
    check_same(MODEL, *inputs(), config.Mesh(expert=2, tensor=4, fsdp=1), sharding.DECODE_LATENT)
