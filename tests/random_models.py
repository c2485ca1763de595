"""Random models of two layers with every detail of a family switched on, for tests of the forward pass and of sampling."""

from __future__ import annotations

import dataclasses
import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from r1jax import config
from r1jax import params as parameters
from r1jax.models import decoder

# Compiling is nearly all that these tests cost, so it is done without optimisation.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

MOE = config.MoE(n_experts=8, top_k=2, d_ff=12, n_shared=1, n_groups=4, top_groups=2, scale=2.5)
SEGMENTS = (config.Segment("dense", 1), config.Segment("moe", 1))
GQA = config.Model(
    vocab_size=48,
    d_model=32,
    d_ff=40,
    segments=SEGMENTS,
    attention=config.GQA(n_heads=4, n_kv_heads=2, head_dim=8, qkv_bias=True, qk_norm=True),
    moe=MOE,
)
MLA = config.Model(
    vocab_size=48,
    d_model=32,
    d_ff=40,
    segments=SEGMENTS,
    attention=config.MLA(n_heads=4, q_rank=12, kv_rank=16, nope_dim=8, rope_dim=4, v_dim=6),
    moe=MOE,
    rope=config.Rope(interleaved=True, scaling="yarn", factor=4.0, original_length=16, mscale=1.0, mscale_all_dim=0.7),
    mtp_depth=1,
)

DENSE = (config.Segment("dense", 2),)
LLAMA3 = config.Rope(theta=500.0, scaling="llama3", factor=8.0, original_length=32, low_freq_factor=1.0, high_freq_factor=4.0)
FAMILIES = {  # the first word is how transformers calls the family
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
TOKENS = np.random.default_rng(2).integers(0, 48, (2, 40)).astype(np.int32)


def draw(model: config.Model, seed: int = 0, kernel: float = 0.25, embedding: float = 0.5):
    """Parameters with nothing left at 0 or 1: norms spread around 1, biases (the router's too) around 0."""
    specs = decoder.specs(model)

    def one(path, spec):
        name = parameters.path_name(path)
        values = np.random.default_rng([seed, *name.encode()]).standard_normal(spec.shape)
        if spec.init == "ones":
            values = 1 + 0.2 * values
        elif "bias" in name:
            values = 0.1 * values
        else:
            values = (embedding if name.startswith("embed") else kernel) * values
        return jnp.asarray(values, spec.dtype)

    return jax.tree_util.tree_map_with_path(one, specs, is_leaf=parameters.is_spec)


def collective_sizes(program: str, kind: str) -> list[int]:
    """How many numbers each collective of a kind (``all-gather``) gives a device, in a compiled program's text: the largest of
    those that it gives together."""
    found = re.findall(rf"= (\([^)]*\)|\S+) {kind}(?:-start)?\(", program)
    return [max(math.prod(int(n) for n in shape.split(",") if n) for shape in re.findall(r"\w+\[([\d,]*)\]", f)) for f in found]
