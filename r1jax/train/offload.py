"""The optimizer's step, one layer at a time, so that its state may rest in the host's memory and no more than a layer of it is
on the device."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import optax
from jax.sharding import NamedSharding

from r1jax import config, sharding
from r1jax.params import ParamSpec

HOST = "pinned_host"
SHARED = -1  # what belongs to no parameter: the number of updates
FEW = 2**24
"""Numbers of an array on a device, up to which its state comes as a whole: a TPU lays layers of few numbers into tiles
together, and cannot fetch a part of a tile from its host."""

Tree = Any
Step = Callable[[Tree, Tree, Tree, Tree], tuple[Tree, Tree, Tree]]
"""(gradients, optimizer state, master weights or None, parameters) -> (parameters, master weights or None, optimizer state)."""


def check(stage: config.Stage, mesh: sharding.AnyMesh) -> None:
    """Raises ConfigError if the stage wants memory that the devices cannot reach."""
    if isinstance(mesh, jax.sharding.AbstractMesh):
        return
    here = [d for d in mesh.devices.flat if d.process_index == jax.process_index()]
    reached = {m.kind for d in here[:1] for m in d.addressable_memories()}  # devices that are only described have none
    if stage.offload and reached and HOST not in reached:
        raise config.ConfigError(
            f"offload is {', '.join(stage.offload)}, but {here[0].device_kind} devices reach no memory of the host "
            f"({HOST}) through this JAX; leave offload empty"
        )


def is_layered(spec: ParamSpec, where: NamedSharding) -> bool:
    """Whether a parameter's state comes to the device a layer at a time."""
    return spec.axes[:1] == ("layers",) and math.prod(where.shard_shape(spec.shape)) > FEW


def on_host(shardings: Tree) -> Tree:
    """The same shardings, in the host's memory."""
    return jax.tree.map(lambda s: s.with_memory_kind(HOST), shardings)


def to_device(tree: Tree) -> Tree:
    """Inside jit: brought to the device; what is there stays."""
    return jax.device_put(tree, jax.memory.Space.Device)


def to_host(tree: Tree) -> Tree:
    return jax.device_put(tree, jax.memory.Space.Host)


def by_layer(
    step: Step,
    tx: optax.GradientTransformation,
    layered: list[bool],
    grads: Tree,
    opt_state: Tree,
    master: Tree,
    params: Tree,
    *,
    hosted: bool,
) -> tuple[Tree, Tree, Tree]:
    """What ``step(grads, opt_state, master, params)`` returns, made of one array after another, and of an array of layers one
    layer after another. Wherever its state lies it is the same arithmetic, rounded alike, if ``step`` is a computation of its
    own (the branch of a ``cond``).

    Args:
      step: treats each number by itself.
      layered: for each leaf of ``params``: its first axis counts layers.
      hosted: moments and ``master`` are in the host's memory, and what is returned of them is to be. All else is on the device.
    """
    values, structure = jax.tree.flatten(params)
    masters = [None] * len(values) if master is None else jax.tree.leaves(master)
    numbers = structure.unflatten(range(len(values)))
    owners = optax.tree_utils.tree_map_params(tx, lambda _, i: i, opt_state, numbers, transform_non_params=lambda _: SHARED)
    owners, state_structure = jax.tree.flatten(owners)
    state = jax.tree.leaves(opt_state)
    shared = before = [x for x, owner in zip(state, owners, strict=True) if owner == SHARED]

    def one(i: int, grad, value, held):
        """Of array i or of one of its layers: (value, held, shared), where held is (master, moments)."""

        def alone(x):
            return None if x is None else structure.unflatten([x if j == i else None for j in range(len(values))])

        exact, moments = to_device(held) if hosted else held
        parts = {i: iter(moments), SHARED: iter(before)}
        mine = state_structure.unflatten([next(parts[owner]) if owner in parts else None for owner in owners])
        value, exact, mine = (jax.tree.leaves(tree) for tree in step(alone(grad), mine, alone(exact), alone(value)))
        found = list(zip([owner for owner in owners if owner in parts], mine, strict=True))
        held = exact[0] if exact else None, [x for owner, x in found if owner == i]
        return value[0], to_host(held) if hosted else held, [x for owner, x in found if owner == SHARED]

    def loop(i: int, grad, layer, carry):
        value, held, _ = carry
        new = one(i, *jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, layer, keepdims=False), (grad, value, held)))
        value, held = jax.tree.map(
            lambda x, part: jax.lax.dynamic_update_index_in_dim(x, part, layer, 0), (value, held), new[:2]
        )
        return value, held, new[2]

    for i, grad in enumerate(jax.tree.leaves(grads)):
        at = [k for k, owner in enumerate(owners) if owner == i]
        held = masters[i], [state[k] for k in at]
        if layered[i]:
            values[i], held, shared = jax.lax.fori_loop(0, grad.shape[0], partial(loop, i, grad), (values[i], held, shared))
        else:
            # Not before the gradient is there: until then the device has other uses for its memory.
            held, grad = jax.lax.optimization_barrier((held, grad))
            values[i], held, shared = one(i, grad, values[i], held)
        masters[i] = held[0]
        for k, x in zip(at, held[1], strict=True):
            state[k] = x
    rest = iter(shared)
    state = [next(rest) if owner == SHARED else x for x, owner in zip(state, owners, strict=True)]
    return (
        structure.unflatten(values),
        None if master is None else structure.unflatten(masters),
        state_structure.unflatten(state),
    )
