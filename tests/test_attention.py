"""Packed attention in blocks, by kernels and over devices gives the values and gradients of the scores held whole."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_models import GQA, MLA, collective_sizes, draw, jit

from r1jax import config, sharding
from r1jax.models import decoder
from r1jax.nn import attention, chunked_attention, context_parallel, fused_attention, kernels
from r1jax.nn.attention import Packed

SCALE = 0.3


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(chunked_attention, "BLOCK", 8)


def drawn(batch, length, heads=4, kv_heads=4, width=6, value_width=6):
    """Rows of several sequences with padding at the end, in every row other ones. The second and third sequence of a row share
    the first as their prompt."""
    rng = np.random.default_rng([batch, length])
    shapes = [(heads, width), (kv_heads, width), (kv_heads, value_width), (heads, value_width)]
    q, k, v, weights = (rng.standard_normal((batch, length, *shape)).astype(np.float32) for shape in shapes)
    segments = np.zeros((batch, length), np.int32)
    for row in segments:
        row[:] = np.searchsorted(np.sort(rng.choice(length, min(4, length), replace=False)), np.arange(length), side="right")
        row[row > 3] = 0
    return q, k, v, weights, segments, np.where(segments >= 2, 1, 0).astype(np.int32)


def run(attend, q, k, v, weights):
    """Values, and gradients in q, k and v of their sum by ``weights``."""

    @jit
    @partial(jax.value_and_grad, argnums=(0, 1, 2), has_aux=True)
    def total(q, k, v):
        out = attend(q, k, v)
        return (out.astype(jnp.float32) * weights).sum(), out

    (_, out), grads = total(q, k, v)
    return out, *grads


def by(kernel, segments, prefix, dtype="float32"):
    return partial(attention.attend, packed=Packed(segments, prefix), scale=SCALE, dtype=dtype, kernel=kernel)


def close(found, expected, tolerance=1e-5):
    for name, ours, wanted in zip(("out", "q", "k", "v"), found, expected, strict=True):
        ours, wanted = (np.asarray(x, np.float32) for x in (ours, wanted))
        np.testing.assert_allclose(ours, wanted, rtol=0, atol=tolerance * max(1, np.abs(wanted).max()), err_msg=name)


SHAPES = pytest.mark.parametrize(
    ("batch", "length", "heads", "kv_heads", "widths"),
    [
        (1, 1, 2, 2, (6, 6)),
        (2, 8, 2, 2, (6, 4)),  # one block
        (3, 37, 6, 2, (6, 6)),  # three queries to a key, a begun block
        (2, 64, 2, 1, (4, 8)),
    ],
)


@pytest.mark.parametrize("shared", [False, True])
@SHAPES
def test_blocks_change_no_value_and_no_gradient(batch, length, heads, kv_heads, widths, shared):
    q, k, v, weights, segments, prefix = drawn(batch, length, heads, kv_heads, *widths)
    prefix = prefix if shared else None
    close(*(run(by(kernel, segments, prefix), q, k, v, weights) for kernel in ("chunked", "reference")))


def test_who_sees_whom():
    """By hand: the output of a value of ones at one token is above 0 exactly at those who see it."""
    segments = np.array([[1, 1, 1, 2, 2, 3, 3, 3, 0, 0]], np.int32)
    prefix = np.array([[0, 0, 0, 1, 1, 0, 1, 1, 0, 0]], np.int32)
    wanted = {0: {0, 1, 2, 3, 4, 6, 7}, 2: {2, 3, 4, 6, 7}, 3: {3, 4}, 5: {5, 6, 7}, 7: {7}, 8: {8, 9}, 9: {9}}
    q = np.ones((1, 10, 1, 2), np.float32)
    for kernel in ("reference", "chunked"):
        for token, seers in wanted.items():
            out = by(kernel, segments, prefix)(q, q, np.eye(10, dtype=np.float32)[token].reshape(1, 10, 1, 1))
            assert set(np.flatnonzero(out[0, :, 0, 0])) == seers, (kernel, token)


def test_blocks_of_which_nothing_is_seen_are_not_visited():
    """Three sequences of two blocks each, the third with the first as its prompt, and two blocks of padding."""
    segments = jnp.repeat(jnp.array([1, 2, 3, 0]), 16)[None]
    index = jnp.arange(64)
    prefix = jnp.where(segments == 3, 1, 0)
    for given, in_third in ((None, [1, 2]), (prefix, [3, 4])):
        order, count = chunked_attention._schedule(chunked_attention.Seen(segments, segments, given, index))
        assert count.tolist() == [1, 2, 1, 2, *in_third, 1, 2]
        assert order[3, :2].tolist() == [2, 3]
    assert order[5, :4].tolist() == [0, 1, 4, 5]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_activations_in_bfloat16(dtype):
    q, k, v, weights, segments, prefix = drawn(2, 37, 4, 2)
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in (q, k, v))
    exact = run(by("reference", segments, prefix), *(x.astype(jnp.float32) for x in (q, k, v)), weights)
    found = run(by("chunked", segments, prefix, dtype), q, k, v, weights)
    assert all(x.dtype == jnp.bfloat16 for x in found)
    close(found, exact, 2**-6)


@pytest.mark.parametrize("kernel", ["reference", "chunked"])
@pytest.mark.parametrize("dtype", ["bfloat16", "fp8"])
def test_bfloat16_products_of_float32_activations(kernel, dtype):
    """Values and gradients are those of operands rounded to bfloat16, and float32."""
    q, k, v, weights, segments, prefix = drawn(2, 37, 4, 2)
    found = run(by(kernel, segments, prefix, dtype), q, k, v, weights)
    rounded = (jnp.asarray(x, jnp.bfloat16) for x in (q, k, v))
    assert all(x.dtype == jnp.float32 for x in found)
    close(found, run(by(kernel, segments, prefix, "bfloat16"), *rounded, weights), 2**-7)
    close(found, run(by("reference", segments, prefix), q, k, v, weights), 2**-6)
    assert np.abs(found[0] - run(by("reference", segments, prefix), q, k, v, weights)[0]).max() > 2**-12


def test_rows_need_memory_in_proportion_to_their_length(monkeypatch):
    def temp(length):
        shape = (1, length, 2, 4)
        ids = jnp.ones((1, length), jnp.int32)
        x = jax.ShapeDtypeStruct(shape, jnp.float32)
        grad = jax.grad(lambda q, k, v: by("chunked", ids, ids)(q, k, v).sum(), (0, 1, 2))
        return jax.jit(grad).lower(x, x, x).compile().memory_analysis().temp_size_in_bytes

    monkeypatch.setattr(chunked_attention, "BLOCK", 64)
    small, large = temp(1024), temp(4096)
    assert large < 5 * small and large < 4 * 4096**2 / 4, (small, large)


@pytest.mark.parametrize(
    ("mesh", "kv_heads"),
    [(config.Mesh(data=2, fsdp=1, tensor=4), 4), (config.Mesh(fsdp=1, tensor=4, context=2), 2), (config.Mesh(fsdp=8), 1)],
)
def test_over_eight_devices(mesh, kv_heads):
    """Rows, heads and the tokens of a row apart; with fewer heads of keys than devices that split heads."""
    q, k, v, weights, segments, prefix = drawn(8, 32, 4, kv_heads)
    expected = run(by("reference", segments, prefix), q, k, v, weights)
    with sharding.using(sharding.make_mesh(mesh), sharding.TRAIN):
        close(run(by("chunked", segments, prefix), q, k, v, weights), expected)


@pytest.mark.parametrize("model", [GQA, MLA], ids=["gqa", "mla"])
def test_a_model_by_blocks_has_the_same_gradients(model):
    model = dataclasses.replace(model, segments=(config.Segment("dense", 2),), mtp_depth=0, moe=None)
    params = draw(model)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, model.vocab_size, (2, 20)).astype(np.int32)
    *_, segments, prefix = drawn(2, 20)
    positions = np.broadcast_to(np.arange(20, dtype=np.int32), tokens.shape)
    weights = rng.standard_normal((2, 20, model.d_model)).astype(np.float32)

    def gradient(model):
        def total(params):
            hidden, _, _ = decoder.forward(params, tokens, positions, segments, prefix=prefix, model=model)
            return (hidden * weights).sum()

        return jit(jax.value_and_grad(total))(params)

    kept = gradient(model)
    chunked = gradient(dataclasses.replace(model, attention_kernel="chunked", remat="attention"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * max(1, np.abs(b).max())), chunked, kept)


@pytest.mark.parametrize("shared", [False, True])
@SHAPES
def test_tokamax(batch, length, heads, kv_heads, widths, shared):
    """On a CPU this is its plain form behind the same call; the kernels are for GPUs."""
    pytest.importorskip("tokamax")
    q, k, v, weights, segments, prefix = drawn(batch, length, heads, kv_heads, *widths)
    prefix = prefix if shared else None
    close(*(run(by(kernel, segments, prefix), q, k, v, weights) for kernel in ("fused", "reference")))


def test_tokamax_over_eight_devices():
    pytest.importorskip("tokamax")
    q, k, v, weights, segments, prefix = drawn(4, 32, 4, 2)
    expected = run(by("reference", segments, prefix), q, k, v, weights)
    with sharding.using(sharding.make_mesh(config.Mesh(data=2, fsdp=1, tensor=2, context=2)), sharding.TRAIN):
        close(run(by("fused", segments, prefix), q, k, v, weights), expected)


@pytest.mark.slow
def test_splash_attention():
    """The TPU's kernel, interpreted: a begun block, shared heads, values of another width."""
    q, k, v, weights, segments, _ = drawn(2, 150, 4, 2, 8, 6)
    splash = partial(fused_attention.splash, segments=segments, scale=SCALE, interpret=True)
    close(run(splash, q, k, v, weights), run(by("reference", segments, None), q, k, v, weights))


def test_a_kernel_that_is_not_there_is_refused(monkeypatch):
    q, k, v, _, segments, prefix = drawn(1, 8)
    monkeypatch.setattr(kernels, "tokamax", lambda: None)
    with pytest.raises(ValueError, match="'fused', but tokamax is not installed.*r1jax.cuda.*'chunked'"):
        by("fused", segments, prefix)(q, k, v)
    monkeypatch.setattr(fused_attention, "platform", lambda: "tpu")
    with pytest.raises(ValueError, match="share_prompts"):
        by("fused", segments, prefix, "bfloat16")(q, k, v)
    with pytest.raises(ValueError, match="float32"):
        by("fused", segments, None)(q, k, v)


def test_each_device_of_a_split_row_takes_early_and_late_queries():
    """Of four parts of two tokens the first device gets 0 and 3, and the second 1 and 2; what they say goes back in order."""
    axes, ones = ("batch", "sequence", "heads", None), jnp.ones((2, 8), jnp.int32)
    with sharding.using(sharding.make_mesh(config.Mesh(fsdp=2, tensor=2, context=2)), sharding.TRAIN):
        send = partial(context_parallel._send, axis=0)
        moved = sharding.on_each_device(send, (("sequence",),), ("sequence",))(jnp.arange(8)).reshape(2, 4)
        assert [set(part) for part in moved.tolist()] == [{0, 1, 6, 7}, {2, 3, 4, 5}]

        def places(q, k, v, segments, key_segments, prefix, index):
            return jnp.broadcast_to(index[None, :, None, None].astype(q.dtype), q.shape)

        q = jnp.zeros((2, 8, 2, 1))
        out = context_parallel.attend(places, q, (q, q), (axes, axes), lambda k, v: (k, v), ones, None)
    np.testing.assert_array_equal(out[0, :, 0, 0], np.arange(8))


def test_a_latent_is_gathered_and_not_the_keys_that_it_makes():
    """Values and gradients of a model whose rows lie over four devices, and no collective of the size of all heads' keys."""
    model = dataclasses.replace(
        MLA, segments=(config.Segment("dense", 1),), mtp_depth=0, moe=None, attention_kernel="chunked",
        attention=dataclasses.replace(MLA.attention, n_heads=8),
    )  # fmt: skip
    params, rng = draw(model), np.random.default_rng(0)
    tokens = rng.integers(0, model.vocab_size, (4, 32)).astype(np.int32)
    *_, segments, prefix = drawn(4, 32)
    positions = np.broadcast_to(np.arange(32, dtype=np.int32), tokens.shape)
    weights = rng.standard_normal((4, 32, model.d_model)).astype(np.float32)

    def gradient():  # anew, for jax remembers what it traced for one device
        def total(params):
            hidden, _, _ = decoder.forward(params, tokens, positions, segments, prefix=prefix, model=model)
            return (hidden * weights).sum()

        return jax.value_and_grad(total)

    expected = jit(gradient())(params)
    mesh = sharding.make_mesh(config.Mesh(data=2, fsdp=1, context=4))
    layout = sharding.param_shardings(decoder.specs(model), mesh, sharding.TRAIN)
    with sharding.using(mesh, sharding.TRAIN):
        run = jit(gradient(), in_shardings=(layout,)).lower(params).compile()
    a = model.attention
    keys = tokens.size // 2 * a.n_heads * a.v_dim  # of the rows of a device
    sizes = collective_sizes(run.as_text(), "all-gather") + collective_sizes(run.as_text(), "all-reduce")
    assert sizes and max(sizes) < keys
    found = jax.device_get(run(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(1, np.abs(b).max())), found, expected)
