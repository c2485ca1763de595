"""What both attentions share: who sees whom, the softmax, and the rows of a cache."""

from __future__ import annotations

import jax
import jax.numpy as jnp

MASKED = -1e30  # finite: a row that sees nothing (padding) stays finite instead of nan


def packed_mask(segments: jax.Array, prefix: jax.Array | None = None) -> jax.Array:
    """bool[B, T, T]: query t sees the keys s <= t of its own sequence, and of the sequence named by ``prefix``.

    Args:
      segments: int32[B, T]; padding (0) is seen by padding alone.
      prefix: int32[B, T] or None; 0 is none.
    """
    t = jnp.arange(segments.shape[1])
    mine = segments[:, :, None] == segments[:, None, :]
    if prefix is not None:
        mine |= (prefix[:, :, None] == segments[:, None, :]) & (prefix[:, :, None] > 0)
    return mine & (t[:, None] >= t[None, :])


def cache_mask(positions: jax.Array, length: int) -> jax.Array:
    """bool[B, T, S]: a query at position p sees cache slots 0..p, which hold its own row's tokens."""
    return jnp.arange(length) <= positions[..., None]


def softmax(scores: jax.Array, mask: jax.Array, dtype) -> jax.Array:
    """Softmax over the last axis of float32 scores[B, ..., T, S] under mask[B, T, S]."""
    mask = mask.reshape(mask.shape[0], *(1,) * (scores.ndim - 3), *mask.shape[1:])
    return jax.nn.softmax(jnp.where(mask, scores, MASKED), axis=-1).astype(dtype)


def write_rows(cache: jax.Array, layer: jax.Array, new: jax.Array, start: jax.Array) -> jax.Array:
    """Writes new[B, T, ...] into cache[B, L, S, ...] at ``[b, layer, start[b]:start[b] + T]``.

    A slice per row and not one indexed scatter: the compiler then keeps rows that are split over devices where they are.
    Rows come
    first in the cache because the mapped axis does: with layers first, XLA turned the whole cache around at every layer.
    """

    def row(cached, fresh, at):
        return jax.lax.dynamic_update_slice(cached, fresh[None].astype(cached.dtype), (layer, at, *(0,) * (fresh.ndim - 1)))

    return jax.vmap(row)(cache, new, start)


def read_layer(cache: jax.Array, layer: jax.Array) -> jax.Array:
    """[B, S, ...]"""
    return jax.lax.dynamic_index_in_dim(cache, layer, 1, keepdims=False)
