"""Copies of experts that many tokens choose: "redundant experts" (DeepSeek-V3, arXiv 2412.19437, section 3.4).

A device holds some experts of others beside its own, and an expert's tokens are shared out among its copies. What a token's
experts are and what they say of it does not change, only where it is said.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Copies:
    """Of a layer with E experts on n devices, so E / n each, and H copies of others beside them."""

    kernels: dict[str, Any]
    """The copies' ``gate``, ``up`` and ``down``, each [n * H, ...] as the experts' own."""
    places: jax.Array
    """int32[E, n]: where each expert is, first where it is at home: device * (E / n + H) + place there, those of copies last.
    What stands behind ``counts`` means nothing."""
    counts: jax.Array
    """int32[E]: at how many places."""

    @property
    def here(self) -> int:
        """Copies on a device, inside ``shard_map``."""
        return jax.tree.leaves(self.kernels)[0].shape[0]

    def share_out(self, experts: jax.Array, first: jax.Array) -> jax.Array:
        """int32[n, K] places in the stead of experts[n, K]: token t, counted from ``first``, goes to copy t modulo their
        number."""
        turn = first + jnp.arange(experts.shape[0], dtype=jnp.int32)
        return self.places[experts, turn[:, None] % self.counts[experts]]


def pass_around(x: jax.Array, wanted: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """Inside ``shard_map``: rows of others. A block of rows for each device goes round the ring of all, and each puts in those
    that are its own: no device ever holds more than two blocks beside its x.

    Args:
      x: [E / n, ...], a device's own rows of n devices'.
      wanted: int32[n, H], the rows for each device, as numbers among all E.

    Returns:
      [H, ...], x's dtype.
    """
    devices, me, own = wanted.shape[0], jax.lax.axis_index(axes), x.shape[0]
    ring = [(i, (i + 1) % devices) for i in range(devices)]

    def step(i, block):
        rows = wanted[(me - i) % devices] - me * own
        mine = ((rows >= 0) & (rows < own)).reshape(-1, *(1,) * (x.ndim - 1))
        block = jnp.where(mine, x[jnp.clip(rows, 0, own - 1)], block)
        return jax.lax.ppermute(block, axes, ring)

    return jax.lax.fori_loop(0, devices, step, jnp.zeros((wanted.shape[1], *x.shape[1:]), x.dtype))
