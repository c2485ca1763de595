"""A model's weights as the decode loop reads them: layer by layer, each kernel with the axes that are summed over last."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from r1jax import params as parameters
from r1jax import sharding
from r1jax.nn.matmul import Turned
from r1jax.params import ParamSpec, is_spec, map_specs

Tree = Any


class Weights:
    """Takes weights whose segments are stacked, as ``specs`` say, apart. A scan over stacked layers would copy every layer's
    out of the stack for each token."""

    def __init__(self, specs: Tree, mesh: Mesh, rules: sharding.Rules):
        self.specs = specs
        self.stacked = sharding.param_shardings(specs, mesh, rules)
        self.apart = take_apart(lie, specs, self.stacked)
        self._take = jax.jit(lambda p: take_apart(turn, specs, parameters.cast(p, specs)), out_shardings=self.apart)

    def take(self, params: Tree) -> Tree:
        """A copy of ``params`` in the types of ``specs``."""
        return self._take(params)

    def take_over(self, params: Tree) -> Tree:
        """``params`` themselves, which are in these types and laid out by ``stacked``. They go array by array, so that no
        second model stands beside the first."""

        def one(spec: ParamSpec, x: jax.Array, layers: range | None) -> Any:
            where = lie(spec, x.sharding, layers)
            out = jax.block_until_ready(jax.jit(lambda x: turn(spec, x, layers), out_shardings=where)(x))
            x.delete()
            return out

        return take_apart(one, self.specs, params)


def take_apart(f: Callable, specs: Tree, tree: Tree) -> Tree:
    """``f(spec, x, None)`` in the place of each array x, and of each stacked one a layer of ``f(spec, x, layers)``."""

    def segment(specs: Tree, tree: Tree) -> Tree:
        found, structure = jax.tree.flatten(specs, is_leaf=is_spec)
        layers = range(found[0].shape[0])
        stacks = [f(spec, x, layers) for spec, x in zip(found, structure.flatten_up_to(tree), strict=True)]
        return tuple(structure.unflatten(own) for own in zip(*stacks, strict=True))

    return {
        name: tuple(map(segment, own, tree[name])) if name == "segments" else map_specs(partial(_whole, f), own, tree[name])
        for name, own in specs.items()
    }


def _whole(f: Callable, spec: ParamSpec, x: Any) -> Any:
    return f(spec, x, None)


def turn(spec: ParamSpec, x: jax.Array, layers: range | None) -> Any:
    """An array; of a kernel that ``nn.matmul.project`` takes, ``Turned``. Of a stack a list, one for each layer."""
    if layers is not None:
        return [turn(dataclasses.replace(spec, shape=spec.shape[1:], axes=spec.axes[1:]), x[i], None) for i in layers]
    return Turned(jnp.moveaxis(x, range(spec.inputs), range(-spec.inputs, 0))) if _is_turned(spec) else x


def lie(spec: ParamSpec, where: NamedSharding, layers: range | None) -> Any:
    """Where ``turn`` puts it."""
    axes = list(where.spec) + [None] * (len(spec.shape) - len(where.spec))
    if layers is not None:
        own = dataclasses.replace(spec, shape=spec.shape[1:], axes=spec.axes[1:])
        return [lie(own, NamedSharding(where.mesh, PartitionSpec(*axes[1:])), None) for _ in layers]
    if not _is_turned(spec):
        return NamedSharding(where.mesh, PartitionSpec(*axes))
    return Turned(NamedSharding(where.mesh, PartitionSpec(*axes[spec.inputs :], *axes[: spec.inputs])))


def _is_turned(spec: ParamSpec) -> bool:
    return spec.inputs > 0 and "experts" not in spec.axes
