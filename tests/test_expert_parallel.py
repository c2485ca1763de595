"""Experts over eight devices give what every expert for every token gives on one, and no device gathers all of either."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_models import collective_sizes, draw, jit

from r1jax import config, lora, sharding
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
    moves = {name: a for name, a in params.items() if not quantized.is_quantized(a)}

    @jit
    @partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def loss(moves, x):
        whole = params | moves
        out, dropped = form(whole, x, moe.route(whole, x, model.moe, routes), model)
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


@pytest.mark.parametrize("small", [0, 10_000], ids=["one after another", "at once"])
def test_all_tokens_may_choose_the_experts_of_one_device(monkeypatch, small):
    monkeypatch.setattr(expert_parallel, "SMALL", small)
    routes = jnp.broadcast_to(jnp.array([13, 12, 15, 14]), (ROWS, LENGTH, 4))
    check_same(MODEL, *inputs(), config.Mesh(expert=4, fsdp=2), routes=routes)


def test_the_ragged_form_sends_what_the_dense_one_does(monkeypatch):
    """``ragged_all_to_all`` by its documentation, as a CPU has none; and the accelerators' program is made with it."""

    def ragged(operand, output, input_offsets, send_sizes, output_offsets, recv_sizes, *, axis_name):
        me, place = jax.lax.axis_index(axis_name), jnp.arange(len(output))
        sent = [jax.lax.all_gather(a, axis_name) for a in (operand, input_offsets, send_sizes, output_offsets)]
        for rows, begin, size, to in zip(*sent, strict=True):
            here = (place >= to[me]) & (place < to[me] + size[me])
            taken = rows[jnp.clip(place - to[me] + begin[me], 0, len(rows) - 1)]
            output = jnp.where(here.reshape(-1, *(1,) * (output.ndim - 1)), taken, output)
        total = jax.lax.all_to_all(send_sizes, axis_name, 0, 0, tiled=True)
        return jnp.where((recv_sizes == total).all(), output, jnp.nan if output.dtype == jnp.float32 else -1)

    params, x = inputs()
    sizes = config.Mesh(expert=4, data=2, fsdp=1)
    monkeypatch.setattr(expert_parallel, "platform", lambda: "gpu")
    with monkeypatch.context() as patch:
        patch.setattr(jax.lax, "ragged_all_to_all", ragged)
        check_same(MODEL, params, x, sizes)

    def layer(params, x):
        return expert_parallel.experts_parallel(params, x, moe.route(params, x, MOE), MODEL)[0].sum()

    with sharding.using(sharding.make_mesh(sizes), sharding.TRAIN):
        program = jax.jit(jax.grad(layer)).trace(params, x).lower(lowering_platforms=("cuda",)).as_text()
    assert program.count("ragged_all_to_all") > 4 and "stablehlo.all_to_all" in program  # of rows; sizes go the plain way


def test_rows_that_share_the_tensor_axis_with_the_channels_of_experts():
    """As those of latent attention do in decoding."""
    check_same(MODEL, *inputs(), config.Mesh(expert=2, tensor=4, fsdp=1), sharding.DECODE_LATENT)


def test_adapted_kernels():
    params, x = inputs()
    adapted = lora.adapt(SPECS, config.LoRA(rank=3, alpha=6.0, targets=("gate", "up", "down")))
    rng = np.random.default_rng(8)

    def filled(kernel, base):
        if not lora.is_adapted(kernel):
            return base
        a, b = (jnp.asarray(rng.standard_normal(s.shape) / 3, jnp.float32) for s in (kernel.a, kernel.b))
        return kernel.replace(base=base, a=a, b=b)

    params |= {name: filled(adapted[name], params[name]) for name in SPECS}
    check_same(MODEL, params, x, config.Mesh(expert=2, fsdp=2, tensor=2))


@pytest.mark.parametrize("form", ["int8", "fp8"])
def test_kernels_in_8_bits(form):
    params, x = inputs()
    specs = {name: quantized.quantized_spec(SPECS[name], form, 1) for name in ("gate", "up", "down")}
    params |= quantized.read({name: params[name] for name in specs}, specs)
    check_same(MODEL, params, x, config.Mesh(expert=4, data=2, fsdp=1), sharding.DECODE)


def test_what_finds_no_room_is_dropped_and_counted():
    """All tokens choose the experts of the last of four devices. Each device may send 6 of its 12 there, and of the 96 choices
    that come to a device half find room: those of the two experts that are sorted first."""
    params, x = inputs()
    routes = jnp.broadcast_to(jnp.array([13, 12, 15, 14]), (ROWS, LENGTH, 4))
    model = dataclasses.replace(MODEL, capacity_factor=1.0)
    assert expert_parallel.rooms(model, 12, 4) == (6, 48)
    (out, dropped), _ = values_and_gradients(
        expert_parallel.experts_parallel, model, params, x, config.Mesh(expert=4, fsdp=2), routes=routes
    )
    assert dropped == 2 * (4 * 12 * 4 - 48)
    routing = moe.route(params, x, MODEL.moe, routes)
    first = routing._replace(experts=routing.experts[..., :2], gates=routing.gates[..., :2])
    wanted = np.array(moe.experts_dense(params, x, first, MODEL)).reshape(8, 12, -1)
    wanted[:, 6:] = 0
    np.testing.assert_allclose(out.reshape(8, 12, -1), wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_a_token_goes_to_as_many_devices_as_its_groups_lie_on():
    v3 = config.MoE(n_experts=256, top_k=8, d_ff=8, n_groups=8, top_groups=4)
    assert [expert_parallel.most_devices(v3, n) for n in (1, 2, 4, 8, 16, 32, 256)] == [1, 2, 4, 4, 8, 8, 8]
    free = dataclasses.replace(v3, n_groups=1, top_groups=1)
    assert [expert_parallel.most_devices(free, n) for n in (1, 4, 8, 32)] == [1, 4, 8, 8]


# -- Inside the decoder

LAYERS = dataclasses.replace(
    MODEL, vocab_size=40, attention=config.GQA(n_heads=4, n_kv_heads=2, head_dim=8), segments=(config.Segment("moe", 2),),
    moe=dataclasses.replace(MOE, n_shared=1), remat="layer",
)  # fmt: skip
TOKENS = np.random.default_rng(1).integers(0, 40, (16, 8)).astype(np.int32)
SEGMENTS = np.repeat([[1, 1, 1, 2, 2, 2, 2, 0]], 16, 0).astype(np.int32)
POSITIONS = np.repeat([[0, 1, 2, 0, 1, 2, 3, 0]], 16, 0).astype(np.int32)


def compiled(model, sizes):
    """The gradient of the trunk, and what the layers say, compiled for a mesh; and its arguments."""
    mesh = sharding.make_mesh(sizes)
    layout = sharding.param_shardings(decoder.specs(model), mesh, sharding.TRAIN)
    routes = (jnp.asarray(np.random.default_rng(2).integers(0, 2, (2, 16, 8, 1)) * 4 + np.arange(4), jnp.int32),)

    def loss(params, tokens, positions, segments, routes):
        hidden, aux, _ = decoder.forward(params, tokens, positions, segments, model=model, routes=routes)
        return (hidden * jax.random.normal(jax.random.key(0), hidden.shape)).sum() + aux.balance, aux

    rows = [sharding.put(a, mesh, sharding.TRAIN, "batch", "sequence") for a in (TOKENS, POSITIONS, SEGMENTS)]
    args = (jax.device_put(draw(model), layout), *rows, routes)
    with sharding.using(mesh, sharding.TRAIN):
        return jit(jax.value_and_grad(loss, has_aux=True), out_shardings=(None, layout)).lower(*args).compile(), args


@pytest.fixture(scope="module")
def trunk():
    return compiled(LAYERS, config.Mesh(expert=4, fsdp=2))


def test_two_halves_give_the_values_and_gradients_of_the_whole(trunk):
    run, args = trunk
    both, _ = compiled(dataclasses.replace(LAYERS, overlap=2), config.Mesh(expert=4, fsdp=2))
    text = both.as_text()
    assert len(collective_sizes(text, "all-to-all")) > len(collective_sizes(run.as_text(), "all-to-all"))

    def close(a, b):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * max(np.abs(b).max(), 1))

    jax.tree.map(close, jax.device_get(both(*args)), jax.device_get(run(*args)))


def test_no_device_gathers_all_tokens_or_all_experts(trunk):
    text = trunk[0].as_text()
    tokens, kernels = TOKENS.size * LAYERS.d_model, LAYERS.moe.n_experts * LAYERS.d_model * LAYERS.moe.d_ff
    assert collective_sizes(text, "all-to-all")
    for kind in ("all-gather", "all-reduce", "collective-permute"):
        assert all(size < min(tokens, kernels) for size in collective_sizes(text, kind)), (kind, collective_sizes(text, kind))
