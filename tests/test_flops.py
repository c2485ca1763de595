"""FLOPs and bytes counted from a config, against the products that a traced program makes, published counts, and by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from r1jax import config
from r1jax.config.shapes import SHAPES
from r1jax.models import cache as caches
from r1jax.models import decoder
from r1jax.nn.matmul import project
from r1jax.params import abstract, count
from r1jax.plan import flops
from r1jax.plan.flops import Steps

B, T = 2, 6
MLA = dataclasses.replace(tiny.MOE, segments=(config.Segment("dense", 3),), moe=None)
# All experts are chosen, so that the form in which every expert sees every token is no more than is needed.
MOE = dataclasses.replace(tiny.MOE, segments=(config.Segment("dense", 1), config.Segment("moe", 2)), moe=config.MoE(4, 4, 16))
GQA = dataclasses.replace(tiny.DENSE, segments=(config.Segment("dense", 3),))


def products(jaxpr) -> int:
    """FLOPs of the dot_generals below a jaxpr, scans as often as they go round."""
    total = 0
    for eqn in jaxpr.eqns:
        times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            inner = value.jaxpr if hasattr(value, "jaxpr") else value
            total += times * products(inner) if hasattr(inner, "eqns") else 0
        if eqn.primitive.name == "dot_general":
            (left, _), _ = eqn.params["dimension_numbers"]
            depth = np.prod([eqn.invars[0].aval.shape[i] for i in left])
            total += 2 * int(np.prod(eqn.outvars[0].aval.shape) * depth)
    return total


def traced(model, t=T, length=None, gradient=False) -> int:
    """FLOPs of a forward pass of B rows of t tokens, and their logits; each sees its row, or ``length`` slots of a cache."""
    cache = None if length is None else jax.eval_shape(lambda: caches.create(model, B, length))
    integers = jax.ShapeDtypeStruct((B, t), jnp.int32)

    def run(params, tokens, cache):
        hidden, aux, _ = decoder.forward(params, tokens, tokens, tokens, model=model, cache=cache)
        logits = project(hidden, decoder.head_kernel(params), model.matmul_dtype)
        return logits.sum() + (0 if gradient else aux.balance)

    f = jax.grad(run) if gradient else run
    return products(jax.make_jaxpr(f)(abstract(decoder.specs(model)), integers, cache).jaxpr)


@pytest.mark.parametrize("model", [GQA, MLA], ids=["gqa", "mla"])
def test_a_forward_pass_is_the_products_that_it_makes(model):
    assert traced(model) == flops.forward_flops(model, B * T, B * T * T, B * T)
    one = traced(model, t=1, length=9)
    assert one == flops.forward_flops(model, B, B * 9, B, absorbed=True)


def test_a_forward_pass_through_experts_is_the_products_that_it_makes():
    m = MOE.moe
    # In each of two layers, bookkeeping with one-hot rows: each token's gates by expert, and the experts' load.
    gates_and_load = 2 * (2 * B * T * m.top_k * m.n_experts + 2 * B * T * m.n_experts)
    assert traced(MOE) - gates_and_load == flops.forward_flops(MOE, B * T, B * T * T, B * T)


def test_a_token_pays_for_the_experts_it_chose():
    half = dataclasses.replace(MOE, moe=dataclasses.replace(MOE.moe, top_k=2))
    experts = 3 * 2 * MOE.d_model * MOE.moe.d_ff  # gate, up and down of one
    assert flops.token_flops(MOE) - flops.token_flops(half) == 2 * 2 * experts  # two fewer in two layers


@pytest.mark.parametrize("model", [GQA, MLA], ids=["gqa", "mla"])
def test_a_gradient_is_three_forward_passes(model):
    assert traced(model, gradient=True) == flops.GRADIENT * traced(model)


def test_the_published_counts_of_671b():
    model = config.CONFIG_671B
    active = (flops.token_flops(model) + flops.head_flops(model)) / 2 + model.vocab_size * model.d_model
    assert active == pytest.approx(37e9, rel=0.02)  # "37B activated for each token", arXiv 2412.19437, the embedding included


def test_the_shapes_have_the_sizes_in_their_names():
    counts = {name: count(decoder.specs(model)) for name, model in SHAPES.items()}
    assert counts["135m-dense"] == pytest.approx(134.5e6, rel=0.01)  # as released
    assert counts["1.5b-dense"] == pytest.approx(1.54e9, rel=0.01)
    assert counts["3b-moe"] == pytest.approx(3.08e9, rel=0.01)
    seen = (flops.token_flops(SHAPES["3b-moe"]) + flops.head_flops(SHAPES["3b-moe"])) / 2
    assert seen == pytest.approx(0.73e9, rel=0.01)


def test_the_bytes_of_a_step_by_hand():
    model = SHAPES["tiny"]  # D 32, F 64, V 264, two layers, two heads of 16 and as many for keys
    layer = 4 * 32 * 32 + 3 * 32 * 64 + 2 * 32
    assert flops.weight_bytes(model, 7) == 4 * (2 * layer + 32 + 32 * 264)  # no embedding: rows of it are looked up
    assert flops.weight_bytes(dataclasses.replace(model, tied=True), 7) == flops.weight_bytes(model, 7)
    in_bf16 = dataclasses.replace(model, matmul_dtype="bfloat16")
    assert flops.weight_bytes(in_bf16, 7) == 2 * (2 * (layer - 64) + 32 * 264) + 4 * (2 * 64 + 32)  # norms stay
    assert flops.cache_bytes(model) == 4 * 2 * (2 * 2 * 16)
    assert flops.cache_bytes(dataclasses.replace(MLA, dtype="bfloat16")) == 2 * 3 * (8 + 4)


def test_the_bytes_of_experts_grow_with_the_tokens_that_choose():
    one = 4 * 3 * MOE.d_model * MOE.moe.d_ff
    quarter = dataclasses.replace(MOE, moe=dataclasses.replace(MOE.moe, top_k=1))
    rest = flops.weight_bytes(quarter, 1) - 2 * one
    assert flops.weight_bytes(quarter, 2) == pytest.approx(rest + 2 * one * 4 * (1 - 0.75**2))
    assert flops.weight_bytes(quarter, 10_000) == pytest.approx(rest + 2 * one * 4)


def test_prefill_and_decoding_by_hand():
    prefill = flops.prefill_steps([4, 5, 6], together=2)
    assert (list(prefill.tokens), list(prefill.pairs), list(prefill.predictions)) == ([9, 6], [10 + 15, 21], [2, 1])
    # Of 3, 1 and 2 tokens: the second needs no step, so the third begins with the first.
    decode = flops.decode_steps([4, 5, 6], [3, 1, 2], slots=2)
    assert (list(decode.tokens), list(decode.pairs)) == ([2, 1], [(4 + 1) + (6 + 1), 4 + 2])
    # One after the other in one slot.
    assert list(flops.decode_steps([4, 5, 6], [3, 1, 2], slots=1).pairs) == [5, 6, 7]


def test_decoding_fills_a_slot_as_soon_as_it_is_free():
    rng = np.random.default_rng(0)
    prompts, answers, slots = rng.integers(1, 9, 40).tolist(), rng.integers(1, 12, 40).tolist(), 5
    waiting, busy, rows, seen = list(zip(prompts, answers, strict=True)), [], [], []
    while waiting or busy:  # token by token
        while waiting and len(busy) < slots:
            prompt, answer = waiting.pop(0)
            busy += [[prompt + 1, answer - 1]] if answer > 1 else []
        rows.append(len(busy))
        seen.append(sum(context for context, _ in busy))
        busy = [[context + 1, left - 1] for context, left in busy if left > 1]
    steps = flops.decode_steps(prompts, answers, slots)
    assert (list(steps.tokens), list(steps.pairs)) == (rows, seen)


def test_a_bound_is_the_slower_of_arithmetic_and_memory_step_by_step():
    model = SHAPES["tiny"]
    steps = Steps(*(np.array(x) for x in ([3, 0], [10, 0], [2, 0], [5, 40])), absorbed=True)
    worked = [3 * 2 * 2 * (4 * 32 * 32 + 3 * 32 * 64) + 10 * 2 * 2 * 2 * 32 + 2 * 2 * 32 * 264, 0]
    moved = [flops.weight_bytes(model, 3) + 5 * 256 * 2, flops.weight_bytes(model, 0) + 40 * 256 * 2]
    assert list(steps.flops(model)) == worked and list(steps.bytes(model)) == moved
    assert worked[0] / 1e3 > moved[0] / 1e4  # arithmetic takes longer at first, and then nothing but memory does
    assert steps.bound(model, flops_per_s=1e3, bytes_per_s=1e4) == pytest.approx(worked[0] / 1e3 + moved[1] / 1e4)
