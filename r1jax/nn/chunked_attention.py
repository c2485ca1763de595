"""Packed attention in blocks of queries and keys, with a running softmax (Milakov and Gimelshein 2018; Dao et al. 2022).

No array of T x S numbers per head is made, forward or backward: the backward pass makes each block's weights again from the
log-sum-exp that the forward pass keeps. Blocks of which nothing is seen are not visited. Reverse-mode gradients only.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from r1jax.nn.matmul import einsum
from r1jax.sharding import platform

BLOCK = 128
NONE = jnp.iinfo(jnp.int32).max


def block() -> int:
    """Queries, and keys. On a CPU half as many: of what they make less is masked, and more stays in the caches."""
    return min(BLOCK, 64) if platform() == "cpu" else BLOCK


class Seen(NamedTuple):
    """What decides who sees whom. The arrays of queries may be a part of those of the keys (a device's share of the rows)."""

    segments: jax.Array
    """int32[B, T]: of the queries."""
    key_segments: jax.Array
    """int32[B, S]"""
    prefix: jax.Array | None
    """int32[B, T]: the segment that a query sees beside its own; 0 is none."""
    index: jax.Array
    """int32[T]: the queries' places among the keys."""

    def mask(self, keys: jax.Array) -> jax.Array:
        """bool[B, T, S] for ``key_segments`` at the places int32 keys[S]."""
        mine = self.segments[:, :, None] == self.key_segments[:, None, :]
        if self.prefix is not None:
            mine |= (self.prefix[:, :, None] == self.key_segments[:, None, :]) & (self.prefix[:, :, None] > 0)
        return mine & (self.index[:, None] >= keys)


def chunked(q: jax.Array, k: jax.Array, v: jax.Array, seen: Seen, scale: float, dtype: str) -> jax.Array:
    """Attention of q[B, T, N, H] to k[B, S, KV, H] and v[B, S, KV, Hv]: [B, T, N, Hv] in v's dtype.

    Args:
      scale: multiplies the scores.
      dtype: sets the precision of the products, whose operands keep their types; they sum in float32.
    """
    b, t, n, h = q.shape
    kv = k.shape[2]
    q = jnp.moveaxis(q.reshape(b, t, kv, n // kv, h), 1, 3)
    k, v = (jnp.moveaxis(x, 1, 2) for x in (k, v))
    q, k, v = _pad(q, 3), _pad(k, 2), _pad(v, 2)
    seen = Seen(
        _pad(seen.segments, 1, -1), _pad(seen.key_segments, 1, -2),
        None if seen.prefix is None else _pad(seen.prefix, 1), _pad(seen.index, 0, -1),
    )  # fmt: skip
    out = _attend(q, k, v, seen, scale, dtype)
    return jnp.moveaxis(out, 3, 1)[:, :t].reshape(b, t, n, -1)


def _pad(x, axis, value=0):
    """To whole blocks."""
    return jnp.pad(x, [(0, -size % block() if i == axis else 0) for i, size in enumerate(x.shape)], constant_values=value)


def _take(x, i, axis):
    return jax.lax.dynamic_slice_in_dim(x, i * block(), block(), axis)


def _schedule(seen: Seen) -> tuple[jax.Array, jax.Array]:
    """For each block of queries, the blocks of keys of which it may see something: (their numbers first in a row of
    int32[blocks, blocks], how many they are int32[blocks]). Judged by the smallest and largest segment of a block."""

    def ends(segments):
        by_block = segments.reshape(segments.shape[0], -1, block())
        here = by_block > 0
        return jnp.where(here, by_block, NONE).min(-1), jnp.where(here, by_block, -1).max(-1)

    def with_padding(segments):  # it comes last in a row, and sees padding
        return ends(jnp.where(segments > 0, segments, NONE))

    def meet(queries, keys):
        (first, last), (begin, end) = queries, keys
        return ((first[:, :, None] <= end[:, None, :]) & (begin[:, None, :] <= last[:, :, None])).any(0)

    keys = with_padding(seen.key_segments)
    found = meet(with_padding(seen.segments), keys)
    if seen.prefix is not None:
        found |= meet(ends(seen.prefix), keys)
    starts = jnp.arange(found.shape[1]) * block()
    found &= seen.index.reshape(-1, block()).max(-1)[:, None] >= starts
    return jnp.argsort(~found, axis=1, stable=True).astype(jnp.int32), found.sum(1, dtype=jnp.int32)


def _block_mask(seen: Seen, i, j):
    """bool[B, 1, 1, block, block]"""
    part = Seen(
        _take(seen.segments, i, 1), _take(seen.key_segments, j, 1),
        None if seen.prefix is None else _take(seen.prefix, i, 1), _take(seen.index, i, 0),
    )  # fmt: skip
    return part.mask(j * block() + jnp.arange(block()))[:, None, None]


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attend(q, k, v, seen, scale, dtype):
    """q[B, KV, G, T, H], k[B, KV, S, H], v[B, KV, S, Hv] -> [B, KV, G, T, Hv]."""
    return _forward(q, k, v, seen, scale, dtype)[0]


def _forward(q, k, v, seen, scale, dtype):
    order, count = _schedule(seen)

    def queries(i):
        mine = _take(q, i, 3)

        def keys(at, carry):
            top, total, out = carry
            j = order[i, at]
            mask = _block_mask(seen, i, j)
            scores = einsum("bkgth,bksh->bkgts", mine, _take(k, j, 2), dtype) * scale
            new_top = jnp.maximum(top, jnp.where(mask, scores, -1e30).max(-1))
            weights = jnp.where(mask, jnp.exp(scores - new_top[..., None]), 0)
            kept = jnp.exp(top - new_top)
            out = out * kept[..., None] + einsum("bkgts,bksh->bkgth", weights.astype(v.dtype), _take(v, j, 2), dtype)
            return new_top, total * kept + weights.sum(-1), out

        zero = jnp.zeros(mine.shape[:-1], jnp.float32)
        blank = jnp.zeros((*zero.shape, v.shape[-1]), jnp.float32)
        top, total, out = jax.lax.fori_loop(0, count[i], keys, (zero - 1e30, zero, blank))
        total = jnp.where(total > 0, total, 1)  # of a query that fills up a block
        return (out / total[..., None]).astype(v.dtype), top + jnp.log(total)

    out, log_z = jax.lax.map(queries, jnp.arange(len(order)))
    out, log_z = (checkpoint_name(_joined(x), "attention") for x in (out, log_z))
    return out, (q, k, v, seen, out, log_z)


def _joined(x):
    """[blocks, B, KV, G, block, ...] -> [B, KV, G, T, ...]"""
    x = jnp.moveaxis(x, 0, 3)
    return x.reshape(*x.shape[:3], -1, *x.shape[5:])


def _backward(scale, dtype, saved, g):
    q, k, v, seen, out, log_z = saved
    order, count = _schedule(seen)
    of_out = (g.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1)
    g = g.astype(v.dtype)

    def queries(carry, i):
        mine, down, norm, inner = _take(q, i, 3), _take(g, i, 3), _take(log_z, i, 3), _take(of_out, i, 3)

        def keys(at, carry):
            dq, dk, dv = carry
            j = order[i, at]
            theirs, values = _take(k, j, 2), _take(v, j, 2)
            scores = einsum("bkgth,bksh->bkgts", mine, theirs, dtype) * scale
            weights = jnp.where(_block_mask(seen, i, j), jnp.exp(scores - norm[..., None]), 0)
            d_weights = einsum("bkgth,bksh->bkgts", down, values, dtype)
            d_scores = (weights * (d_weights - inner[..., None]) * scale).astype(q.dtype)
            dq += einsum("bkgts,bksh->bkgth", d_scores, theirs, dtype)
            dk = _add(dk, j, einsum("bkgts,bkgth->bksh", d_scores, mine, dtype))
            return dq, dk, _add(dv, j, einsum("bkgts,bkgth->bksh", weights.astype(v.dtype), down, dtype))

        dq, *carry = jax.lax.fori_loop(0, count[i], keys, (jnp.zeros(mine.shape, jnp.float32), *carry))
        return tuple(carry), dq

    zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (k, v))
    (dk, dv), dq = jax.lax.scan(queries, zeros, jnp.arange(len(order)))
    return _joined(dq).astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


def _add(x, j, part):
    return jax.lax.dynamic_update_slice_in_dim(x, _take(x, j, 2) + part, j * block(), 2)


_attend.defvjp(_forward, _backward)
