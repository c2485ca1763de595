"""Grouped-query attention (Ainslie et al. 2023), with Qwen2's biases and Qwen3's query-key norm."""

from __future__ import annotations

import jax.numpy as jnp

from r1jax import config
from r1jax.nn import attention, norms
from r1jax.nn.attention import Packed, read_layer, softmax, write_rows
from r1jax.nn.matmul import einsum, project
from r1jax.nn.rope import rotate
from r1jax.params import ParamSpec
from r1jax.sharding import constrain


def specs(model: config.Model) -> dict:
    a, d = model.attention, model.d_model

    def kernel(shape, axes):
        return ParamSpec(shape, axes, std=model.init_std, dtype=model.param_dtype)

    out = {
        "q": kernel((d, a.n_heads, a.head_dim), ("embed", "heads", None)),
        "k": kernel((d, a.n_kv_heads, a.head_dim), ("embed", "kv_heads", None)),
        "v": kernel((d, a.n_kv_heads, a.head_dim), ("embed", "kv_heads", None)),
        "o": kernel((a.n_heads, a.head_dim, d), ("heads", None, "embed")),
    }
    if a.qkv_bias:
        for name, heads, axis in (("q", a.n_heads, "heads"), ("k", a.n_kv_heads, "kv_heads"), ("v", a.n_kv_heads, "kv_heads")):
            out[f"{name}_bias"] = ParamSpec((heads, a.head_dim), (axis, None), "zeros", dtype=model.param_dtype)
    if a.qk_norm:
        out |= {f"{name}_norm": ParamSpec((a.head_dim,), (None,), "ones", dtype=model.param_dtype) for name in "qk"}
    return out


def cache_shape(model: config.Model, batch: int, length: int) -> tuple[tuple[int, ...], tuple[str | None, ...]]:
    """One layer's cache, key and value side by side in the last axis: (shape, logical axes)."""
    a = model.attention
    return (batch, length, a.n_kv_heads, 2 * a.head_dim), ("batch", None, "kv_heads", None)


def attend(
    params, x, angles, *, model: config.Model, packed: Packed | None = None, mask=None, cache=None, layer=None, start=None
):
    """Self-attention of x[B, T, D].

    Args:
      angles: (cos, sin), each float32[B, T, head_dim / 2].
      packed: which sequence each token is of, without a cache.
      mask: bool[B, T, S] over the cache, with one.
      cache: [B, L, S, KV, 2 H] or None; the keys and values of x are written at ``[b, layer, start[b]:]`` before attending.

    Returns:
      ([B, T, D], cache).
    """
    a = model.attention

    def heads(name):
        y = project(x, params[name], model.matmul_dtype)
        return y + params[f"{name}_bias"].astype(y.dtype) if a.qkv_bias else y

    q, k, v = heads("q"), heads("k"), heads("v")
    if a.qk_norm:
        q, k = (norms.rms_norm(y, params[f"{n}_norm"], model.norm_eps) for y, n in ((q, "q"), (k, "k")))
    q, k = (rotate(y, *angles, model.rope.interleaved) for y in (q, k))
    q = constrain(q, "batch", "sequence", "heads", None)
    if cache is None:
        out = attention.attend(
            q, k, v, packed, scale=a.head_dim**-0.5, dtype=model.matmul_dtype, kernel=model.attention_kernel
        )
        return project(out, params["o"], model.matmul_dtype, contract=2), None
    cache = write_rows(cache, layer, jnp.concatenate([k, v], axis=-1), start)
    k, v = jnp.split(read_layer(cache, layer).astype(x.dtype), 2, axis=-1)
    b, t = x.shape[:2]
    q = q.reshape(b, t, a.n_kv_heads, a.n_heads // a.n_kv_heads, a.head_dim)
    scores = einsum("btkgh,bskh->bkgts", q, k, model.matmul_dtype) * a.head_dim**-0.5
    # "bkgth" and not "btkgh": XLA:CPU cannot run the transposed bfloat16 product with float32 sums.
    out = einsum("bkgts,bskh->bkgth", softmax(scores, mask, x.dtype), v, model.matmul_dtype)
    out = jnp.moveaxis(out, 3, 1).astype(x.dtype).reshape(b, t, a.n_heads, a.head_dim)
    return project(out, params["o"], model.matmul_dtype, contract=2), cache
