"""Grouped-query attention (Ainslie et al. 2023), with Qwen2's biases and Qwen3's query-key norm."""

from __future__ import annotations

import jax.numpy as jnp

from r1jax import config
from r1jax.nn import attention, norms
from r1jax.nn.attention import Packed, attend_cached, write_rows
from r1jax.nn.matmul import project
from r1jax.nn.rope import rotate
from r1jax.params import ParamSpec
from r1jax.sharding import constrain


def specs(model: config.Model) -> dict:
    a, d = model.attention, model.d_model

    def kernel(shape, axes, inputs=1):
        return ParamSpec(shape, axes, std=model.init_std, dtype=model.param_dtype, inputs=inputs)

    out = {
        "q": kernel((d, a.n_heads, a.head_dim), ("embed", "heads", None)),
        "k": kernel((d, a.n_kv_heads, a.head_dim), ("embed", "kv_heads", None)),
        "v": kernel((d, a.n_kv_heads, a.head_dim), ("embed", "kv_heads", None)),
        "o": kernel((a.n_heads, a.head_dim, d), ("heads", None, "embed"), inputs=2),
    }
    if a.qkv_bias:
        for name, heads, axis in (("q", a.n_heads, "heads"), ("k", a.n_kv_heads, "kv_heads"), ("v", a.n_kv_heads, "kv_heads")):
            out[f"{name}_bias"] = ParamSpec((heads, a.head_dim), (axis, None), "zeros", dtype=model.param_dtype)
    if a.qk_norm:
        out |= {f"{name}_norm": ParamSpec((a.head_dim,), (None,), "ones", dtype=model.param_dtype) for name in "qk"}
    return out


TIME = (3, 2)
"""The axis of positions in each array of the cache."""


def cache_shapes(model: config.Model, rows: int, length: int) -> tuple[tuple[tuple[int, ...], tuple[str | None, ...]], ...]:
    """Keys [B, KV, H, S] and values [B, KV, S, H] of one layer: (shape, logical axes) each."""
    a = model.attention
    axes = ("batch", "kv_heads", None, None)
    return ((rows, a.n_kv_heads, a.head_dim, length), axes), ((rows, a.n_kv_heads, length, a.head_dim), axes)


def attend(params, x, angles, packed: Packed, *, model: config.Model, cache=None, positions=None, keep: bool = False):
    """Self-attention of x[B, T, D].

    Args:
      angles: (cos, sin), each float32[B, T, head_dim / 2].
      packed: which sequence each token is of; read without a cache.
      cache: this layer's blocks, or None. The keys and values of x are written at ``positions`` before attending, and a query
        at position p sees places 0..p.
      positions: int32[B, T], consecutive in each row; read with a cache.
      keep: return the keys and values of x as a cache of one block.

    Returns:
      ([B, T, D], the layer's cache or None).
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
        kept = ((_lain(k, 3), _lain(v, 2)),) if keep else None
        return project(out, params["o"], model.matmul_dtype, contract=2), kept
    (b, t), group = x.shape[:2], a.n_heads // a.n_kv_heads
    keys, values = zip(*cache, strict=True)
    keys = write_rows(keys, _lain(k, 3), positions[:, 0], 3)
    values = write_rows(values, _lain(v, 2), positions[:, 0], 2)
    q = jnp.moveaxis(q.reshape(b, t, a.n_kv_heads, group, a.head_dim), 1, 2).reshape(b, a.n_kv_heads, t * group, a.head_dim)
    out = attend_cached(q, keys, values, positions, a.head_dim**-0.5, model.matmul_dtype)
    out = jnp.moveaxis(out.reshape(b, a.n_kv_heads, t, group, a.head_dim), 2, 1).reshape(b, t, a.n_heads, a.head_dim)
    return project(out, params["o"], model.matmul_dtype, contract=2), tuple(zip(keys, values, strict=True))


def _lain(x, positions: int):
    """[B, T, KV, H] as the cache has it, with T as this axis."""
    return jnp.moveaxis(x, 1, positions)
