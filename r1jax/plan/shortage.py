"""When memory does not suffice: what to change before a run, and an out-of-memory error in one line."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import jax

from r1jax import config, sharding
from r1jax.plan.memory import Memory, human, table


def check(found: Memory, stage: config.Stage, model: config.Model, mesh: sharding.AnyMesh) -> None:
    """Raises ConfigError, with settings that would fit, if the stage is too large."""
    if found.fits:
        return
    fitting = []
    for text, changed, its_model in smaller(stage, model, mesh):
        other = table(changed, its_model, mesh, capacity=found.capacity, host_capacity=found.host_capacity)
        other = dataclasses.replace(other, judges=found.judges, teacher=found.teacher)
        if other.fits:
            fitting.append(f"{text} (needs {human(other.need)})")
        if len(fitting) == 2:
            break
    if found.need <= (found.capacity or found.need):
        raise config.ConfigError(
            f"too large for the host: offload keeps {human(found.host_need)} of each device there and "
            f"{human(found.host_capacity)} are free; name less in offload"
        )
    least = human(found.resident)
    hint = (
        "these fit: " + ", or ".join(fitting)
        if fitting
        else f"no smaller batch, remat or fewer slots would help: weights, moments and copies alone are {least}; use a smaller "
        "model, or split it over more devices (mesh.fsdp; the sampler's weights only by mesh.tensor and mesh.expert)"
    )
    raise config.ConfigError(
        f"too large: it needs {human(found.need)} per device and {human(found.capacity)} are there ({found.largest}); " + hint
    )


def smaller(
    stage: config.Stage, model: config.Model, mesh: sharding.AnyMesh
) -> Iterator[tuple[str, config.Stage, config.Model]]:
    """(what to set, the stage, its model) of smaller settings: one change at a time, then several."""
    ways = sharding.batch_ways(mesh, sharding.TRAIN)
    changes: list[dict[str, Any]] = []
    for part in (2, 4):
        if stage.micro_batch % (part * ways) == 0:
            changes.append({"micro_batch": stage.micro_batch // part})
    if model.remat in ("none", "dots", "attention"):
        changes.append({"remat": "layer"})
    if "optimizer" not in stage.offload and sharding.platform_of(mesh) != "cpu":  # a CPU's memory is the host's
        changes.append({"offload": (*stage.offload, "optimizer")})
    if stage.engine.slots > 1:
        changes.append({"engine.slots": stage.engine.slots // 2})
    if isinstance(stage, config.GRPO) and stage.kl_beta > 0:
        changes.append({"kl_beta": 0.0})
    by_name = list({next(iter(change)): change for change in changes}.values())  # of two batch sizes the smaller
    together = [dict(item for change in by_name[:n] for item in change.items()) for n in range(2, len(by_name) + 1)]
    for change in changes + together:
        told = " with ".join(
            f"{name} {' '.join(value) if name == 'offload' else str(value).lower()}" for name, value in change.items()
        )
        fields = {name: value for name, value in change.items() if "." not in name}
        if "engine.slots" in change:
            fields["engine"] = dataclasses.replace(stage.engine, slots=change["engine.slots"])
        yield told, dataclasses.replace(stage, **fields), dataclasses.replace(model, remat=change.get("remat", model.remat))


def is_out_of_memory(error: Exception) -> bool:
    return any(mark in str(error) for mark in ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory"))


def explain(error: Exception, phase: str, found: Memory, stage: config.Stage, model: config.Model) -> str:
    """An out-of-memory error as one line: where, what was asked for, what there is, and what to change.

    Args:
      phase: of the display, and after a comma what ran within it: ``rollout, compile``.
    """
    doing, deepest = phase.partition(",")[0], model.remat in ("layer", "offload")
    if doing == "load":
        change = "split the weights over more devices (mesh.fsdp), or end what else uses these"
    elif doing in ("rollout", "eval", "preflight"):
        change = f"set engine.slots below {stage.engine.slots}"
    elif stage.micro_batch > 1:
        change = f"set micro_batch below {stage.micro_batch}" + ("" if deepest else ", or remat to layer")
    else:
        split = "split sequences or weights over more devices (mesh.context, mesh.fsdp)"
        change = split if deepest else "set remat to layer"
    return (
        f"out of memory in phase {phase}{wanted(error)}: planned were {human(found.need)} of {human(found.capacity)} per "
        f"device (largest: {found.largest}); {change}"
    )


@contextlib.contextmanager
def out_of_memory_is(change: str) -> Iterator[None]:
    """An out-of-memory error in the block, or in the function that this decorates, becomes one line that ends in ``change``."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise config.ConfigError(f"out of memory{wanted(error)}; {change}") from error


def wanted(error: Exception) -> str:
    """What an out-of-memory error tells of the size that was asked for."""
    asked = re.search(r"allocat\w*\D{0,20}([\d.]+) ?([KMGT]i?B|bytes)?", str(error))
    if asked is None:
        return ""
    plain = asked[1].isdecimal() and asked[2] in (None, "bytes")
    size = human(int(asked[1])) if plain else "".join(asked.groups())
    return f"; {size} could not be had"
