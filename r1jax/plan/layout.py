"""Bytes per device of trees that are laid out over a mesh."""

from __future__ import annotations

import math
from typing import Any

import jax

from r1jax import params as parameters
from r1jax.train import offload
from r1jax.train.state import TrainState
from r1jax.train.update import Trainer


def laid_out(specs: Any, shardings: Any) -> Any:
    """ShapeDtypeStructs with shardings."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), parameters.abstract(specs), shardings
    )


def device_bytes(tree: Any) -> int:
    """Bytes per device of a tree of ShapeDtypeStructs with shardings, without what lies on the host."""
    return sum(shard_bytes(x) for x in jax.tree.leaves(tree) if x.sharding.memory_kind != offload.HOST)


def host_bytes(tree: Any) -> int:
    """Bytes per device of what such a tree has on the host."""
    return sum(shard_bytes(x) for x in jax.tree.leaves(tree) if x.sharding.memory_kind == offload.HOST)


def shard_bytes(x: jax.ShapeDtypeStruct) -> int:
    return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize


def largest_layer(trainer: Trainer, state: TrainState, trainable: Any) -> int:
    """Bytes per device of moments and master weights of one layer, or of one array that has no layers, where they are most."""
    per_array = host_bytes(state.opt_state) + host_bytes(state.master)
    arrays = jax.tree.leaves(trainable)
    counts = [math.prod(x.sharding.shard_shape(x.shape)) for x in arrays]
    return max(
        per_array * count // (sum(counts) * (x.shape[0] if layered else 1))
        for x, count, layered in zip(arrays, counts, trainer.layered, strict=True)
    )


def device_count(tree: Any) -> int:
    """Numbers per device of such a tree."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(tree))
