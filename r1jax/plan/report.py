"""A stage planned for a topology: what fits, how long a round takes, what the run costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from r1jax import config, sharding
from r1jax.config.plan import Plan
from r1jax.plan import auto_mesh, compiling, micro_batch, money, propose, roofline
from r1jax.plan.compiling import Program
from r1jax.plan.memory import Memory, human
from r1jax.plan.propose import Proposal
from r1jax.plan.topology import Topology

Say = Callable[[str], None]


@dataclass(frozen=True)
class StagePlan:
    title: str
    stage: config.Stage
    model: config.Model
    topology: Topology
    shape: dict[str, int]
    memory: Memory
    """The estimate."""
    programs: tuple[Program, ...]
    """As they were compiled; empty without compiling."""
    prompt: float
    answer: float
    answer_known: bool
    round: roofline.Round
    load: roofline.Load
    hours: money.Range
    proposals: tuple[Proposal, ...] = ()
    proposed: tuple[Program, ...] = ()
    """The first proposal's, compiled."""
    teacher: config.Model | None = None

    @property
    def steps_per_round(self) -> int:
        return self.load.updates

    def peak(self, program: Program) -> int:
        """Bytes of a device while this program runs: its own, and what stays beside it."""
        m = self.memory
        beside = m.sampler + m.layer if program.name == "update" else m.weights + m.moments + m.reference
        return program.need + beside + m.critic + m.teacher + m.judges

    @property
    def need(self) -> int:
        """Bytes of a device: the compiler's where it was asked, else the estimate."""
        return max((self.peak(p) for p in self.programs), default=self.memory.need)

    @property
    def fits(self) -> bool:
        if not self.programs:
            return self.memory.fits
        return not any(p.refused for p in self.programs) and self.need <= self.memory.capacity and self.memory.fits_host

    @property
    def why_not(self) -> str:
        """Why it does not fit, and what would, in one line."""
        m = self.memory
        refused = next((p.refused for p in self.programs if p.refused), "")
        if self.need <= m.capacity and not m.fits_host:
            what = f"the host would hold {human(m.host_need)} for each device and has {human(m.host_capacity)}"
        else:
            what = refused or f"it needs {human(self.need)} per device and {human(m.capacity)} are there (largest: {m.largest})"
        if self.proposals:
            told = "these fit: " + ", or ".join(
                f"{p.text} (needs {human(p.memory.need)}, {p.seconds:,.0f} s a round)" for p in self.proposals
            )
        else:
            told = "no other mesh, batch, offload, precision or larger slice that was tried would help; use a smaller model"
        return f"{self.title} does not fit {self.topology.name}: {what}; {told}"


def plan(
    title: str, stage: config.Stage, model: config.Model, topology: Topology, command: Plan, say: Say,
    teacher: config.Model | None = None,
) -> StagePlan:  # fmt: skip
    """Plans one stage.

    Args:
      teacher: as for ``memory.table``.

    Raises:
      ConfigError: sizes of the mesh do not divide the devices and no others are proposed, or compiling failed.
    """
    if stage.engine.devices:
        raise config.ConfigError("engine.devices: a sampler with devices of its own is not planned yet; set it to 0")
    prompt, answer = lengths(stage, command)
    try:
        stage = _with_mesh(stage, model, topology, say, teacher)
        shape = sharding.mesh_shape(stage.mesh, topology.devices)
        _check_size(stage, shape, topology)
        stage = _with_numbers(stage, model, shape, topology, teacher)
        memory = propose.estimate(stage, model, topology, shape, teacher)
    except ValueError as error:
        found = propose.proposals(_divisible(stage), model, topology, prompt, answer, command.efficiency, teacher=teacher)
        hint = "; these fit: " + ", or ".join(p.text for p in found) if found else ""
        raise config.ConfigError(f"{title} on {topology.name}: {error}{hint}") from error
    sizes = dict(zip(sharding.AXES, shape, strict=True))
    layout, load = roofline.of_stage(stage, model, sizes, prompt, answer, command.efficiency)
    made = roofline.estimate(model, topology, layout, load, command.efficiency)

    def hours(answer: float, e: Any) -> float:
        layout, load = roofline.of_stage(stage, model, sizes, prompt, answer, e)
        seconds = roofline.estimate(model, topology, layout, load, e).seconds
        return seconds / load.updates * stage.steps * topology.chips / 3600

    known = command.answer_tokens is not None or not isinstance(stage, config.GRPO)
    found = StagePlan(
        title, stage, model, topology, sizes, memory, (), prompt, answer, known, made, load,
        money.spread(hours, answer, command.efficiency, known=known), teacher=teacher,
    )  # fmt: skip
    if command.compile and memory.resident <= memory.capacity:
        found = dataclasses.replace(found, programs=compile_all(stage, model, topology, command, say))
    elif command.compile:
        say("not compiled: weights, moments and copies alone are more than there is")
    if not found.fits:
        found = _with_proposals(found, command, say)
    return found


def compile_all(
    stage: config.Stage, model: config.Model, topology: Topology, command: Plan, say: Say
) -> tuple[Program, ...]:
    made = []
    for name in ("update", "decode") if isinstance(stage, config.GRPO) else ("update",):
        say(f"compiling the {name} for {topology.name} ...")
        made.append(compiling.compile_stage(stage, model, topology, name, command.timeout))
        say(f"compiled the {name} in {made[-1].seconds:.0f} s")
    return tuple(made)


def _with_proposals(found: StagePlan, command: Plan, say: Say) -> StagePlan:
    """With settings that fit; if programs are compiled, the first of those that compile too."""
    say("it does not fit; looking for settings that do ...")
    own = found.stage, found.model, found.topology, found.prompt, found.answer, command.efficiency
    offered = propose.proposals(*own, wanted=3 if command.compile else 2, teacher=found.teacher)
    if not command.compile:
        return dataclasses.replace(found, proposals=tuple(offered))
    for i, offer in enumerate(offered):
        programs = compile_all(offer.stage, offer.model, offer.topology, command, say)
        tried = dataclasses.replace(
            found, stage=offer.stage, model=offer.model, topology=offer.topology, memory=offer.memory, programs=programs
        )
        if tried.fits:
            return dataclasses.replace(found, proposals=tuple(offered[i:][:2]), proposed=programs)
    return found


def lengths(stage: config.Stage, command: Plan) -> tuple[float, float]:
    """Mean tokens of a prompt and of an answer."""
    if not isinstance(stage, config.GRPO):
        answer = command.answer_tokens or stage.sequence_length / 4
        return command.prompt_tokens or min(100.0, stage.sequence_length / 4), answer
    answer = command.answer_tokens or stage.max_cap / 4
    return command.prompt_tokens or max(1.0, stage.engine.max_prompt_tokens / 4), min(answer, float(stage.max_cap))


def _check_size(stage: config.Stage, shape: list[int], topology: Topology) -> None:
    size = 1
    for n in shape:
        size *= n
    if size != topology.devices:
        raise ValueError(
            f"the mesh has {size} devices and the topology {topology.devices}; set one of its sizes to 0 to take what is left"
        )


def _with_mesh(
    stage: config.Stage, model: config.Model, topology: Topology, say: Say, teacher: config.Model | None
) -> config.Stage:
    """The stage with sizes for ``mesh.auto``."""
    if not stage.mesh.auto:
        return stage

    def make(sizes: config.Mesh) -> sharding.AnyMesh:
        shape = sharding.mesh_shape(sizes, topology.devices)
        return sharding.abstract_mesh(shape, topology.chip.platform, topology.chip.name)

    sizes, why = auto_mesh.first_that_fits(stage, model, topology.devices, make, propose.capacity(topology)[0], teacher)
    say(why)
    return dataclasses.replace(stage, mesh=sizes)


def _with_numbers(
    stage: config.Stage, model: config.Model, shape: list[int], topology: Topology, teacher: config.Model | None
) -> config.Stage:
    """The stage with its mesh's sizes and a number for ``micro_batch``."""
    stage = dataclasses.replace(stage, mesh=config.Mesh(**dict(zip(sharding.AXES, shape, strict=True))))
    mesh = sharding.abstract_mesh(shape, topology.chip.platform, topology.chip.name)
    return micro_batch.choose(stage, model, mesh, capacity=propose.capacity(topology)[0], teacher=teacher)


def _divisible(stage: config.Stage) -> config.Stage:
    """For proposals: ``auto`` has no number yet on a mesh that cannot be."""
    return dataclasses.replace(stage, micro_batch=1) if stage.micro_batch == "auto" else stage


def to_json(p: StagePlan, price: float | None) -> dict[str, Any]:
    """Everything that is shown."""
    return {
        "stage": p.title,
        "topology": p.topology.name,
        "understood": p.topology.describe(),
        "mesh": p.shape,
        "micro_batch": p.stage.micro_batch,
        "fits": p.fits,
        "why_not": "" if p.fits else p.why_not,
        "need_bytes": p.need,
        "capacity_bytes": p.memory.capacity,
        "estimate_bytes": p.memory.parts | {"at the most": p.memory.need},
        "estimate_host_bytes": p.memory.on_host,
        "programs": [dataclasses.asdict(program) | {"peak_bytes": p.peak(program)} for program in p.programs],
        "round": {
            name: dataclasses.asdict(phase) | {"seconds": phase.seconds, "seconds_without_overlap": phase.without_overlap}
            for name, phase in p.round.phases.items()
        },
        "round_seconds": p.round.seconds,
        "round_seconds_without_overlap": p.round.without_overlap,
        "step_seconds": p.round.seconds / p.steps_per_round,
        "load": dataclasses.asdict(p.load),
        "device_hours": dataclasses.asdict(p.hours),
        "dollars": None if price is None else {n: getattr(p.hours, n) * price for n in ("low", "base", "high")},
        "proposals": [
            {"flags": o.text, "topology": o.topology.name, "need_bytes": o.memory.need, "round_seconds": o.seconds}
            for o in p.proposals
        ],
        "proposed_programs": [dataclasses.asdict(program) for program in p.proposed],
    }
