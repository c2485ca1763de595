"""Where arrays lie: one mesh, one table of rules per phase, and ``constrain``.

Models name logical axes. Only this file and the configs know mesh axes. The same weights are laid out by the ``train`` table
while they learn and by the ``decode`` table while they generate.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding, PartitionSpec

from r1jax import config
from r1jax.params import map_specs

AXES = ("data", "fsdp", "expert", "tensor", "context")
Phase = Literal["train", "decode"]
Rules = Mapping[str, tuple[str, ...]]
AnyMesh = jax.sharding.Mesh | AbstractMesh
"""An abstract one names platform and device kind but has no devices: what it lays out can be counted, not made."""

TRAIN: Rules = {
    "batch": ("data", "fsdp", "expert"),
    "sequence": ("context",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "experts": ("expert",),
    # Devices with other tokens would hold the same weights. Those with other experts hold other ones already.
    "embed": ("fsdp", "expert", "context"),
    "rank": ("fsdp", "expert", "context"),
}
FEW = ("kv_heads", "rank")
"""Axes that every device has whole where the mesh does not divide them."""

# A token reads every weight once, so weights stay where they are and rows travel: nothing is split over fsdp, which would have
# to be gathered for every token, and in a product rows give way to the weights' axes. Weights that are too large so are split
# by mesh.tensor or mesh.expert. One token per row leaves no sequence to split, so the context axis takes rows too.
DECODE: Rules = {
    **{name: axes for name, axes in TRAIN.items() if name not in ("batch", "sequence", "embed", "rank")},
    "batch": ("data", "fsdp", "expert", "context"),
}

# The latent cache has no head axis: splitting heads would copy it to every tensor device, so rows go there instead.
DECODE_LATENT: Rules = {**DECODE, "heads": (), "batch": (*DECODE["batch"], "tensor")}


def rules(phase: Phase, attention: str) -> Rules:
    """The table of a phase. ``attention`` is the model's ``attention.kind``."""
    if phase == "train":
        return TRAIN
    return DECODE_LATENT if attention == "mla" else DECODE


def make_mesh(sizes: config.Mesh, devices: list | None = None) -> jax.sharding.Mesh:
    """The mesh of all devices, or of the first ones if one process asks for fewer. Axes are Auto: the compiler inserts the
    collectives.

    Raises:
      ValueError: the sizes need more devices than there are, do not divide them, or leave out devices of another process.
    """
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(sizes, len(devices))
    if jax.process_count() == 1:
        devices = devices[: math.prod(shape)]
    if math.prod(shape) != len(devices):
        raise ValueError(
            f"mesh {dict(zip(AXES, shape, strict=True))} needs {math.prod(shape)} devices, {len(devices)} were found; "
            "set one size to 0 to take what is left"
        )
    grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return jax.sharding.Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def mesh_shape(sizes: config.Mesh, devices: int) -> list[int]:
    """The sizes of ``AXES``, with a number for 0.

    Raises:
      ValueError: the sizes do not divide the devices.
    """
    shape = [getattr(sizes, axis) for axis in AXES]
    if 0 in shape:
        rest, left = divmod(devices, math.prod(s for s in shape if s))
        if left or not rest:
            raise ValueError(f"mesh {dict(zip(AXES, shape, strict=True))} does not divide the {devices} devices found")
        shape[shape.index(0)] = rest
    return shape


def abstract_mesh(shape: list[int], platform: str, device_kind: str) -> AbstractMesh:
    """A mesh of devices that are not here."""
    device = AbstractDevice(device_kind, None, platform)
    return AbstractMesh(tuple(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES), abstract_device=device)


def trainer_devices(engine: config.Engine) -> list:
    """The devices that train: all, or those that ``engine.devices`` leaves.

    Raises:
      ValueError: no device is left, or there are several processes.
    """
    devices = jax.devices()
    if not engine.devices:
        return devices
    if jax.process_count() > 1:
        raise ValueError(
            f"engine.devices is {engine.devices}, but there are {jax.process_count()} processes: weights are sent to other "
            "devices within one process only; set it to 0, and engine.mesh to how the sampler uses all of them"
        )
    if engine.devices >= len(devices):
        raise ValueError(f"engine.devices is {engine.devices} of {len(devices)}; leave at least one for the trainer")
    return devices[: -engine.devices]


def trainer_mesh(sizes: config.Mesh, engine: config.Engine) -> jax.sharding.Mesh:
    """``make_mesh`` of the devices that train.

    Raises:
      ValueError: as ``make_mesh`` and ``trainer_devices`` do.
    """
    return make_mesh(sizes, trainer_devices(engine))


def sampler_mesh(engine: config.Engine, mesh: AnyMesh) -> AnyMesh:
    """Where a stage samples whose trainer has ``mesh``.

    Raises:
      ValueError: as ``make_mesh``.
      ConfigError: as ``config.Engine.check_mesh``.
    """
    where = _sampler_mesh(engine, mesh)
    engine.check_mesh(where.shape["expert"])
    return where


def _sampler_mesh(engine: config.Engine, mesh: AnyMesh) -> AnyMesh:
    if isinstance(mesh, AbstractMesh) and (engine.devices or engine.mesh != config.Mesh()):
        device = mesh.abstract_device
        return abstract_mesh(mesh_shape(engine.mesh, engine.devices or mesh.size), device.platform, device.device_kind)
    if engine.devices:
        return make_mesh(engine.mesh, jax.devices()[-engine.devices :])
    return mesh if engine.mesh == config.Mesh() else make_mesh(engine.mesh, list(mesh.devices.flat))


def describe(mesh: AnyMesh) -> str:
    device = mesh.abstract_device if isinstance(mesh, AbstractMesh) else mesh.devices.flat[0]
    split = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1)
    return f"{mesh.size} x {device.device_kind}" + (f" as {split}" if split else "")


def partition(axes: tuple[str | None, ...], table: Rules) -> PartitionSpec:
    """Mesh axes for logical axes. A mesh axis splits at most one array axis: that of the first name in the table."""
    return PartitionSpec(*(part or None for part in _parts(axes, table)))


def _parts(axes: tuple[str | None, ...], table: Rules) -> list[tuple[str, ...]]:
    used: set[str] = set()
    parts: list[tuple[str, ...]] = [()] * len(axes)
    for name, places in table.items():
        if name in axes:
            parts[axes.index(name)] = tuple(a for a in places if a not in used)
            used.update(places)
    return parts


def few_whole(shape: tuple[int, ...], axes: tuple[str | None, ...], mesh: AnyMesh, table: Rules):
    """``axes`` without KV heads that the mesh does not divide: there are few of them, and every device has them all."""
    ways = math.prod(mesh.shape[a] for a in table.get("kv_heads", ()))
    return tuple(None if name == "kv_heads" and size % ways else name for size, name in zip(shape, axes, strict=True))


def param_shardings(specs: Any, mesh: AnyMesh, table: Rules) -> Any:
    """A NamedSharding per ParamSpec.

    Raises:
      ValueError: an axis is not a multiple of the devices it is split over. Those of ``FEW`` are replicated instead.
    """

    def one(spec):
        parts = _parts(spec.axes, table)
        for i, (size, part) in enumerate(zip(spec.shape, parts, strict=True)):
            ways = math.prod(mesh.shape[a] for a in part)
            if size % ways and spec.axes[i] in FEW:
                parts[i] = ()
            elif size % ways:
                raise ValueError(
                    f"the {spec.axes[i]!r} axis of an array {spec.shape} has {size} entries, not a multiple of "
                    f"the {ways} devices of mesh axes {part}; choose other mesh sizes"
                )
        return NamedSharding(mesh, PartitionSpec(*(part or None for part in parts)))

    return map_specs(one, specs)


def batch_ways(mesh: AnyMesh, table: Rules) -> int:
    """Over how many devices the rows of a batch lie."""
    return math.prod(mesh.shape[a] for a in table["batch"])


_current: contextvars.ContextVar[tuple[AnyMesh, Rules] | None] = contextvars.ContextVar("sharding", default=None)


@contextlib.contextmanager
def using(mesh: AnyMesh, table: Rules):
    """Makes ``constrain`` follow this mesh and table while functions are traced inside."""
    token = _current.set((mesh, table))
    try:
        yield
    finally:
        _current.reset(token)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Fixes the layout of an intermediate array by its logical axes; nothing outside ``using`` or on one device."""
    current = _current.get()
    if current is None or current[0].size == 1:
        return x
    mesh, table = current
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, partition(few_whole(x.shape, axes, mesh, table), table)))


def one_device() -> bool:
    """Whether what is being traced will run on one device."""
    current = _current.get()
    return current is None or current[0].size == 1


def has_rules() -> bool:
    """Whether what is being traced will run on several devices, by a table of rules."""
    return not one_device() and bool(_current.get()[1])


def platform() -> str:
    """``cpu``, ``gpu`` or ``tpu``: where what is being traced will run."""
    current = _current.get()
    return jax.devices()[0].platform if current is None else platform_of(current[0])


def platform_of(mesh: AnyMesh) -> str:
    """``cpu``, ``gpu`` or ``tpu``."""
    return mesh.abstract_device.platform if isinstance(mesh, AbstractMesh) else mesh.devices.flat[0].platform


def ways(axis: str) -> int:
    """Over how many devices this logical axis is split in what is being traced."""
    current = _current.get()
    return 1 if current is None else math.prod(current[0].shape[a] for a in current[1].get(axis, ()))


def mesh_axes(axis: str) -> tuple[str, ...]:
    """The mesh axes of more than one device over which this logical axis is split in what is being traced."""
    current = _current.get()
    return () if current is None else tuple(a for a in current[1].get(axis, ()) if current[0].shape[a] > 1)


def on_each_device(f: Callable, inputs: tuple[tuple[str | None, ...], ...], output: Any) -> Callable:
    """``f`` called by each device with its own parts of the arrays, which lie by these logical axes; for kernels that the
    compiler cannot split. Outside ``using``, on one device or without rules ``f`` itself.

    Args:
      output: logical axes of what ``f`` returns; a list of them for a list of arrays.
    """
    mesh, table = _current.get() or (None, {})
    if mesh is None or mesh.size == 1 or not table:
        return f
    specs = tuple(partition(axes, table) for axes in inputs)
    out = [partition(axes, table) for axes in output] if isinstance(output, list) else partition(output, table)
    return jax.shard_map(f, mesh=mesh, in_specs=specs, out_specs=out, check_vma=False)


def put(x: np.ndarray, mesh: jax.sharding.Mesh, table: Rules, *axes: str | None) -> jax.Array:
    """A host array that every process holds becomes one global array; each process uploads its own part."""
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, NamedSharding(mesh, partition(axes, table)), lambda index: x[index])


def fetch_rows(x: jax.Array, rows: Sequence[int]) -> np.ndarray:
    """As ``fetch``, but only these rows of x[S, ...] mean anything: of what lies with other processes no more travels."""
    out = np.zeros(x.shape, x.dtype)
    if not rows:
        return out
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    few = 1 << (len(rows) - 1).bit_length()  # one program for numbers that differ little
    padded = np.array([*rows, *[rows[0]] * (few - len(rows))], np.int32)
    everywhere = NamedSharding(x.sharding.mesh, PartitionSpec())
    out[padded] = np.asarray(_take_rows(x, padded, where=everywhere))
    return out


@partial(jax.jit, static_argnames="where")
def _take_rows(x: jax.Array, rows: jax.Array, where: NamedSharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(x[rows], where)


def fetch(x: jax.Array) -> np.ndarray:
    """A global array as a whole on every host."""
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))
