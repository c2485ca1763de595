"""What both attentions share: who sees whom, attention within packed rows, the softmax, and the rows of a cache."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from r1jax.nn import context_parallel, fused_attention
from r1jax.nn.chunked_attention import Seen, chunked
from r1jax.nn.matmul import beside, einsum
from r1jax.sharding import platform, ways

MASKED = -1e30  # finite: a row that sees nothing (padding) stays finite instead of nan
LONG = 128  # tokens of a row above which the chunked form is faster, if there is no kernel


class Packed(NamedTuple):
    """Which sequences the tokens of rows belong to: see ``packed_mask``."""

    segments: jax.Array
    """int32[B, T]"""
    prefix: jax.Array | None
    """int32[B, T]"""


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


def attend(q: jax.Array, k: jax.Array, v: jax.Array, packed: Packed, *, scale: float, dtype: str, kernel: str) -> jax.Array:
    """Attention within packed rows: [B, T, N, Hv] in v's dtype.

    Args:
      q: [B, T, N, H].
      k: [B, T, KV, H]; N / KV heads of the queries share one.
      v: [B, T, KV, Hv].
      scale: multiplies the scores.
      dtype: operand type of the model's products. Where it is bfloat16 or FP8, these have bfloat16 operands and float32 sums;
        float32 leaves the types as they are and asks for the highest precision.
      kernel: ``config.Model.attention_kernel``.

    Raises:
      ValueError: the fused kernel is asked for where it cannot be had.
    """
    form = _form(kernel, q.shape[1], packed, dtype)
    if form == "reference":
        kept = v.dtype
        out = reference(*_operands(q, k, v, dtype), packed_mask(*packed), scale, dtype)
        return checkpoint_name(out, "attention").astype(kept)
    if k.shape[2] % ways("kv_heads"):  # each device gets the keys that its queries need
        k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    axes = ("batch", "sequence", "kv_heads" if k.shape[2] < q.shape[2] else "heads", None)
    return context_parallel.attend(
        _inner(form, scale, dtype), q, (k, v), (axes, axes), lambda k, v: (k, v), packed.segments, packed.prefix
    )


def attend_made(
    q: jax.Array, held: tuple[jax.Array, ...], axes: tuple[tuple[str | None, ...], ...], keys: Callable, packed: Packed, *,
    scale: float, dtype: str, kernel: str,
) -> jax.Array | None:  # fmt: skip
    """``attend`` with the keys and values that ``keys(*held)`` makes on each device of a split row, once it has gathered what
    they are made from: see ``context_parallel.attend``. None where rows are whole, or scores of all pairs are held."""
    if ways("sequence") == 1 or (form := _form(kernel, q.shape[1], packed, dtype)) == "reference":
        return None
    return context_parallel.attend(_inner(form, scale, dtype), q, held, axes, keys, packed.segments, packed.prefix)


def _inner(form: str, scale: float, dtype: str) -> Callable:
    whole = ways("sequence") == 1

    def inner(q, k, v, segments, key_segments, prefix, index):
        kept, seen = v.dtype, Seen(segments, key_segments, prefix, index)
        q, k, v = _operands(q, k, v, dtype)
        if form == "chunked":
            return chunked(q, k, v, seen, scale, dtype).astype(kept)
        return fused_attention.fused(q, k, v, seen, scale, dtype, causal=whole).astype(kept)

    return inner


def _operands(q: jax.Array, k: jax.Array, v: jax.Array, dtype: str) -> tuple[jax.Array, ...]:
    """In the type of the model's products; float32 ones leave what they find."""
    return (q, k, v) if dtype == "float32" else tuple(x.astype(beside(dtype)) for x in (q, k, v))


def _form(kernel: str, length: int, packed: Packed, dtype: str) -> str:
    if kernel in ("reference", "chunked"):
        return kernel
    why_not = fused_attention.missing(dtype, shared=packed.prefix is not None, split=ways("sequence") > 1)
    if kernel == "fused":
        if why_not:
            raise ValueError(f"attention_kernel is 'fused', but {why_not}; set it to 'auto' or 'chunked'")
        return "fused"
    if platform() != "cpu" and not why_not:
        return "fused"
    return "chunked" if length > LONG else "reference"


def reference(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, scale: float, dtype: str) -> jax.Array:
    """``attend`` under bool mask[B, T, S], with the scores of every head at once."""
    b, t, n, h = q.shape
    kv = k.shape[2]
    scores = einsum("btkgh,bskh->bkgts", q.reshape(b, t, kv, n // kv, h), k, dtype) * scale
    # "bkgth" and not "btkgh": XLA:CPU cannot run the transposed bfloat16 product with float32 sums.
    out = einsum("bkgts,bskh->bkgth", softmax(scores, mask, v.dtype), v, dtype)
    return jnp.moveaxis(out, 3, 1).astype(v.dtype).reshape(b, t, n, -1)


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
