"""The key-value cache: one array per segment of layers, ``[B, L, S, ...]``.

Row b's slot s holds position s of that row, so a refilled or padded row needs no clearing: a slot is always written before a
query can see it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from r1jax import config
from r1jax.nn import gqa, mla
from r1jax.sharding import constrain


def shapes(model: config.Model, batch: int, length: int) -> list[tuple[tuple[int, ...], tuple[str | None, ...]]]:
    """(shape, logical axes) per segment."""
    room = mla if model.attention.kind == "mla" else gqa
    shape, axes = room.cache_shape(model, batch, length)
    return [((batch, segment.count, *shape[1:]), (axes[0], "layers", *axes[1:])) for segment in model.segments]


def create(model: config.Model, batch: int, length: int) -> tuple[jax.Array, ...]:
    """An empty cache for ``batch`` rows of ``length`` tokens in the model's activation type; inside jit, born where it
    belongs."""
    return tuple(constrain(jnp.zeros(shape, model.dtype), *axes) for shape, axes in shapes(model, batch, length))


def extend(
    cache: tuple[jax.Array, ...], model: config.Model, batch: int, length: int, rows: jax.Array
) -> tuple[jax.Array, ...]:
    """A longer cache whose row b starts with row ``rows[b]`` of ``cache``: how the answers to a question share its prefill."""
    fresh = create(model, batch, length)
    return tuple(
        jax.lax.dynamic_update_slice(new, old[rows], (0,) * new.ndim) for new, old in zip(fresh, cache, strict=True)
    )
