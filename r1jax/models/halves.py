"""A batch in two halves that go through the layers side by side, so that one's tokens can travel while the other computes
(DeepSeek-V3, arXiv 2412.19437, sections 3.2.1 and 3.4.2, between micro-batches; here inside a layer).

Nothing orders them but what each needs: the compiler's scheduler starts one half's collectives before the other's products.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from r1jax.sharding import constrain, ways


def divides(rows: int) -> bool:
    """Whether every device can halve its own of so many rows."""
    return rows % (2 * ways("batch")) == 0


def split_tree(tree: Any) -> tuple[Any, Any]:
    """``split`` of every array."""
    leaves, structure = jax.tree.flatten(tree)
    return tuple(structure.unflatten(half) for half in zip(*map(split, leaves), strict=True)) if leaves else (tree, tree)


def split(x: jax.Array, axis: int = 0) -> list[jax.Array]:
    """Two arrays, each with half of every device's rows along ``axis``: no row leaves its device."""
    rows = (ways("batch"), 2, x.shape[axis] // (2 * ways("batch")))
    parts = x.reshape(*x.shape[:axis], *rows, *x.shape[axis + 1 :])
    halves = (jax.lax.index_in_dim(parts, i, axis + 1, keepdims=False) for i in range(2))
    return [_lay(h.reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :]), axis) for h in halves]


def join(halves: Sequence[jax.Array], axis: int = 0) -> jax.Array:
    """The inverse of ``split``."""
    shape = halves[0].shape
    parts = [h.reshape(*shape[:axis], ways("batch"), -1, *shape[axis + 1 :]) for h in halves]
    return _lay(jnp.stack(parts, axis + 1).reshape(*shape[:axis], 2 * shape[axis], *shape[axis + 1 :]), axis)


def _lay(x: jax.Array, axis: int) -> jax.Array:
    return constrain(x, *(None,) * axis, "batch", "sequence", *(None,) * (x.ndim - axis - 2))
