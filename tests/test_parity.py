"""The same weights in transformers' models give the same logits."""

import dataclasses

import hf_reference
import jax.numpy as jnp
import numpy as np
import pytest
from random_models import GQA, MLA, MOE, draw, jit
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from r1jax import config
from r1jax.models import decoder
from r1jax.nn import moe, rope

TOLERANCE = 2e-4
TOKENS = np.random.default_rng(2).integers(0, 48, (2, 40)).astype(np.int32)
DENSE = (config.Segment("dense", 2),)
LLAMA3 = config.Rope(theta=500.0, scaling="llama3", factor=8.0, original_length=32, low_freq_factor=1.0, high_freq_factor=4.0)
FAMILIES = {
    "DeepseekV3": dataclasses.replace(MLA, mtp_depth=0),
    "DeepseekV3 without a query latent": dataclasses.replace(
        MLA,
        mtp_depth=0,
        norm_eps=1e-5,
        attention=dataclasses.replace(MLA.attention, q_rank=None),
        rope=config.Rope(interleaved=True),
        moe=dataclasses.replace(MOE, n_shared=2, renormalize=False, n_groups=2, top_groups=1),
    ),
    "Qwen3Moe": dataclasses.replace(
        GQA,
        segments=(config.Segment("moe", 2),),
        attention=dataclasses.replace(GQA.attention, qkv_bias=False),
        moe=config.MoE(n_experts=8, top_k=3, d_ff=12, n_shared=0, scoring="softmax", bias=False),
    ),
    "Qwen3": dataclasses.replace(
        GQA, segments=DENSE, moe=None, tied=True, attention=config.GQA(n_heads=4, n_kv_heads=2, head_dim=16, qk_norm=True)
    ),
    "Qwen2": dataclasses.replace(GQA, segments=DENSE, moe=None, attention=config.GQA(4, 1, 8, qkv_bias=True)),
    "Llama": dataclasses.replace(GQA, segments=DENSE, moe=None, tied=True, attention=config.GQA(4, 2, 8), rope=LLAMA3),
}


def ours(params, model):
    @jit
    def logits(params):
        positions = jnp.broadcast_to(jnp.arange(TOKENS.shape[1]), TOKENS.shape)
        hidden, _, _ = decoder.forward(params, TOKENS, positions, jnp.ones_like(TOKENS), model=model)
        return hidden @ decoder.head_kernel(params)

    return np.asarray(logits(params))


@pytest.fixture(scope="module")
def deepseek():
    """(parameters, transformers' logits). Small embeddings, so that a wrong eps shows."""
    model = FAMILIES["DeepseekV3"]
    params = draw(model, embedding=0.05)
    return params, hf_reference.logits(hf_reference.build("DeepseekV3", params, model), TOKENS)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers(family):
    model = FAMILIES[family]
    params = draw(model)
    theirs = hf_reference.logits(hf_reference.build(family.split()[0], params, model), TOKENS)
    assert theirs.std() > 0.5
    np.testing.assert_allclose(ours(params, model), theirs, atol=TOLERANCE, rtol=0)


moe_route = moe.route


def biased_gates(params, x, settings, routes=None):
    routing = moe_route(params, x, settings, routes)
    gates = jnp.take_along_axis(routing.scores + params["router_bias"], routing.experts, axis=-1)
    return routing._replace(gates=settings.scale * gates / gates.sum(-1, keepdims=True))


V3 = FAMILIES["DeepseekV3"]
WRONG = {
    "eps": dataclasses.replace(V3, norm_eps=1e-5),
    "halves instead of neighbours": dataclasses.replace(V3, rope=dataclasses.replace(V3.rope, interleaved=False)),
    "no mscale in the softmax": dataclasses.replace(
        V3, rope=dataclasses.replace(V3.rope, mscale=0.3 / 0.7, mscale_all_dim=0.0)
    ),
    "no mscale in cos and sin": dataclasses.replace(V3, rope=dataclasses.replace(V3.rope, mscale=0.7)),
    "bias in the gates": V3,
}


@pytest.mark.parametrize("what", [None, *WRONG])
def test_a_wrong_detail_is_noticed(deepseek, what, monkeypatch):
    params, theirs = deepseek
    if what == "bias in the gates":
        monkeypatch.setattr(moe, "route", biased_gates)
    difference = abs(ours(params, WRONG.get(what, V3)) - theirs).max()
    assert difference > 2 * TOLERANCE if what else difference < TOLERANCE


@pytest.mark.parametrize(
    "settings",
    [
        LLAMA3,
        config.Rope(theta=500_000.0, scaling="llama3", factor=32.0, original_length=8192),
        config.Rope(scaling="yarn", factor=40.0, original_length=4096, mscale=1.0, mscale_all_dim=1.0),
        config.Rope(
            theta=1e6,
            scaling="yarn",
            factor=4.0,
            original_length=512,
            beta_fast=16,
            beta_slow=2,
            mscale=0.9,
            mscale_all_dim=0.4,
        ),
        config.Rope(scaling="yarn", factor=4.0, original_length=16),
    ],
)
def test_frequencies_are_those_of_transformers(settings):
    a = config.GQA(n_heads=4, n_kv_heads=4, head_dim=64)
    model = config.Model(d_model=256, attention=a, rope=settings)
    theirs = hf_reference.configuration("Llama", model)
    frequencies, factor = ROPE_INIT_FUNCTIONS[settings.scaling](theirs, "cpu")
    np.testing.assert_allclose(rope.inverse_frequencies(64, settings), frequencies.numpy(), rtol=1e-5)
    cos, _ = rope.angles(jnp.zeros((1, 1), jnp.int32), 64, settings)
    np.testing.assert_allclose(cos, factor, rtol=1e-6)
