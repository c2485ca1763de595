"""The sizes of the mesh for the devices that were found, where the config leaves them to us (``mesh.auto``)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

import jax

from r1jax import config, sharding
from r1jax.plan import memory

MOST_TENSOR = 8
"""Each layer waits for the sums over this axis, which only the fastest links are made for: those inside a machine."""
LONG = 16_384
"""Tokens of a row from which on it is split before heads are."""


def choose(
    stage: config.Stage, model: config.Model, *, devices: list | None = None, capacity: int | None = None,
    teacher: config.Model | None = None,
) -> tuple[config.Mesh, str]:  # fmt: skip
    """(``stage.mesh``, or with ``auto`` sizes in its place; why, in a line, or an empty one).

    Of the meshes whose rules divide the model and the batch it is the first that ``memory.table`` says fits, in the order of
    what they send: experts apart as far as their number divides, for tokens are less than weights; the rest copies of the
    weights (``data``) if there is room, else ``fsdp``; only then heads or rows are split (``tensor``, ``context``), over as few
    devices as it takes. Where nothing fits it is that which needs least, for ``shortage.check`` to tell.

    Args:
      devices: all that were found, if None.
      capacity: bytes per device; None asks the devices. With several processes every one must ask.
      teacher: as for ``memory.table``.

    Raises:
      ConfigError: no mesh of all devices divides the model and the batch.
    """
    if not stage.mesh.auto:
        return stage.mesh, ""
    devices = jax.devices() if devices is None else devices
    if capacity is None:
        capacity = memory.available(sharding.make_mesh(config.Mesh(fsdp=len(devices)), devices))
    return first_that_fits(stage, model, len(devices), lambda sizes: sharding.make_mesh(sizes, devices), capacity, teacher)


def first_that_fits(
    stage: config.Stage, model: config.Model, count: int, make: Callable[[config.Mesh], sharding.AnyMesh], capacity: int,
    teacher: config.Model | None = None,
) -> tuple[config.Mesh, str]:  # fmt: skip
    """``choose`` for ``count`` devices, here or elsewhere: ``make`` lays a mesh over them."""
    tried: list[tuple[config.Mesh, memory.Memory]] = []
    refused = ""
    for sizes in meshes(stage, model, count):
        mesh = make(sizes)
        rows = sharding.batch_ways(mesh, sharding.TRAIN) * model.overlap
        one = dataclasses.replace(stage, micro_batch=rows) if stage.micro_batch == "auto" else stage
        try:
            tried.append((sizes, memory.table(one, model, mesh, capacity=capacity, teacher=teacher)))
        except ValueError as error:
            refused = refused or str(error)
            continue
        if tried[-1][1].fits:
            break
    if not tried:
        raise config.ConfigError(f"mesh.auto finds no mesh of {count} devices: {refused}; or set the sizes yourself")
    sizes, needed = tried[-1] if tried[-1][1].fits else min(tried, key=lambda t: t[1].need)
    return sizes, reason(sizes, needed, tried, model, count)


def meshes(stage: config.Stage, model: config.Model, count: int) -> Iterator[config.Mesh]:
    """Of ``count`` devices, in the order of what they send."""
    experts = any(s.ff == "moe" for s in model.segments) and model.moe.n_experts
    for within in (n for n in range(1, count + 1) if count % n == 0):
        splits = [(tensor, within // tensor) for tensor in range(1, min(within, MOST_TENSOR) + 1) if within % tensor == 0]
        for tensor, context in sorted(splits, reverse=stage.sequence_length < LONG):
            rest = count // (tensor * context)
            expert = math.gcd(experts, rest) if experts else 1
            yield config.Mesh(data=rest // expert, fsdp=1, expert=expert, tensor=tensor, context=context)
            if rest > expert:
                yield config.Mesh(fsdp=rest // expert, expert=expert, tensor=tensor, context=context)


def reason(
    sizes: config.Mesh, needed: memory.Memory, tried: list[tuple[config.Mesh, memory.Memory]], model: config.Model, count: int
) -> str:
    human = memory.human
    said = [f"mesh auto: {count} device{'s' * (count > 1)}: {_told(sizes)}"]
    if not needed.fits:
        return f"{said[0]}, which needs least: {human(needed.need)} on each, and {human(needed.capacity)} are there"
    if sizes.expert > 1:
        said.append(f"{model.moe.n_experts // sizes.expert} of {model.moe.n_experts} experts on each")
    if tried[0][0] != sizes:
        before, more = tried[0]
        said.append(
            f"with {_told(before)} weights, optimizer and activations would need {human(more.need)} on each, which has "
            f"{human(more.capacity)}"
        )
    said.append(f"this needs {human(needed.need)}")
    a, tensor = model.attention, sizes.tensor
    if a.kind == "gqa" and a.n_kv_heads % tensor:
        said.append(f"the {a.n_kv_heads} key-value heads are on every device")
    return "; ".join(said)


def _told(sizes: config.Mesh) -> str:
    split = [f"{axis} {getattr(sizes, axis)}" for axis in sharding.AXES if getattr(sizes, axis) > 1]
    return ", ".join(split) or "data 1"
