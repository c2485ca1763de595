"""A model's weights as the decode loop reads them: layer by layer, each kernel with the axes that are summed over last.

A scan over stacked layers would copy every layer's weights out of the stack for each token. Only where the trainer's own arrays
are shared is that price paid.

The trainer's layout becomes the sampler's in one program, in which each layer is cut out of its stack before it is gathered,
and no device has more of an array than in one of the two layouts: see ``rollout.ways``. No program reaches from some devices to
others: there array after array is sent, and then cut.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from r1jax import params as parameters
from r1jax import sharding
from r1jax.nn import quantized
from r1jax.nn.matmul import Turned
from r1jax.params import ParamSpec, is_spec, map_specs
from r1jax.rollout.ways import way

Tree = Any


@struct.dataclass
class Slice:
    """A layer of an array that the trainer holds, stacked."""

    stack: jax.Array
    index: int = struct.field(pytree_node=False)


class Weights:
    """Takes weights over, round after round. What does not move is taken once, and not copied where type and layout are the
    trainer's already: the trainer must never donate it.

    Args:
      specs: of the weights, segments stacked.
      moves: bool per parameter: the trainer may change it.
    """

    def __init__(self, specs: Tree, mesh: Mesh, rules: sharding.Rules, moves: Tree):
        self.specs, self._moves, self._devices = specs, moves, tuple(mesh.devices.flat)
        self.written = 0
        """Bytes that the last ``take`` wrote, on all devices together."""
        self.shardings = sharding.param_shardings(specs, mesh, rules)
        self._counts = [jax.tree.leaves(s, is_leaf=is_spec)[0].shape[0] for s in specs["segments"]]
        (self._moving, self._still), (lie_moving, self._lie) = (parameters.split(t, moves) for t in (specs, self.shardings))
        self._copy = self._copier(self._moving, lie_moving)
        self._given: list[jax.Array] | None = None
        self._taken: Tree = None

    @property
    def apart(self) -> Tree:
        """Where the arrays of a copy lie."""
        return self._apart(lie, self.specs, self.shardings)

    def abstract(self) -> Tree:
        """ShapeDtypeStructs of a copy, with shardings."""

        def one(spec: ParamSpec, where: NamedSharding, layers: range | None) -> Any:
            x = jax.ShapeDtypeStruct(spec.shape, jnp.dtype(spec.dtype))
            made = jax.eval_shape(lambda x: turn(spec, x, layers), x)
            return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), made, lie(spec, where, layers))

        return self._apart(one, self.specs, self.shardings)

    def take(self, params: Tree) -> Tree:
        """A copy in the types of ``specs``. Only what moves is read again, as long as the rest are the very arrays of the call
        before."""
        moving, still = parameters.split(params, self._moves)
        given = jax.tree.leaves(still)
        self.written = 0
        if not given:
            return self._count(self._copy(moving))
        if self._given is None or any(a is not b for a, b in zip(given, self._given, strict=True)):
            self._given = self._taken = None  # or there would be two copies while the new one is made
            self._taken = self._take_still(still)
            self._given = given
        return _merge(self._count(self._copy(moving)), self._taken)

    def take_over(self, params: Tree) -> Tree:
        """``params`` themselves, which have these types and lie as ``shardings`` say. They go array by array, so that no
        second model stands beside the first."""

        return self._apart(_turn_over, self.specs, params)

    def _take_still(self, still: Tree) -> Tree:
        as_they_are = jax.tree.map(fits, still, self._still, self._lie)
        shared, rest = parameters.split(still, as_they_are)
        of_shared, specs = parameters.split(self._still, as_they_are)
        _, where = parameters.split(self._lie, as_they_are)
        return _merge(self._apart(_share, of_shared, shared), self._count(self._copier(specs, where)(rest)))

    def lower(self, params: Tree) -> jax.stages.Lowered:
        """The program of ``take`` for ShapeDtypeStructs on the same devices, to be compiled; nothing may stay between calls."""
        return self._program(self.specs, self.shardings).lower(params, _ways(self.specs, self.shardings, params))

    def _program(self, specs: Tree, where: Tree) -> Any:
        @partial(jax.jit, out_shardings=self._apart(lie, specs, where), static_argnums=1)
        def copy(params, ways):
            leaves, structure = jax.tree.flatten(specs, is_leaf=is_spec)
            pairs = zip(structure.flatten_up_to(quantized.read(params, specs)), ways, strict=True)
            return self._apart(lambda spec, x, layers: turn(spec, x[0], layers, x[1]), specs, structure.unflatten(pairs))

        return copy

    def _copier(self, specs: Tree, where: Tree) -> Callable[[Tree], Tree]:
        copy = self._program(specs, where)

        def send(params):
            def one(spec, x, where):
                sent = jax.device_put(quantized.read(x, spec), where, may_alias=False)
                return jax.block_until_ready(sent)  # or all would be read before the first has left

            sent = jax.tree.map(one, specs, params, where, is_leaf=lambda x: is_spec(x) or quantized.is_quantized(x))
            return self._apart(_turn_over, specs, sent)

        def by_devices(params):
            here = all(_devices(x.sharding) == self._devices for x in jax.tree.leaves(params))
            return copy(params, _ways(specs, where, params)) if here else send(params)

        return by_devices

    def _count(self, copied: Tree) -> Tree:
        self.written += bytes_on_all(copied)
        return copied

    def _apart(self, f: Callable, specs: Tree, tree: Tree) -> Tree:
        """``f(spec, x, None)`` in the place of each array x, and of each stacked one a layer of ``f(spec, x, layers)``."""

        def segment(specs: Tree, tree: Tree, count: int) -> Tree:
            found, structure = jax.tree.flatten(specs, is_leaf=is_spec)
            stacks = [f(s, x, range(count)) for s, x in zip(found, structure.flatten_up_to(tree), strict=True)]
            return tuple(structure.unflatten([stack[i] for stack in stacks]) for i in range(count))

        return {
            name: tuple(map(segment, own, tree[name], self._counts))
            if name == "segments"
            else map_specs(lambda s, x: f(s, x, None), own, tree[name])
            for name, own in specs.items()
        }


def bytes_on_all(tree: Tree) -> int:
    """Of a tree of arrays, on all devices together."""
    each = ((x.sharding, x.shape, x.dtype.itemsize) for x in jax.tree.leaves(tree))
    return sum(len(where.device_set) * math.prod(where.shard_shape(shape)) * size for where, shape, size in each)


def fits(x: Any, wanted: ParamSpec, where: jax.sharding.Sharding) -> bool:
    """Whether an array of a trainer has the dtype of ``wanted`` and lies as a sampler wants it."""
    return x.dtype == wanted.dtype and x.sharding.is_equivalent_to(where, x.ndim)


def read(weights: Tree, now: jax.Array) -> Tree:
    """Arrays in the place of ``Slice``s.

    Args:
      now: what changes from step to step: so that layers are copied out of their stack when they are read, one by one, and not
        all of them before a loop.
    """

    def one(x):
        if not isinstance(x, Slice):
            return x
        index, _ = jax.lax.optimization_barrier((jnp.int32(x.index), now))
        return jax.lax.dynamic_index_in_dim(x.stack, index, keepdims=False)

    return jax.tree.map(one, weights, is_leaf=lambda x: isinstance(x, Slice | Turned))


def turn(spec: ParamSpec, x: jax.Array, layers: range | None, way: tuple[NamedSharding, ...] = ()) -> Any:
    """An array; of a kernel that ``nn.matmul.project`` takes, ``Turned``. Of a stack a list, one for each layer.

    Args:
      way: layouts that the array, or a layer of the stack, has one after the other.
    """
    if layers is not None:
        return [turn(_layer(spec), x[i], None, way) for i in layers]
    for where in way:
        x = jax.lax.with_sharding_constraint(x, where)
    return Turned(jnp.moveaxis(x, range(spec.inputs), range(-spec.inputs, 0))) if _is_turned(spec) else x


def lie(spec: ParamSpec, where: NamedSharding, layers: range | None) -> Any:
    """Where ``turn`` puts it."""
    axes = list(where.spec) + [None] * (len(spec.shape) - len(where.spec))
    if layers is not None:
        return [lie(_layer(spec), NamedSharding(where.mesh, PartitionSpec(*axes[1:])), None) for _ in layers]
    if not _is_turned(spec):
        return NamedSharding(where.mesh, PartitionSpec(*axes))
    return Turned(NamedSharding(where.mesh, PartitionSpec(*axes[spec.inputs :], *axes[: spec.inputs])))


def _ways(specs: Tree, where: Tree, params: Tree) -> tuple[tuple[NamedSharding, ...], ...]:
    """``turn``'s ``way`` of each spec. What is made on the way, the factors of kernels in 8 bits, is small and has none."""

    def layer(of: NamedSharding, spec: ParamSpec) -> NamedSharding:
        return NamedSharding(of.mesh, PartitionSpec(*of.spec[1:])) if spec.axes[:1] == ("layers",) else of

    def one(spec: Any, x: jax.Array, to: Any) -> Any:
        whole = spec.values if quantized.is_quantized(spec) else spec
        to = to.values if quantized.is_quantized(to) else to
        found = ()
        if isinstance(x.sharding, NamedSharding):
            found = way(x.ndim - (whole.axes[:1] == ("layers",)), layer(x.sharding, whole), layer(to, whole))
        return [found, ()] if quantized.is_quantized(spec) else [found]

    def is_one(x: Any) -> bool:
        return is_spec(x) or quantized.is_quantized(x)

    leaves, structure = jax.tree.flatten(specs, is_leaf=is_one)
    each = zip(leaves, structure.flatten_up_to(params), structure.flatten_up_to(where), strict=True)
    return tuple(found for spec, x, to in each for found in one(spec, x, to))


def _devices(where: jax.sharding.Sharding) -> tuple[jax.Device, ...]:
    """In their order, which a program has too."""
    return tuple(where.mesh.devices.flat) if isinstance(where, NamedSharding) else tuple(where.device_set)


def _turn_over(spec: ParamSpec, x: jax.Array, layers: range | None) -> Any:
    """As ``turn``; x is no more."""
    if layers is None and not _is_turned(spec):
        return x
    out = jax.jit(lambda x: turn(spec, x, layers), out_shardings=lie(spec, x.sharding, layers))(x)
    jax.block_until_ready(out)
    x.delete()
    return out


def _share(spec: ParamSpec, x: jax.Array, layers: range | None) -> Any:
    return x if layers is None else [Slice(x, i) for i in layers]


def _layer(spec: ParamSpec) -> ParamSpec:
    return dataclasses.replace(spec, shape=spec.shape[1:], axes=spec.axes[1:])


def _is_turned(spec: ParamSpec) -> bool:
    return spec.inputs > 0 and "experts" not in spec.axes


def _merge(a: Tree, b: Tree) -> Tree:
    return jax.tree.map(lambda x, y: y if x is None else x, a, b, is_leaf=lambda x: x is None or isinstance(x, Turned | Slice))
