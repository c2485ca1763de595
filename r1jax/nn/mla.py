"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1; V3's released code for the scale).

Keys and values of all heads come from one latent of ``kv_rank`` channels, and one rotary key is shared by all heads: the
cache holds these ``kv_rank + rope_dim`` numbers per token. Two paths give the same values: *expanded* makes every head's
keys and values (cheaper for many queries), *absorbed* folds those projections into the query and the output (cheaper for one
query against a cache).
"""

from __future__ import annotations

import jax.numpy as jnp

from r1jax import config
from r1jax.nn import attention, norms
from r1jax.nn.attention import Packed, packed_mask, read_layer, softmax, write_rows
from r1jax.nn.matmul import einsum, project
from r1jax.nn.rope import mscale, rotate
from r1jax.params import ParamSpec
from r1jax.sharding import constrain

LATENT_EPS = 1e-6  # the released models use this for the latent norms whatever the model's own eps


def specs(model: config.Model) -> dict:
    a, d = model.attention, model.d_model

    def kernel(shape, axes):
        return ParamSpec(shape, axes, std=model.init_std, dtype=model.param_dtype)

    qk = a.nope_dim + a.rope_dim
    if a.q_rank is None:
        query = {"q": kernel((d, a.n_heads, qk), ("embed", "heads", None))}
    else:
        query = {
            "q_a": kernel((d, a.q_rank), ("embed", None)),
            "q_norm": norms.specs(a.q_rank, model.param_dtype),
            "q_b": kernel((a.q_rank, a.n_heads, qk), (None, "heads", None)),
        }
    return query | {
        "kv_a": kernel((d, a.kv_rank + a.rope_dim), ("embed", None)),
        "kv_norm": norms.specs(a.kv_rank, model.param_dtype),
        "k_b": kernel((a.kv_rank, a.n_heads, a.nope_dim), (None, "heads", None)),
        "v_b": kernel((a.kv_rank, a.n_heads, a.v_dim), (None, "heads", None)),
        "o": kernel((a.n_heads, a.v_dim, d), ("heads", None, "embed")),
    }


def cache_shape(model: config.Model, batch: int, length: int) -> tuple[tuple[int, ...], tuple[str | None, ...]]:
    """One layer's cache, latent and rotary key side by side in the last axis: (shape, logical axes)."""
    a = model.attention
    return (batch, length, a.kv_rank + a.rope_dim), ("batch", None, None)


def softmax_scale(model: config.Model) -> float:
    """``(nope + rope)^-0.5``, times m(mscale_all_dim)^2 under YaRN."""
    a, rope = model.attention, model.rope
    m = mscale(rope.factor, rope.mscale_all_dim) if rope.scaling == "yarn" else 1.0
    return (a.nope_dim + a.rope_dim) ** -0.5 * m * m


def attend(
    params, x, angles, *, model: config.Model, packed: Packed | None = None, mask=None, cache=None, layer=None, start=None,
    absorbed: bool | None = None,
):  # fmt: skip
    """Self-attention of x[B, T, D].

    Args:
      angles: (cos, sin), each float32[B, T, rope_dim / 2].
      packed: which sequence each token is of, without a cache.
      mask: bool[B, T, S] over the cache, with one.
      cache: [B, L, S, kv_rank + rope_dim] or None; x's latents are written at ``[b, layer, start[b]:]`` before attending.
      absorbed: which path; None takes the absorbed one for a single query and the expanded one otherwise.

    Returns:
      ([B, T, D], cache).
    """
    a = model.attention
    if absorbed is None:
        absorbed = x.shape[1] == 1
    if a.q_rank is None:
        q = project(x, params["q"], model.matmul_dtype)
    else:
        latent = norms.rms_norm(project(x, params["q_a"], model.matmul_dtype), params["q_norm"]["scale"], LATENT_EPS)
        q = project(latent, params["q_b"], model.matmul_dtype)
    q = constrain(q, "batch", "sequence", "heads", None)
    q_nope, q_rope = jnp.split(q, [a.nope_dim], axis=-1)
    q_rope = rotate(q_rope, *angles, model.rope.interleaved)

    latent, k_rope = jnp.split(project(x, params["kv_a"], model.matmul_dtype), [a.kv_rank], axis=-1)
    latent = norms.rms_norm(latent, params["kv_norm"]["scale"], LATENT_EPS)
    k_rope = rotate(k_rope[:, :, None], *angles, model.rope.interleaved)[:, :, 0]
    if cache is not None:
        cache = write_rows(cache, layer, jnp.concatenate([latent, k_rope], axis=-1), start)
        latent, k_rope = jnp.split(read_layer(cache, layer).astype(x.dtype), [a.kv_rank], axis=-1)

    if cache is None and not absorbed:
        out = _packed(params, q_nope, q_rope, latent, k_rope, packed, model)
    else:
        inner = _absorbed if absorbed else _expanded
        out = inner(params, q_nope, q_rope, latent, k_rope, packed_mask(*packed) if cache is None else mask, model)
    return project(out, params["o"], model.matmul_dtype, contract=2), cache


def _packed(params, q_nope, q_rope, latent, k_rope, packed, model):
    k = project(latent, params["k_b"], model.matmul_dtype)
    v = project(latent, params["v_b"], model.matmul_dtype)
    k_rope = jnp.broadcast_to(k_rope[:, :, None], (*k.shape[:3], k_rope.shape[-1]))
    q, k = jnp.concatenate([q_nope, q_rope], axis=-1), jnp.concatenate([k, k_rope], axis=-1)
    return attention.attend(
        q, k, v, packed, scale=softmax_scale(model), dtype=model.matmul_dtype, kernel=model.attention_kernel
    )


def _expanded(params, q_nope, q_rope, latent, k_rope, mask, model):
    k = project(latent, params["k_b"], model.matmul_dtype)
    v = project(latent, params["v_b"], model.matmul_dtype)
    scores = einsum("btnh,bsnh->bnts", q_nope, k, model.matmul_dtype)
    scores += einsum("btnh,bsh->bnts", q_rope, k_rope, model.matmul_dtype)
    weights = softmax(scores * softmax_scale(model), mask, v.dtype)
    out = einsum("bnts,bsnh->bnth", weights, v, model.matmul_dtype)
    return jnp.moveaxis(out, 2, 1).astype(v.dtype)


def _absorbed(params, q_nope, q_rope, latent, k_rope, mask, model):
    k_b, v_b = (params[name].astype(latent.dtype) for name in ("k_b", "v_b"))
    q_latent = einsum("btnh,rnh->btnr", q_nope, k_b, model.matmul_dtype).astype(latent.dtype)
    scores = einsum("btnr,bsr->bnts", q_latent, latent, model.matmul_dtype)
    scores += einsum("btnh,bsh->bnts", q_rope, k_rope, model.matmul_dtype)
    weights = softmax(scores * softmax_scale(model), mask, latent.dtype)
    # "bntr" and not "btnr": XLA:CPU cannot run the transposed bfloat16 product with float32 sums.
    out = einsum("bnts,bsr->bntr", weights, latent, model.matmul_dtype).astype(latent.dtype)
    return einsum("bntr,rnh->btnh", out, v_b, model.matmul_dtype).astype(latent.dtype)
