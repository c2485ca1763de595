"""What both attentions share: who sees whom, the softmax, and the rows of a cache."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp

from r1jax.nn.matmul import einsum

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


def softmax(scores: jax.Array, mask: jax.Array, dtype) -> jax.Array:
    """Softmax over the last axis of float32 scores[B, ..., T, S] under mask[B, T, S]."""
    mask = mask.reshape(mask.shape[0], *(1,) * (scores.ndim - 3), *mask.shape[1:])
    return jax.nn.softmax(jnp.where(mask, scores, MASKED), axis=-1).astype(dtype)


def write_rows(blocks: tuple[jax.Array, ...], new: jax.Array, start: jax.Array, axis: int) -> tuple[jax.Array, ...]:
    """Writes new[B, ...], which has T positions along ``axis``, at the positions ``start[b], start[b] + 1, ...`` of row b.

    One slice per row and position, and not one indexed scatter: the compiler then keeps rows that are split over devices where
    they are. A position may lie in any block; the others write back what they hold.
    """

    def row(cached, fresh, at):
        inside = (at >= 0) & (at < cached.shape[axis - 1])
        at = jnp.clip(at, 0, cached.shape[axis - 1] - 1)
        if len(blocks) > 1:
            fresh = jnp.where(inside, fresh, jax.lax.dynamic_slice_in_dim(cached, at, 1, axis - 1))
        return jax.lax.dynamic_update_slice_in_dim(cached, fresh, at, axis - 1)

    written, begin = [], 0
    for block in blocks:
        out = block
        for t in range(new.shape[axis]):
            token = jax.lax.slice_in_dim(new, t, t + 1, axis=axis).astype(block.dtype)
            out = jax.vmap(row)(out, token, start + t - begin)
        written.append(out)
        begin += block.shape[axis]
    return tuple(written)


def attend_cached(
    q: jax.Array, keys: tuple[jax.Array, ...], values: tuple[jax.Array, ...], positions: jax.Array, scale: float, dtype: str
) -> jax.Array:
    """Softmax attention of few queries against a cache in blocks: a query at position p sees places 0..p of its row.

    The layouts are those of a batched product as they lie, so nothing of the cache is copied or turned around. Operands are in
    the cache's type, sums in float32.

    Args:
      q: [B, KV, T * G, H]; the G queries of a token side by side.
      keys: [B, KV, H, S] each.
      values: [B, KV, S, Hv] each.
      positions: int32[B, T].

    Returns:
      [B, KV, T * G, Hv] in q's dtype.
    """
    scores = [einsum("bkgh,bkhs->bkgs", q.astype(k.dtype), k, dtype) for k in keys]
    scores = (scores[0] if len(scores) == 1 else jnp.concatenate(scores, axis=-1)) * scale
    seen = jnp.arange(scores.shape[-1]) <= jnp.repeat(positions, q.shape[2] // positions.shape[1], axis=1)[:, None, :, None]
    weights = jax.nn.softmax(jnp.where(seen, scores, MASKED), axis=-1).astype(values[0].dtype)
    parts = jnp.split(weights, list(_ends(values))[:-1], axis=-1) if len(values) > 1 else [weights]
    out = sum(einsum("bkgs,bksh->bkgh", w, v, dtype) for w, v in zip(parts, values, strict=True))
    return out.astype(q.dtype)


def _ends(values: tuple[jax.Array, ...]) -> list[int]:
    return list(itertools.accumulate(v.shape[2] for v in values))
