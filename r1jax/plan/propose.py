"""Settings that fit where a stage's own do not: tried in the order of what they are predicted to cost."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from r1jax import config, sharding
from r1jax.config.plan import Efficiency
from r1jax.plan import memory, roofline, topology
from r1jax.plan.memory import Memory
from r1jax.plan.topology import Topology

PER_CHANGE = 1.03
"""Each change counts as so many times the time: of two settings as fast, the one with fewer changes."""
MOST_TRIED, MOST_ELSEWHERE = 10, 3
"""Meshes, batches and remats that are traced on a topology: a second or two each for 671B parameters."""
USABLE = 0.95
"""Of a device's memory: the rest is the runtime's."""


@dataclass(frozen=True)
class Proposal:
    changes: dict[str, Any]
    """Flag -> value."""
    stage: config.Stage
    model: config.Model
    topology: Topology
    memory: Memory
    seconds: float
    """Of a round."""

    @property
    def text(self) -> str:
        flags = [f"--{name.replace('_', '-')} {_told(value)}" for name, value in self.changes.items()]
        return " ".join(flags)


def capacity(t: Topology) -> tuple[int, int | None]:
    """Bytes of a device that a run can use, and of its host for each device."""
    host = None if t.chip.host is None else int(t.of_device(t.chip.host) * 0.9)
    return int(t.of_device(t.chip.memory) * USABLE), host


def estimate(
    stage: config.Stage, model: config.Model, t: Topology, shape: list[int], teacher: config.Model | None = None
) -> Memory:
    """The memory of a stage with a number for ``micro_batch`` on devices that are not here. ``teacher`` as for
    ``memory.table``.

    Raises:
      ValueError: batch or model do not divide over the mesh.
    """
    mesh = sharding.abstract_mesh(shape, t.chip.platform, t.chip.name)
    room, host = capacity(t)
    return memory.table(stage, model, mesh, capacity=room, host_capacity=host, teacher=teacher)


def proposals(
    stage: config.Stage, model: config.Model, t: Topology, prompt: float, answer: float, e: Efficiency, wanted: int = 2,
    teacher: config.Model | None = None,
) -> list[Proposal]:  # fmt: skip
    """Up to ``wanted`` settings that fit this topology; if there are none, the smallest other topologies that do."""
    found = list(itertools.islice(_fitting(stage, model, t, prompt, answer, e, teacher), wanted))
    if found:
        return found
    return list(itertools.islice(_elsewhere(stage, model, t, prompt, answer, e, teacher), wanted))


def _fitting(
    stage, model, t: Topology, prompt: float, answer: float, e: Efficiency, teacher: config.Model | None, most: int = 0
) -> Iterator[Proposal]:
    """Tries meshes and batches, at most so many; 0 is ``MOST_TRIED``."""
    most = most or MOST_TRIED
    room, host = capacity(t)
    ranked = []
    for changes, changed, its_model, shape in candidates(stage, model, t):
        need, on_host = at_least(changed, its_model, shape)
        if need > room * 0.9 or (host is not None and on_host > host):
            continue
        layout, load = roofline.of_stage(changed, its_model, dict(zip(sharding.AXES, shape, strict=True)), prompt, answer, e)
        seconds = roofline.estimate(its_model, t, layout, load, e).seconds
        ranked.append((seconds * PER_CHANGE ** len(changes), seconds, changes, changed, its_model, shape))
    ranked.sort(key=lambda r: r[0])
    traced: dict[tuple, int] = {}  # what a backward pass keeps does not depend on offload, moments, slots or the sampler
    for _, seconds, changes, changed, its_model, shape in ranked:
        key = (tuple(shape), changed.micro_batch, its_model.remat)
        if key in traced and at_least(changed, its_model, shape)[0] + traced[key] > room:
            continue
        if key not in traced and len(traced) == most:
            return
        try:
            needed = estimate(changed, its_model, t, shape, teacher)
        except ValueError:
            traced[key] = room
            continue
        traced[key] = needed.activations
        if needed.fits:
            yield Proposal(changes, changed, its_model, t, needed, seconds)


def _elsewhere(
    stage, model, t: Topology, prompt: float, answer: float, e: Efficiency, teacher: config.Model | None
) -> Iterator[Proposal]:
    for name in larger(t):
        other = topology.parse(name)
        for found in itertools.islice(_fitting(stage, model, other, prompt, answer, e, teacher, MOST_ELSEWHERE), 1):
            yield dataclasses.replace(found, changes={"topology": name} | found.changes)


def larger(t: Topology) -> list[str]:
    """More of the same chip, then other chips, the fewest devices first."""
    sizes = [2**n for n in range(14)]
    same = [f"{t.chip.name}:{n}" for n in sizes if n > t.chips]
    others = [f"{name}:{n}" for n in sizes for name in ("h200", "h800", "v5p", "tpu7x") if name != t.chip.name]
    out = []
    for name in same + others:
        try:
            other = topology.parse(name)
        except config.ConfigError:
            continue
        if other.devices * other.of_device(other.chip.memory) > t.devices * t.of_device(t.chip.memory):
            out.append(name)
    return out[:8]


# -- What can be changed


def candidates(
    stage: config.Stage, model: config.Model, t: Topology
) -> Iterator[tuple[dict[str, Any], config.Stage, config.Model, list[int]]]:
    """(changes, stage, model, mesh shape) of every combination, the stage's own among them."""
    grpo = isinstance(stage, config.GRPO)
    offloads = [stage.offload]
    for names in (("reference",), ("optimizer",), ("optimizer", "reference")):
        more = tuple(sorted({*stage.offload, *names}))
        if ("reference" not in names or (grpo and stage.kl_beta > 0)) and more not in offloads:
            offloads.append(more)
    slots = [stage.engine.slots >> n for n in range(3) if stage.engine.slots >> n] if grpo else [stage.engine.slots]
    weights = list(dict.fromkeys([stage.engine.weights, "fp8"])) if grpo and not stage.lora.rank else [stage.engine.weights]
    remats = list(dict.fromkeys([model.remat, "layer", "offload"]))
    moments = list(dict.fromkeys([stage.optimizer.moments_dtype, "bfloat16"]))
    for shape in shapes(stage, model, t.devices):
        sizes = dict(zip(sharding.AXES, shape, strict=True))
        batches = micro_batches(stage, sizes)
        for offload, count, held, remat, moment, batch in itertools.product(
            offloads, slots, weights, remats, moments, batches
        ):
            changes: dict[str, Any] = {}
            own = own_shape(stage, t.devices)
            if shape != own:
                before = dict.fromkeys(sizes, 0) if own is None else dict(zip(sharding.AXES, own, strict=True))
                changes |= {f"mesh.{axis}": n for axis, n in sizes.items() if n != before[axis]}
            asked = (
                ("micro_batch", batch, stage.micro_batch), ("offload", offload, stage.offload),
                ("optimizer.moments_dtype", moment, stage.optimizer.moments_dtype), ("remat", remat, model.remat),
                ("engine.slots", count, stage.engine.slots), ("engine.weights", held, stage.engine.weights),
            )  # fmt: skip
            changes |= {name: value for name, value, was in asked if value != was}
            changed = dataclasses.replace(
                stage, mesh=config.Mesh(**sizes), micro_batch=batch, offload=offload, remat=remat,
                optimizer=dataclasses.replace(stage.optimizer, moments_dtype=moment),
                engine=dataclasses.replace(stage.engine, slots=count, weights=held),
            )  # fmt: skip
            yield changes, changed, dataclasses.replace(model, remat=remat), shape


def own_shape(stage: config.Stage, devices: int) -> list[int] | None:
    try:
        shape = sharding.mesh_shape(stage.mesh, devices)
    except ValueError:
        return None
    return shape if math.prod(shape) == devices else None


def shapes(stage: config.Stage, model: config.Model, devices: int) -> Iterator[list[int]]:
    """The stage's own mesh first, then every other that divides heads, experts and rows."""
    own = own_shape(stage, devices)
    if own is not None:
        yield own
    heads, experts = model.attention.n_heads, model.moe.n_experts if model.moe else 1
    for tensor in _powers(min(8, devices)):
        for context in _powers(devices // tensor):
            for expert in _powers(devices // (tensor * context)):
                fsdp = devices // (tensor * context * expert)
                whole = fsdp * expert * tensor * context == devices
                divides = heads % tensor == 0 and experts % expert == 0 and stage.sequence_length % context == 0
                shape = [1, fsdp, expert, tensor, context]
                divides &= model.d_model % (fsdp * expert * context) == 0
                if whole and divides and shape != own and context <= 16:
                    yield shape


def micro_batches(stage: config.Stage, sizes: dict[str, int]) -> list[int]:
    """The stage's number if it divides over the mesh, and the smallest that does."""
    least = sizes["data"] * sizes["fsdp"] * sizes["expert"]
    own = [stage.micro_batch] if stage.micro_batch % least == 0 else []
    return list(dict.fromkeys([*own, least]))


def _powers(most: int) -> Iterator[int]:
    n = 1
    while n <= most:
        yield n
        n *= 2


def at_least(stage: config.Stage, model: config.Model, shape: list[int]) -> tuple[float, float]:
    """Bytes that a device and its host hold at the least: weights, moments, gradients, the sampler's copy. Without a trace, so
    that thousands of settings can be left out."""
    _, fsdp, expert, tensor, context = shape
    held = sum(roofline.parameters(model)) / (fsdp * expert * tensor * context)
    narrow = 2 if model.param_dtype == "bfloat16" else 4
    state = (8 if stage.optimizer.moments_dtype == "float32" else 4) + (4 if narrow == 2 else 0)
    reference = narrow if isinstance(stage, config.GRPO) and stage.kl_beta > 0 and not stage.lora.rank else 0
    if stage.lora.rank:
        state = gradients = 0
    else:
        gradients = narrow + 4
    on_host = state * ("optimizer" in stage.offload) + reference * ("reference" in stage.offload)
    sampler = 0.0
    if isinstance(stage, config.GRPO) and not stage.lora.rank:
        layout, load = roofline.Layout(fsdp, expert, tensor, context), roofline.Load(1, 1, 1, 1, 1, 1)
        numbers = {"same": 0.0, "int8": 1.0, "fp8": 1.0}[stage.engine.weights]
        sampler = roofline.sampler_bytes(model, layout, dataclasses.replace(load, weight_bytes=numbers))
    return held * (narrow + state + reference + gradients - on_host) + sampler, held * on_host


def _told(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
