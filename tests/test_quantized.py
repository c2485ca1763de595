"""Kernels in 8 bits: what they hold, what products make of them, and a sampler that holds them."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_models import GQA, MLA, draw, jit

from r1jax import config, sharding
from r1jax.convert import fp8 as released
from r1jax.models import decoder
from r1jax.models.logprobs import token_logprobs
from r1jax.nn import grouped, quantized
from r1jax.nn.matmul import project
from r1jax.params import ParamSpec
from r1jax.plan import memory
from r1jax.rollout import Sampler

RNG = np.random.default_rng(0)
FORMS = ("int8", "fp8")


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def hold(kernel, form, contract=1, axes=None):
    spec = ParamSpec(kernel.shape, axes or (None,) * kernel.ndim)
    return jit(partial(quantized.read, specs=quantized.quantized_spec(spec, form, contract)))(jnp.asarray(kernel))


def test_int8_has_a_factor_for_each_output():
    kernel = normal(3, 40, 2, 5) * np.exp(normal(3, 1, 2, 5))
    kernel[1, :, 0, 3] = 0
    held = hold(kernel, "int8", axes=("layers", None, None, None))
    largest = np.abs(kernel).max(1, keepdims=True)
    np.testing.assert_allclose(held.scales, np.where(largest > 0, largest / 127, 1), rtol=1e-6)
    np.testing.assert_array_equal(held.values, np.round(kernel / np.asarray(held.scales)))
    assert (np.abs(quantized.plain(held, "float32") - kernel) <= largest / 253.9).all()  # half a step


def test_int8_of_a_kernel_with_two_axes_of_inputs():
    kernel = normal(4, 6, 7)
    held = hold(kernel, "int8", contract=2)
    np.testing.assert_allclose(held.scales, np.abs(kernel).max((0, 1), keepdims=True) / 127, rtol=1e-6)


@pytest.mark.parametrize(("shape", "contract"), [((2, 150, 3, 50), 1), ((2, 3, 60, 130), 2)])
def test_fp8_has_the_released_weights_blocks(shape, contract):
    """Merged axes, each layer by itself. The checkpoints' own rounding is the reference."""
    kernel = normal(*shape)
    held = hold(kernel, "fp8", contract, ("layers", *(None,) * (len(shape) - 1)))
    flat = kernel.reshape(2, int(np.prod(shape[1 : 1 + contract])), -1)
    values, scales = released.quantize(flat)
    np.testing.assert_allclose(held.scales, scales, rtol=2e-7)
    np.testing.assert_array_equal(np.asarray(held.values).reshape(flat.shape), values)
    wanted = released.dequantize(values, scales).reshape(shape)
    np.testing.assert_allclose(quantized.plain(held, "float32"), wanted, rtol=1e-6)
    assert 0.02 < np.linalg.norm(wanted - kernel) / np.linalg.norm(kernel) < 0.03  # rounding to 4 bits


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("inputs", "outputs"), [((130,), (3, 50)), ((3, 60), (130,))])
def test_a_product_is_that_of_the_kernel_multiplied_out(form, inputs, outputs):
    """And so is the gradient of its input."""
    x, kernel, contract = jnp.asarray(normal(5, *inputs)), normal(*inputs, *outputs), len(inputs)
    held = hold(kernel, form, contract)
    run = jit(jax.value_and_grad(lambda x, kernel: jnp.sin(project(x, kernel, "float32", contract)).sum()))
    ours, wanted = run(x, held), run(x, quantized.plain(held, "float32"))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-4), ours, wanted)


def test_fp8_kernels_meet_fp8_activations_as_in_training():
    """Bit for bit, with the gradient of the input."""
    x, kernel = jnp.asarray(normal(5, 150)), normal(150, 3, 50)

    @jit
    def run(x, kernel):
        return jax.value_and_grad(lambda x: (project(x, kernel, "fp8") ** 2).sum())(x)

    jax.tree.map(np.testing.assert_array_equal, run(x, hold(kernel, "fp8")), run(x, jnp.asarray(kernel)))


@pytest.mark.parametrize("form", FORMS)
def test_experts_that_are_grouped(form):
    kernels, x = normal(4, 20, 24), jnp.asarray(normal(30, 20))
    held = hold(kernels, form, axes=("experts", None, None))
    groups = grouped.group(jnp.asarray(RNG.integers(0, 4, 30)), 4)
    rows = grouped.sort(x, groups)
    run = jit(lambda kernels: grouped.project(rows, kernels, groups, "float32")[:30])
    np.testing.assert_allclose(run(held), run(quantized.plain(held, "float32")), rtol=1e-5, atol=1e-4)


# -- A sampler

MODELS = {
    "gqa": dataclasses.replace(GQA, segments=(config.Segment("dense", 2),), moe=None),
    "mla": dataclasses.replace(MLA, segments=MLA.segments[1:], mtp_depth=0, moe=dataclasses.replace(MLA.moe, top_groups=4)),
}
PROMPTS = [RNG.integers(0, 48, n).tolist() for n in (4, 8, 1, 6)]
HOW = config.Sampling(max_new_tokens=8)


def loaded(model, form, mesh=None, matmul_dtype="float32"):
    engine = config.Engine(slots=8, max_prompt_tokens=8, weights=form)
    mesh = sharding.make_mesh(mesh or config.Mesh(fsdp=1))
    made = Sampler(dataclasses.replace(model, matmul_dtype=matmul_dtype), engine, mesh, end_ids=(), seed=3)
    made.load(draw(model, kernel=0.1))
    return made


@cache
def answers(name, form, mesh=None, matmul_dtype="float32"):
    return loaded(MODELS[name], form, mesh, matmul_dtype).generate(PROMPTS, HOW, samples=2)


def differences(model, trajectories):
    """Of the sampler's log-probs from a float32 trainer's."""
    params, tokens = draw(model, kernel=0.1), trajectories.tokens
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    segments = (positions < trajectories.length[:, None]).astype(np.int32)

    @jit
    def score(params, tokens):
        hidden, _, _ = decoder.forward(params, tokens, positions, segments, model=model)
        return token_logprobs(hidden, decoder.head_kernel(params), jnp.roll(tokens, -1, 1))[0]

    wanted = np.roll(score(params, tokens), 1, 1)
    return np.abs(wanted - trajectories.logprobs)[trajectories.loss_mask]


@pytest.mark.parametrize(("name", "form", "matmul_dtype", "mean"), [
    ("gqa", "int8", "float32", 0.006),
    ("mla", "fp8", "float32", 0.02),
    ("gqa", "fp8", "fp8", 0.04),
])  # fmt: skip
def test_a_sampler_s_logprobs_are_near_the_trainer_s(name, form, matmul_dtype, mean):
    """But not the same, or its kernels would not be rounded."""
    found = differences(MODELS[name], answers(name, form, matmul_dtype=matmul_dtype))
    assert mean / 30 < found.mean() < mean


@pytest.mark.parametrize(("name", "form"), [("gqa", "int8"), ("mla", "fp8")])
def test_on_a_mesh_the_answers_are_the_same(name, form):
    alone, shared = answers(name, form), answers(name, form, config.Mesh(data=2, expert=2, tensor=2, fsdp=1))
    np.testing.assert_array_equal(alone.tokens, shared.tokens)
    np.testing.assert_allclose(alone.logprobs, shared.logprobs, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_the_bytes_of_the_weights(form):
    """One for each number of a layer's kernels, and the plan knows."""
    model = dataclasses.replace(MODELS["gqa"], d_model=256, d_ff=256, matmul_dtype="bfloat16")
    mesh = sharding.make_mesh(config.Mesh(fsdp=1))
    plans = {w: memory.Sampling.of(model, mesh, config.Engine(weights=w), 8).weights for w in ("same", form)}
    kernels = 2 * 256 * (2 * 4 * 8 + 2 * 2 * 8 + 3 * 256)
    outputs = 2 * (4 * 8 + 2 * 2 * 8 + 256 + 2 * 256 + 256) * 4
    scales = outputs if form == "int8" else 2 * (2 + 2 + 2 + 2 + 4 + 4 + 4) * 4
    assert plans["same"] - plans[form] == kernels - scales
    held = loaded(model, form, matmul_dtype="bfloat16").params
    assert sum(x.nbytes for x in jax.tree.leaves(held)) == plans[form]
