"""Everything that changes while a model learns."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec

from r1jax import params as parameters
from r1jax import sharding
from r1jax.train import offload as offloading


@struct.dataclass
class TrainState:
    """Gradients and moments exist for trainable parameters only. Gradients are float32 whatever the parameters are, moments
    what ``optimizer.moments_dtype`` says."""

    step: jax.Array
    """int32[]: updates made or skipped."""
    skipped: jax.Array
    """int32[]: updates left out because loss or gradient was not finite."""
    params: Any
    """All of them; in a checkpoint of a LoRA run the adapters alone."""
    master: Any
    """float32 of the trainable parameters where these are held in less, else None. Steps of R1's size (3e-6) round away in
    bfloat16, so they are added up here."""
    opt_state: Any
    reference: Any
    """The policy at the last refresh, or None without a KL term. Of a LoRA run the adapters at the last refresh; None if there
    is never one: the reference then has them off."""
    critic: Any = None
    """In a checkpoint of PPO the critic's own state; else None."""


def create(params: Any, mask: Any, tx: optax.GradientTransformation, *, reference: bool) -> TrainState:
    """A fresh state around ``params``. ``mask`` is ``params.trainable_mask``. Jit it with ``shardings`` as out_shardings."""
    trainable, _ = parameters.split(params, mask)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
        params=params,
        master=float32(trainable) if needs_master(trainable) else None,
        opt_state=tx.init(float32(trainable)),
        reference=jax.tree.map(jnp.copy, params) if reference else None,
    )


def needs_master(trainable: Any) -> bool:
    return any(x.dtype != jnp.float32 for x in jax.tree.leaves(trainable))


def float32(tree: Any) -> Any:
    """What moments and sums of gradients look like: a sum in bfloat16 would lose what is added to it."""
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def shardings(
    specs: Any,
    mask: Any,
    tx: optax.GradientTransformation,
    mesh: sharding.AnyMesh,
    *,
    reference: bool,
    offload: tuple[str, ...] = (),
) -> TrainState:
    """A TrainState of NamedShardings: moments lie where their parameter lies, or with ``offload`` in the memory of that
    device's host."""
    where = sharding.param_shardings(specs, mesh, sharding.TRAIN)
    everywhere = NamedSharding(mesh, PartitionSpec())
    trainable, _ = parameters.split(parameters.abstract(specs), mask)
    where_trainable, _ = parameters.split(where, mask)
    if "optimizer" in offload:
        where_trainable = offloading.on_host(where_trainable)
    moments = jax.eval_shape(lambda p: tx.init(float32(p)), trainable)
    opt_state = optax.tree_utils.tree_map_params(
        tx, lambda _, s: s, moments, where_trainable, transform_non_params=lambda _: everywhere
    )
    return TrainState(
        step=everywhere,
        skipped=everywhere,
        params=where,
        master=where_trainable if needs_master(trainable) else None,
        opt_state=opt_state,
        reference=(offloading.on_host(where) if "reference" in offload else where) if reference else None,
    )


def abstract(
    specs: Any,
    mask: Any,
    tx: optax.GradientTransformation,
    mesh: sharding.AnyMesh,
    *,
    reference: bool,
    offload: tuple[str, ...] = (),
) -> TrainState:
    """Shapes, dtypes and shardings, for restoring and for counting bytes; creates no array."""
    shapes = jax.eval_shape(lambda p: create(p, mask, tx, reference=reference), parameters.abstract(specs))
    where = shardings(specs, mask, tx, mesh, reference=reference, offload=offload)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, where)
