"""Products in FP8 against numpy and ml_dtypes tile by tile, and their gradients against float32's."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from random_models import draw, jit

from r1jax import config, sharding
from r1jax import params as parameters
from r1jax.bench.fp8_loss import products
from r1jax.convert import fp8 as released
from r1jax.models import decoder
from r1jax.models.logprobs import token_logprobs
from r1jax.nn import fp8, moe
from r1jax.nn.matmul import project
from r1jax.nn.mlp import mlp
from r1jax.params import ParamSpec

E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def relative(ours, wanted):
    ours, wanted = (np.asarray(a, np.float64) for a in (ours, wanted))
    return np.linalg.norm(ours - wanted) / np.linalg.norm(wanted)


# -- An independent reference: what each tile becomes, multiplied out


def rounded(x, floor=1e-4):
    """x as its FP8 values and one factor say, in float64."""
    scale = np.float32(max(np.abs(x).max(), floor or 1e-30)) * np.float32(1 / 448)
    return (x / scale).astype(E4M3).astype(np.float64) * np.float64(scale)


def along(x, axis, floor=1e-4):
    """In tiles of 1 x 128 along ``axis``."""
    x = np.moveaxis(x, axis, -1)
    out = np.empty(x.shape)
    for row in np.ndindex(x.shape[:-1]):
        for start in range(0, x.shape[-1], 128):
            out[row][start : start + 128] = rounded(x[row][start : start + 128], floor)
    return np.moveaxis(out, -1, axis)


def in_blocks(w):
    out = np.empty(w.shape)
    for i in range(0, w.shape[0], 128):
        for j in range(0, w.shape[1], 128):
            out[i : i + 128, j : j + 128] = rounded(w[i : i + 128, j : j + 128])
    return out


def three_products(x, w, g):
    """(y, dx, dw) of x[B, T, K], w[K, N], g[B, T, N], every operand tiled along the axis that is summed over."""
    y = along(x, 2) @ in_blocks(w)
    dx = along(g, 2, 0) @ in_blocks(w).T
    return y, dx, np.einsum("btk,btn->kn", along(x, 1), along(g, 1, 0))


def value_and_pull(f, x, w, g):
    """(f(x, w), (gradient of x, of w)) for a cotangent g."""

    @jit
    def run(x, w, g):
        y, pull = jax.vjp(f, x, w)
        return y, pull(g)

    return run(*map(jnp.asarray, (x, w, g)))


def uneven(*shape):
    """Numbers whose tiles are of many sizes, and one tile of zeros."""
    x = normal(*shape) * np.exp(2 * normal(*shape))
    x[0, ..., :128] = 0
    return x


# -- Tests


def test_tiles_and_blocks_are_the_reference_s_bit_for_bit():
    x = uneven(3, 5, 300)
    found = jit(fp8.tiles)(x)
    assert found.values.shape == (3, 3, 5, 128)  # the last tile has 44 numbers and is filled up
    values = np.asarray(found.values, np.float64) * np.asarray(found.scales, np.float64)[..., None]
    np.testing.assert_array_equal(np.moveaxis(values, 0, 2).reshape(3, 5, 384)[..., :300], along(x, 2))
    w = normal(2, 300, 130)
    blocks = jit(fp8.blocks)(w)
    values, scales = released.quantize(w)  # as checkpoints are written
    np.testing.assert_array_equal(np.asarray(blocks.values), values)
    np.testing.assert_allclose(blocks.scales, scales, rtol=2e-7)


@pytest.mark.parametrize(("length", "inputs", "outputs"), [(256, (256,), (128,)), (130, (200,), (3, 50)), (7, (3, 60), (130,))])
def test_the_three_products_are_the_reference_s(length, inputs, outputs):
    """Whole tiles and short ones, kernels of two and three axes. Sums of float32 are all that may differ."""
    x, w, g = uneven(2, length, *inputs), normal(*inputs, *outputs), uneven(2, length, *outputs)
    y, gradients = value_and_pull(partial(project, dtype="fp8", contract=len(inputs)), x, w, g)
    flat = int(np.prod(inputs))
    wanted = three_products(x.reshape(2, length, -1), w.reshape(flat, -1), g.reshape(2, length, -1))
    for ours, theirs in zip((y, *gradients), wanted, strict=True):
        assert relative(np.reshape(ours, theirs.shape), theirs) < 1e-6


@pytest.mark.parametrize("size", [1.0, 1e-9])
def test_a_product_and_its_gradients_are_off_by_rounding_alone(size):
    """Rounding to 4 bits is off by 2.6 %, and a product of two such by 3.7 %, however small the gradient is: what a wrong
    derivative of the rounding gives is far outside, as is a gradient below a floor."""
    x, w, g = normal(4, 160, 256), normal(256, 192) / 16, np.float32(size) * normal(4, 160, 192)
    ours, exact = (jax.tree.leaves(value_and_pull(partial(project, dtype=dtype), x, w, g)) for dtype in ("fp8", "float32"))
    found = [relative(a, b) for a, b in zip(ours, exact, strict=True)]
    assert all(0.03 < error < 0.045 for error in found), found


def test_tiles_on_many_devices_give_the_same_sum():
    run = jit(lambda a, b, ways: fp8.product(fp8.tiles(a), fp8.tiles(b), ways), static_argnums=2)
    a, b = normal(5, 1024), normal(7, 1024)
    np.testing.assert_allclose(run(a, b, 4), run(a, b, 1), rtol=1e-5, atol=1e-4)


MODEL = config.Model(
    vocab_size=320,
    d_model=128,
    d_ff=256,
    segments=(config.Segment("dense", 1), config.Segment("moe", 1)),
    attention=config.MLA(n_heads=2, q_rank=128, kv_rank=128, nope_dim=64, rope_dim=32, v_dim=64),
    moe=config.MoE(n_experts=4, top_k=2, d_ff=128),
    mtp_depth=1,
)
TOKENS = RNG.integers(0, 320, (8, 32)).astype(np.int32)


def loss(params, model, routes=None):
    positions = jnp.broadcast_to(jnp.arange(32), TOKENS.shape)
    ones = jnp.ones_like(positions)
    hidden, aux, _ = decoder.forward(params, TOKENS, positions, ones, model=model, routes=routes)
    ahead, _ = decoder.mtp(params, hidden, TOKENS, positions, ones, model=model)
    kernel = decoder.head_kernel(params)
    values = [token_logprobs(h, kernel, np.roll(TOKENS, -1, 1), dtype=model.head_dtype)[0] for h in (hidden, ahead)]
    return -values[0].mean() - values[1].mean(), aux.routes


def test_of_a_model_all_linears_are_in_fp8_and_nothing_else():
    model = dataclasses.replace(MODEL, matmul_dtype="fp8", segments=MODEL.segments[:1], dtype="bfloat16")
    traced = jax.make_jaxpr(jax.grad(lambda p: loss(p, model)[0]))(parameters.abstract(decoder.specs(model)))
    in_fp8 = [flops for flops, dtype in products(traced.jaxpr, 1) if dtype == jnp.float8_e4m3fn]
    rows, a = TOKENS.size, model.attention
    qk, latent = a.nope_dim + a.rope_dim, a.kv_rank
    attention = 128 * a.q_rank + a.q_rank * a.n_heads * qk + 128 * (latent + a.rope_dim)
    attention += latent * a.n_heads * (a.nope_dim + a.v_dim) + a.n_heads * a.v_dim * 128
    # The products with the 192 outputs of q_b and with kv_a's 160 are filled up to 256 in their input's gradient.
    filled = a.q_rank * 64 + 128 * 96
    dense = 3 * 128 * model.d_ff
    assert sum(in_fp8) == 2 * rows * 2 * (3 * (attention + dense) + filled)  # the trunk's layer and the MTP module's
    forward = jax.make_jaxpr(lambda p: loss(p, model)[0])(parameters.abstract(decoder.specs(model)))
    assert {dtype.name for _, dtype in products(forward.jaxpr, 1)} == {"float8_e4m3fn", "bfloat16"}


def test_the_gradient_of_a_model_is_that_of_float32_but_for_rounding():
    """Of most parameters it has gone through several products, and is off by more than the 3.7 % of one. Routes are replayed:
    a choice between two experts may flip."""
    params = draw(MODEL, kernel=0.04)
    grad = jax.value_and_grad(loss, has_aux=True)
    (exact, routes), wanted = jit(partial(grad, model=MODEL))(params)
    (found, _), ours = jit(partial(grad, model=dataclasses.replace(MODEL, matmul_dtype="fp8")))(params, routes=routes)
    assert abs(found / exact - 1) < 0.001
    flat = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]) for tree in (ours, wanted)]
    assert relative(*flat) < 0.05
    errors = [relative(a, b) for a, b in zip(*map(jax.tree.leaves, (ours, wanted)), strict=True) if np.any(b)]
    assert np.median(errors) < 0.08 and max(errors) < 0.15, errors


WIDE = config.Model(
    d_model=128, segments=(config.Segment("moe"),), moe=config.MoE(n_experts=8, top_k=2, d_ff=160, n_shared=0, bias=False)
)


def test_experts_in_fp8_are_the_same_in_both_forms():
    """Forward they round the same numbers. The kernels' gradients have other tiles of tokens, so these meet float32's."""
    shapes = {"router": (128, 8), "gate": (8, 128, 160), "up": (8, 128, 160), "down": (8, 160, 128)}
    params = {name: jnp.asarray(normal(*shape) / 8) for name, shape in shapes.items()}
    x, weights = jnp.asarray(normal(2, 70, 128)), normal(2, 70, 128)

    def run(form, dtype):
        model = dataclasses.replace(WIDE, matmul_dtype=dtype)

        def total(params, x):
            out = form(params, x, moe.route(params, x, model.moe), model)
            return (out * weights).sum(), out

        (_, out), grads = jit(jax.value_and_grad(total, (0, 1), has_aux=True))(params, x)
        return out, grads

    dense, grouped = (run(form, "fp8") for form in (moe.experts_dense, moe.experts_grouped))
    exact = run(moe.experts_grouped, "float32")
    assert relative(dense[0], grouped[0]) < 1e-3  # a number on the edge between two may be rounded to either
    for found in (dense, grouped):
        errors = jax.tree.map(relative, found, exact)
        assert all(0.03 < error < 0.1 for error in jax.tree.leaves(errors)), errors


def test_on_a_mesh_as_on_one_device():
    """Tiles that lie on several devices, along inputs, outputs and tokens."""
    axes = {"gate": ("embed", "mlp"), "up": ("embed", "mlp"), "down": ("mlp", "embed"), "o": ("heads", None, "embed")}
    shapes = {"gate": (128, 512), "up": (128, 512), "down": (512, 128), "o": (4, 64, 128)}
    specs = {name: ParamSpec(shapes[name], axes[name]) for name in axes}
    params = {name: jnp.asarray(normal(*shape) / 12) for name, shape in shapes.items()}
    x, weights, model = jnp.asarray(normal(8, 24, 4, 64)), normal(8, 24, 128), dataclasses.replace(MODEL, matmul_dtype="fp8")

    def total(params, x):
        y = project(sharding.constrain(x, "batch", "sequence", "heads", None), params["o"], "fp8", contract=2)
        return (mlp(params, y, model) * weights).sum()

    def gradient(sizes):
        mesh = sharding.make_mesh(sizes)
        with sharding.using(mesh, sharding.TRAIN):
            placed = jax.device_put(params, sharding.param_shardings(specs, mesh, sharding.TRAIN))
            rows = sharding.put(np.asarray(x), mesh, sharding.TRAIN, "batch", "sequence", "heads", None)
            return jax.device_get(jit(jax.value_and_grad(total, (0, 1)))(placed, rows))

    alone, shared = gradient(config.Mesh(fsdp=1)), gradient(config.Mesh(fsdp=2, tensor=4))
    for ours, wanted in zip(*map(jax.tree.leaves, (shared, alone)), strict=True):
        assert relative(ours, wanted) < 0.01  # a number on the edge between two may be rounded to either
