"""Which experts have copies while answers are sampled, and on which devices: the ones that the last answers chose most.

DeepSeek-V3 serves with such redundant experts (arXiv 2412.19437, section 3.4). The busiest device is what all others wait for
in every layer of every step, and there is no gradient to be added up among copies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from r1jax import config, sharding
from r1jax.nn.copies import Copies, pass_around
from r1jax.nn.expert_parallel import KERNELS
from r1jax.rollout.loop import moe_layers
from r1jax.rollout.weights import Slice, bytes_on_all

Tree = Any


def choose(loads: np.ndarray, devices: int, places: int) -> np.ndarray:
    """int32[devices, places]: the expert in each place for copies. The next copy is always of the expert with the largest load
    per copy among those that still find a place, and it goes to the device with the smallest load; of equals the first.

    Args:
      loads: [E], how often each expert was chosen. They lie on the devices in order, as many on each.
    """
    owner = np.arange(len(loads)) // (len(loads) // devices)
    holds = owner == np.arange(devices)[:, None]
    chosen = np.full((devices, places), -1, np.int32)
    for _ in range(devices * places):
        share = loads / holds.sum(0)
        free = (chosen < 0).any(1)
        possible = (free[:, None] & ~holds).any(0)
        expert = int(np.argmax(np.where(possible, share, -1.0)))
        device = int(np.argmin(np.where(free & ~holds[:, expert], holds @ share, np.inf)))
        holds[device, expert] = True
        chosen[device, int(np.argmax(chosen[device] < 0))] = expert
    return chosen


def tables(chosen: np.ndarray, n_experts: int) -> tuple[np.ndarray, np.ndarray]:
    """``Copies.places`` and ``Copies.counts`` of what ``choose`` chose."""
    devices, more = chosen.shape
    own = n_experts // devices
    where = [[e // own * (own + more) + e % own] for e in range(n_experts)]
    for device, experts in enumerate(chosen.tolist()):
        for i, expert in enumerate(experts):
            where[expert].append(device * (own + more) + own + i)
    places = np.array([row + [0] * (devices - len(row)) for row in where], np.int32)
    return places, np.array([len(row) for row in where], np.int32)


def busiest(loads: np.ndarray, devices: int, chosen: Sequence[np.ndarray] | None = None) -> float:
    """The load of the busiest device over the mean of all, mean over the layers: 1 is even.

    Args:
      loads: [L, E].
      chosen: of each layer, what ``choose`` chose; None where there are no copies.
    """
    found = []
    for i, load in enumerate(loads):
        held = np.repeat(np.eye(devices), len(load) // devices, axis=1)
        if chosen is not None:
            np.put_along_axis(held, chosen[i], 1.0, axis=1)
        each = held @ (load / held.sum(0))
        found.append(each.max() / max(each.mean(), 1e-9))
    return float(np.mean(found))


class HotExperts:
    """Puts copies beside the experts of each layer. The multi-token-prediction module's have none.

    Args:
      places: for copies, on each device.
      where: of the sampler's weights, layer by layer: ``Weights.apart``.
    """

    def __init__(self, model: config.Model, places: int, mesh: sharding.AnyMesh, rules: sharding.Rules, where: Tree):
        self._model, self._places, self._mesh, self._axes = model, places, mesh, rules["experts"]
        self.devices = int(np.prod([mesh.shape[a] for a in self._axes]))
        self._layers = moe_layers(model)
        self.written = 0
        """Bytes that the last ``attach`` wrote, on all devices together."""
        self.chosen = self._choose(None)
        """int32[devices, places] of each layer: the experts that are copied."""
        first = next(where["segments"][i][0] for i, s in enumerate(model.segments) if s.ff == "moe")
        specs = jax.tree.map(lambda s: s.spec, {name: first["ff"][name] for name in KERNELS})
        self._copy = jax.jit(
            jax.shard_map(
                lambda kernels, wanted: jax.tree.map(lambda x: pass_around(x, wanted, self._axes), kernels),
                mesh=mesh, in_specs=(specs, PartitionSpec()), out_specs=specs, check_vma=False,
            )
        )  # fmt: skip

    def attach(self, weights: Tree, loads: np.ndarray | None) -> Tree:
        """The weights with ``Copies`` in the feed-forward of each layer that has experts.

        Args:
          loads: [L, E], the same on all processes: how often each layer's experts were chosen. None: as if all alike.
        """
        self.written, self.chosen = 0, self._choose(loads)
        layers = iter(self.chosen)
        everywhere = NamedSharding(self._mesh, PartitionSpec())

        def make(kernels: dict) -> Copies:
            chosen = next(layers)
            found = tables(chosen, self._experts)
            put = [jax.make_array_from_callback(x.shape, everywhere, lambda i, x=x: x[i]) for x in found]
            # One layer after the other, so that no more than one is cut out of a stack that the trainer holds.
            made = jax.block_until_ready(self._copy(jax.tree.map(_cut, kernels, is_leaf=_is_slice), chosen))
            self.written += bytes_on_all(made)
            return Copies(made, *put)

        return self._beside(weights, make)

    def abstract(self, weights: Tree) -> Tree:
        """As ``attach``, of ShapeDtypeStructs with shardings."""
        everywhere = NamedSharding(self._mesh, PartitionSpec())

        def table(*shape: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=everywhere)

        def one(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            shape = (self.devices * self._places, *x.shape[1:])
            return jax.ShapeDtypeStruct(shape, x.dtype, sharding=x.sharding)

        e = self._experts
        return self._beside(weights, lambda kernels: Copies(jax.tree.map(one, kernels), table(e, self.devices), table(e)))

    @property
    def _experts(self) -> int:
        return self._model.moe.n_experts

    def _choose(self, loads: np.ndarray | None) -> list[np.ndarray]:
        if loads is None:
            return [choose(np.ones(self._experts), self.devices, self._places)] * self._layers
        return [choose(load, self.devices, self._places) for load in loads]

    def _beside(self, weights: Tree, make: Callable[[dict], Copies]) -> Tree:
        def one(layer: dict) -> dict:
            return {**layer, "ff": {**layer["ff"], "copies": make({name: layer["ff"][name] for name in KERNELS})}}

        segments = zip(self._model.segments, weights["segments"], strict=True)
        return {**weights, "segments": tuple(tuple(map(one, own)) if s.ff == "moe" else own for s, own in segments)}


def _is_slice(x: Any) -> bool:
    return isinstance(x, Slice)


def _cut(x: jax.Array | Slice) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(x.stack, np.int32(x.index), keepdims=False) if _is_slice(x) else x
