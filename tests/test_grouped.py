"""Experts grouped by choice against every expert for every token, in the shapes and routings that break sorting."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_models import GQA, draw, jit

from r1jax import config, sharding
from r1jax.models import decoder
from r1jax.nn import expert_parallel, grouped, moe
from r1jax.plan import memory
from r1jax.train.update import Trainer

WIDE = config.Model(
    d_model=12, segments=(config.Segment("moe"),), moe=config.MoE(n_experts=16, top_k=3, d_ff=20, n_shared=0, bias=False)
)


def inputs(model, batch, length, seed=0):
    rng = np.random.default_rng(seed)
    e, d, f = model.moe.n_experts, model.d_model, model.moe.d_ff
    shapes = {"router": (d, e), "gate": (e, d, f), "up": (e, d, f), "down": (e, f, d)}
    params = {name: jnp.asarray(rng.standard_normal(shape) / 3, jnp.float32) for name, shape in shapes.items()}
    return params, jnp.asarray(rng.standard_normal((batch, length, d)), model.dtype)


def run(form, params, x, model, routes=None):
    """Values, and gradients for kernels, tokens and, through the gates, the router."""

    @jit
    @partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def loss(params, x):
        out = form(params, x, moe.route(params, x, model.moe, routes), model)
        weights = jax.random.normal(jax.random.key(3), out.shape)
        return (out.astype(jnp.float32) * weights).sum(), out

    (_, out), grads = loss(params, x)
    return out, grads


def check_same(model, params, x, routes=None, tolerance=1e-5):
    """Within a share of each array's largest entry, which rounding in another order stays below."""

    def close(ours, wanted):
        ours, wanted = (np.asarray(a, np.float32) for a in (ours, wanted))
        np.testing.assert_allclose(ours, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())

    jax.tree.map(close, *(run(form, params, x, model, routes) for form in (moe.experts_grouped, moe.experts_dense)))


@pytest.fixture(params=["blocks", "ragged"])
def form(request, monkeypatch):
    """Our own blocks, and the product that accelerators have kernels for, which runs on a CPU too."""
    if request.param == "ragged":
        monkeypatch.setattr(grouped, "platform", lambda: "gpu")


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (3, 5), (2, 150)])
def test_grouping_changes_no_value_and_no_gradient(batch, length):
    check_same(WIDE, *inputs(WIDE, batch, length))


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("chosen", [[0, 1, 2], [15, 0, 7]])
def test_all_tokens_on_few_experts(chosen):
    """Many blocks of one expert, and 13 experts without a token, whose kernels get a gradient of exactly 0."""
    params, x = inputs(WIDE, 2, 70)
    routes = jnp.broadcast_to(jnp.array(chosen), (2, 70, 3))
    check_same(WIDE, params, x, routes)
    _, (grads, _) = run(moe.experts_grouped, params, x, WIDE, routes)
    used = {name: np.abs(grads[name]).max((1, 2)) > 0 for name in ("gate", "up", "down")}
    for name, mask in used.items():
        assert set(np.flatnonzero(mask)) == set(chosen), name


@pytest.mark.usefixtures("form")
def test_one_expert_fills_whole_blocks_and_a_row():
    """Groups that end where a block does, one row after it and one before it."""
    model = dataclasses.replace(WIDE, moe=dataclasses.replace(WIDE.moe, top_k=1, n_experts=4, renormalize=False))
    params, x = inputs(model, 1, 64)
    b = grouped.block_size(64, 4)
    for sizes in ([b, 2 * b + 1, 0, 64 - 3 * b - 1], [b - 1, 0, 2 * b, 64 - 3 * b + 1], [0, 0, 0, 64]):
        routes = jnp.asarray(np.random.default_rng(1).permutation(np.repeat(np.arange(4), sizes)).reshape(1, 64, 1))
        check_same(model, params, x, routes)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_operands_in_bfloat16_are_summed_in_float32(dtype):
    """The same rounded operands as the dense form has. A sum in bfloat16 would be off by more than 1 in 300."""
    model = dataclasses.replace(WIDE, d_model=256, matmul_dtype="bfloat16", dtype=dtype)
    params, x = inputs(model, 2, 40)
    params = jax.tree.map(lambda a: a / 8, params)
    rounded_at_most_once_more = 2e-3 if dtype == "float32" else 1e-2
    check_same(model, params, x, tolerance=rounded_at_most_once_more)
    held = {name: a if name == "router" else a.astype(jnp.bfloat16) for name, a in params.items()}  # as the sampler does
    routing = moe.route(params, x, model.moe)
    ours, theirs = (jit(moe.experts_grouped, static_argnames="model")(p, x, routing, model=model) for p in (params, held))
    np.testing.assert_array_equal(ours, theirs)


def test_a_token_s_output_does_not_depend_on_the_others():
    """Bit for bit, for a sampler's answers must not depend on what shares the batch."""
    params, x = inputs(WIDE, 2, 150)
    other = x.at[1].set(-x[1])

    @jit
    def out(x):
        return moe.experts_grouped(params, x, moe.route(params, x, WIDE.moe), WIDE)

    np.testing.assert_array_equal(out(x)[0], out(other)[0])


def test_inside_scanned_layers_with_remat_and_on_a_mesh(monkeypatch):
    """Two scanned layers on one device give the gradients of eight devices, between which their tokens travel."""
    model = dataclasses.replace(GQA, segments=(config.Segment("moe", 2),), remat="layer")
    params = draw(model)
    tokens = np.random.default_rng(1).integers(0, model.vocab_size, (8, 6)).astype(np.int32)
    positions = np.broadcast_to(np.arange(6, dtype=np.int32), tokens.shape)
    traced = []
    for room, name in ((moe, "experts_dense"), (moe, "experts_grouped"), (expert_parallel, "experts_parallel")):
        form = getattr(room, name)
        monkeypatch.setattr(room, name, lambda *a, form=form, name=name: traced.append(name) or form(*a))

    def gradient(sizes):
        mesh = sharding.make_mesh(sizes)
        layout = sharding.param_shardings(decoder.specs(model), mesh, sharding.TRAIN)

        @jit
        def grad(params):
            weigh = jax.random.normal(jax.random.key(0), (*tokens.shape, model.d_model))
            return jax.grad(
                lambda p: (decoder.forward(p, tokens, positions, np.ones_like(tokens), model=model)[0] * weigh).sum()
            )(params)

        with sharding.using(mesh, sharding.TRAIN):
            return jax.device_get(grad(jax.device_put(params, layout)))

    alone = gradient(config.Mesh(fsdp=1))
    assert set(traced) == {"experts_grouped"}
    traced.clear()
    shared = gradient(config.Mesh(expert=4, tensor=2, fsdp=1))
    assert set(traced) == {"experts_parallel"}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * np.abs(b).max() + 1e-6), alone, shared)


def test_the_memory_plan_counts_the_form_that_runs():
    model = config.Model(
        vocab_size=256, d_model=64, segments=(config.Segment("moe", 2),), moe=config.MoE(n_experts=16, top_k=2, d_ff=64)
    )
    stage = config.SFT(model=model, micro_batch=8, sequence_length=128)
    alone, split = (sharding.make_mesh(config.Mesh(fsdp=n)) for n in (1, 8))
    trainer = Trainer(stage, model, alone)
    batch = memory.micro_batch(stage, (2, stage.micro_batch, stage.sequence_length))
    scalars = (jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((), jnp.float32))
    with sharding.using(alone, sharding.TRAIN):
        report = trainer._update.lower(trainer.abstract(), batch, *scalars).compile().memory_analysis()
    found = memory.table(stage, model, alone)
    assert found.gradients + found.activations == pytest.approx(report.temp_size_in_bytes, rel=0.25)
    # On several devices each sorts the choices of its own tokens.
    assert memory.table(stage, model, split).activations == pytest.approx(found.activations / 8, rel=0.05)
