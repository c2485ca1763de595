"""Random models of two layers with every detail of a family switched on, for tests of the forward pass and of sampling."""

from __future__ import annotations

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
