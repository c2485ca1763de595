"""The key-value cache: for every layer a tuple of blocks, each of them the arrays of its attention for a stretch of positions.

Blocks lie one behind the other along the positions. A cache grows by one more block, so what is there is never copied, and
gives blocks back when no row is long any more. Row b's place for position p holds that row's token p, in whichever block p
lies; a place is always written before a query can see it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from r1jax import config
from r1jax.nn import gqa, mla
from r1jax.sharding import constrain, one_device, platform

Layer = tuple[tuple[jax.Array, ...], ...]
Cache = tuple[Layer, ...]


def _room(model: config.Model):
    return mla if model.attention.kind == "mla" else gqa


def shapes(model: config.Model, rows: int, length: int) -> tuple[tuple[tuple[int, ...], tuple[str | None, ...]], ...]:
    """(shape, logical axes) of each array of one layer's block of ``length`` positions."""
    return _room(model).cache_shapes(model, rows, length)


def dtype(model: config.Model) -> jnp.dtype:
    """Of what is held: the activations', but float32 on a CPU, where XLA widens a whole bfloat16 array to write a token."""
    return jnp.dtype("float32" if platform() == "cpu" else model.dtype)


def create(model: config.Model, rows: int, length: int, *, mtp: bool = False) -> Cache:
    """A cache of one empty block for ``rows`` rows, in ``dtype(model)``; inside jit, born where it belongs.

    Args:
      mtp: one layer more, the last, for the multi-token-prediction module.
    """
    return tuple(
        (tuple(constrain(jnp.zeros(shape, dtype(model)), *axes) for shape, axes in shapes(model, rows, length)),)
        for _ in range(model.n_layers + mtp)
    )


def grow(cache: Cache, block: Cache) -> Cache:
    """``cache`` with the blocks of ``block`` behind its own. Nothing is computed."""
    return tuple((*layer, *more) for layer, more in zip(cache, block, strict=True))


def shrink(cache: Cache, blocks: int) -> Cache:
    """The first ``blocks`` blocks."""
    return tuple(layer[:blocks] for layer in cache)


def lengths(cache: Cache, model: config.Model) -> list[int]:
    """Positions in each block."""
    axis = _room(model).TIME[0]
    return [block[0].shape[axis] for block in cache[0]]


def place(cache: Cache, fresh: Cache, model: config.Model, owner: jax.Array, taken: jax.Array) -> Cache:
    """Row b starts anew with row ``owner[b]`` of ``fresh`` wherever bool[S] ``taken``: how the answers to a question share its
    prefill. The rest of such a row is set to 0, so that nothing of the one before is left, not even a nan.

    Args:
      fresh: a cache of one block, of any length.
    """
    axes = _room(model).TIME
    in_place = platform() == "cpu" and one_device()

    def blocks(layer: Layer, new: Layer, cut: Callable) -> Layer:
        out, start = [], 0
        for block in layer:
            size = block[0].shape[axes[0]]
            out.append(tuple(cut(old, x, axis, start, size) for old, x, axis in zip(block, new[0], axes, strict=True)))
            start += size
        return tuple(out)

    def every(cache: Cache, cut: Callable) -> Cache:
        return tuple(blocks(layer, new, cut) for layer, new in zip(cache, fresh, strict=True))

    def all_rows(old, x, axis, start, size):
        whole = _part(x, axis, start, size)[owner].astype(old.dtype)
        return jnp.where(taken.reshape(-1, *(1,) * (x.ndim - 1)), whole, old)

    if not in_place:
        return every(cache, all_rows)
    slots = jnp.argsort(~taken, stable=True)

    def one_row(i, cache):  # what the other rows hold is neither read nor written
        def write(old, x, axis, start, size):
            row = jax.lax.dynamic_slice_in_dim(x, owner[slots[i]], 1, axis=0)
            return jax.lax.dynamic_update_slice_in_dim(old, _part(row, axis, start, size).astype(old.dtype), slots[i], axis=0)

        return every(cache, write)

    return jax.lax.fori_loop(0, taken.sum(), one_row, cache)


def _part(x: jax.Array, axis: int, start: int, size: int) -> jax.Array:
    """``size`` positions of x from ``start`` on, and zeros where it has none."""
    here = jax.lax.slice_in_dim(x, min(start, x.shape[axis]), min(start + size, x.shape[axis]), axis=axis)
    return jnp.pad(here, [(0, size - here.shape[axis] if i == axis else 0) for i in range(x.ndim)])


def per_token(model: config.Model, *, mtp: bool = False, dtype: jnp.dtype | None = None) -> int:
    """Bytes that a token takes in all layers.

    Args:
      dtype: what it is held in; None is the activations' type.
    """
    layers = model.n_layers + mtp
    return sum(math.prod(shape) for shape, _ in shapes(model, 1, 1)) * jnp.dtype(dtype or model.dtype).itemsize * layers
