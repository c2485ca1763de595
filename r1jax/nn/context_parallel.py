"""Attention over rows whose tokens lie over several devices (the ``context`` axis of the mesh).

Each device has its own queries and gathers the keys: with grouped heads or a latent these are few numbers per token, one
collective a layer fetches them, and its transpose scatters their gradients. Scores, which are the work, stay split, and exist
in blocks only. A ring (Liu et al. 2023) would hold a part of the keys at a time, for as many sends as devices. Who sees whom is
decided by the tokens' places and segments, so sequences may cross the borders of devices.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from r1jax.sharding import mesh_axes, on_each_device, ways

Axes = tuple[str | None, ...]


def attend(
    inner: Callable, q: jax.Array, held: tuple[jax.Array, ...], axes: tuple[Axes, ...], keys: Callable,
    segments: jax.Array, prefix: jax.Array | None,
) -> jax.Array:  # fmt: skip
    """``inner(q, k, v, segments, key_segments, prefix, index)`` on each device, for its queries and all keys of its rows.

    Where rows are split, a device takes an early and a late part of each, for late queries see more keys: of 2c parts of a row
    over c devices the parts i and 2c - 1 - i. Queries travel for it, and what attention says travels back.

    Args:
      q: [B, T, N, H].
      held: what keys and values are made from.
      axes: logical axes of each. Those with positions, ("batch", "sequence", ...), are gathered along them.
      keys: makes (k, v) of the gathered ``held``.

    Returns:
      [B, T, N, Hv].
    """
    rows, query = ("batch", "sequence"), ("batch", "sequence", "heads", None)
    split, count = mesh_axes("sequence"), ways("sequence")
    balanced = count > 1 and q.shape[1] % (2 * count) == 0

    def gather(x, names):
        return jax.lax.all_gather(x, split, axis=1, tiled=True) if split and "sequence" in names else x

    def local(q, index, segments, *rest):
        prefix, held = (rest[0], rest[1:]) if has_prefix else (None, rest)
        k, v = keys(*(gather(x, names) for x, names in zip(held, axes, strict=True)))
        key_segments = gather(segments, rows)
        if balanced:
            q, index, segments = (_send(x, axis) for x, axis in ((q, 1), (index, 0), (segments, 1)))
            prefix = None if prefix is None else _send(prefix, 1)
        out = inner(q, k, v, segments, key_segments, prefix, index)
        return _send(out, 1, back=True) if balanced else out

    has_prefix = prefix is not None
    given = (prefix,) if has_prefix else ()
    index = jnp.arange(q.shape[1], dtype=jnp.int32)
    places = (query, ("sequence",), rows, *(rows for _ in given), *axes)
    return on_each_device(local, places, query)(q, index, segments, *given, *held)


def _send(x: jax.Array, axis: int, back: bool = False) -> jax.Array:
    """The halves of a device's part, which are the parts 2i and 2i + 1 of 2c, to where they are balanced; and back."""
    (name,), count = mesh_axes("sequence"), ways("sequence")
    sent = []
    for half, part in enumerate(jnp.split(x, 2, axis)):
        routes = [(i, min(2 * i + half, 2 * count - 1 - 2 * i - half)) for i in range(count)]
        sent.append(jax.lax.ppermute(part, name, [(b, a) for a, b in routes] if back else routes))
    return jnp.concatenate(sent, axis)
