"""Tensors of a checkpoint go into the stacked arrays on the devices, slice by slice.

R1's stacked experts are one array of 436 GB, so no array is ever whole on a host: each is made on the devices, and a tensor is
written to its place there. The next one is read meanwhile, but not the one after: two are on the host at most.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.convert.names import Entry
from r1jax.params import ParamSpec, is_spec, path_name

SMALL = 1 << 20  # bytes: such a shard is put together on the host, for compiling an update would take longer

Needed = Callable[[np.ndarray], Iterable[np.ndarray]]
"""The views of a tensor that will be looked at, given an array of its shape."""
Read = Callable[[str, np.dtype, Needed], np.ndarray]
"""A tensor by name; in the dtype if it must be computed. Where nothing is needed, it may hold anything."""
Progress = Callable[[int, int], None]
"""Told (bytes done, bytes in all)."""


def fill(
    specs: Any, shardings: Any, entries: Sequence[Entry], nbytes: Mapping[str, int], read: Read, progress: Progress
) -> Any:
    """Parameters like ``specs``, laid out by ``shardings``. Each process reads what its own devices hold.

    Args:
      entries: of all tensors; together they make up every array.
      nbytes: of the tensors, as they are stored.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(specs, is_leaf=is_spec)
    stacks = {path_name(key): Stack(spec, s) for (key, spec), s in zip(leaves, jax.tree.leaves(shardings), strict=True)}
    done, total, under_way = 0, sum(nbytes[entry.name] for entry in entries), []
    # The largest come first, while the devices still have room for what is under way beside the arrays.
    for entry in sorted(entries, key=lambda entry: -nbytes[entry.name]):
        pieces = read_pieces(entry, stacks, read)
        jax.block_until_ready(under_way)
        under_way = [stack.write(device, at, value) for stack, device, at, value in pieces]
        del pieces
        done += nbytes[entry.name]
        progress(done, total)
    return jax.tree.unflatten(structure, [stack.array() for stack in stacks.values()])


def read_pieces(
    entry: Entry, stacks: Mapping[str, Stack], read: Read
) -> list[tuple[Stack, jax.Device, tuple[int, ...], np.ndarray]]:
    """What this process's devices hold of a tensor: (array, device, leading index in its shard, value)."""
    found = [(number, stacks["/".join(map(str, part.path))], part.index) for number, part in enumerate(entry.parts)]
    places = [(number, stack, *place) for number, stack, index in found for place in stack.places(index)]
    if not places:
        return []

    def cut(whole: np.ndarray) -> list[np.ndarray]:
        parts = entry.split(whole)
        return [parts[number][rest] for number, _, _, _, rest in places]

    values = cut(read(entry.name, found[0][1].dtype, cut))
    return [(stack, device, at, value) for (_, stack, device, at, _), value in zip(places, values, strict=True)]


class Stack:
    """One array under construction: a shard on each device of this process."""

    def __init__(self, spec: ParamSpec, sharding: jax.sharding.Sharding):
        self.shape, self.dtype, self.sharding = spec.shape, jnp.dtype(spec.dtype), sharding
        self.where = {
            device: tuple(slice(*s.indices(n)) for s, n in zip(index, spec.shape, strict=True))
            for device, index in sharding.addressable_devices_indices_map(spec.shape).items()
        }
        self.shards: dict[jax.Device, jax.Array | np.ndarray] = {}

    def places(self, index: tuple[int, ...]) -> Iterator[tuple[jax.Device, tuple[int, ...], tuple[slice, ...]]]:
        """Where the slice at a leading index goes: (device, leading index in its shard, the part of the slice it holds)."""
        for device, held in self.where.items():
            lead, rest = held[: len(index)], held[len(index) :]
            if all(s.start <= i < s.stop for i, s in zip(index, lead, strict=True)):
                yield device, tuple(i - s.start for i, s in zip(index, lead, strict=True)), rest

    def write(self, device: jax.Device, at: tuple[int, ...], value: np.ndarray) -> jax.Array | np.ndarray:
        shard = self.shards[device] if device in self.shards else self._begin(device)
        if isinstance(shard, np.ndarray):
            shard[at] = value
        else:
            start = np.array(at + (0,) * value.ndim, np.int32)
            shard = _write(shard, jax.device_put(value, device), start)
        self.shards[device] = shard
        return shard

    def _begin(self, device: jax.Device) -> jax.Array | np.ndarray:
        shape = tuple(s.stop - s.start for s in self.where[device])
        if math.prod(shape) * self.dtype.itemsize <= SMALL:
            return np.empty(shape, self.dtype)
        return jnp.zeros(shape, self.dtype, device=device)

    def array(self) -> jax.Array:
        shards = [jax.device_put(shard, device) for device, shard in self.shards.items()]
        return jax.make_array_from_single_device_arrays(self.shape, self.sharding, shards)


@partial(jax.jit, donate_argnums=0)
def _write(shard: jax.Array, value: jax.Array, start: jax.Array) -> jax.Array:
    """The shard with the value, in the shard's dtype, from ``start`` on."""
    value = value.astype(shard.dtype).reshape((1,) * (shard.ndim - value.ndim) + value.shape)
    # As bits: XLA:CPU turns the whole of a bfloat16 shard into float32 and back to change a slice of it.
    bits = jnp.dtype(f"uint{8 * shard.dtype.itemsize}")
    shard_bits, value_bits = (jax.lax.bitcast_convert_type(x, bits) for x in (shard, value))
    return jax.lax.bitcast_convert_type(jax.lax.dynamic_update_slice(shard_bits, value_bits, tuple(start)), shard.dtype)
