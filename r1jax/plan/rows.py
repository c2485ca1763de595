"""A stage that makes rows, planned for a topology: does its sampler fit, how long do its answers take."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from r1jax import config, sharding
from r1jax.config.plan import Efficiency, Plan
from r1jax.plan import memory, money, propose, roofline
from r1jax.plan.memory import human
from r1jax.plan.topology import Topology


@dataclass(frozen=True)
class RowsPlan:
    title: str
    topology: Topology
    prompts: int
    samples: int
    answer: float
    answer_known: bool
    need: int
    """Bytes of a device for weights, cache and sampling."""
    capacity: int
    seconds: float
    """Of all answers."""
    hours: money.Range

    @property
    def fits(self) -> bool:
        return self.need <= self.capacity

    @property
    def why_not(self) -> str:
        return (
            f"{self.title} does not fit {self.topology.name}: its sampler needs {human(self.need)} per device and "
            f"{human(self.capacity)} are there; lower engine.slots or sampling.max_new_tokens, or split weights by mesh"
        )

    @property
    def line(self) -> str:
        given = "given" if self.answer_known else "assumed: a quarter of the cap"
        return (
            f"{self.title}: {self.prompts:,} prompts x {self.samples} answers of {self.answer:,.0f} tokens ({given}), "
            f"{self.seconds / 3600:,.2g} hours; {human(self.need)} of {human(self.capacity)} per device. A judge or rewriter "
            "elsewhere is not in it"
        )


def plan(
    title: str, stage: config.RejectionSampling, model: config.Model, topology: Topology, command: Plan
) -> RowsPlan:
    """Plans one stage.

    Raises:
      ConfigError: how many prompts it asks is not known from its config, or its mesh does not divide the devices.
    """
    if unbounded := [s.name for s in stage.sources if s.limit is None]:
        raise config.ConfigError(
            f"{title}: source {unbounded[0]!r} has no limit, so that only its rows tell how many prompts there are, and a plan "
            "does not read them; set the limit of each source"
        )
    prompts, cap = sum(s.limit for s in stage.sources), stage.sampling.max_new_tokens
    answer = min(command.answer_tokens or cap / 4, float(cap))
    prompt = command.prompt_tokens or max(1.0, stage.engine.max_prompt_tokens / 4)
    try:
        shape = sharding.mesh_shape(stage.mesh, topology.devices)
    except ValueError as error:
        raise config.ConfigError(f"{title} on {topology.name}: {error}") from error
    mesh = sharding.abstract_mesh(shape, topology.chip.platform, topology.chip.name)
    layout = roofline.Layout(**dict(zip(sharding.AXES, shape, strict=True)))

    def seconds(answer: float, e: Efficiency) -> float:
        batches = math.ceil(prompts / stage.together)
        load = roofline.Load(
            answers=math.ceil(prompts / batches) * stage.samples, updates=1, prompt=prompt, answer=min(answer, cap),
            longest=min(cap, e.longest * answer), slots=stage.engine.slots, group=stage.samples, workers=stage.workers.count,
            weight_bytes={"same": 0.0, "int8": 1.0, "fp8": 1.0}[stage.engine.weights],
        )  # fmt: skip
        phases = roofline.estimate(model, topology, layout, load, e).phases
        return batches * (phases["rollout"].seconds + phases["rewards"].seconds)

    known = command.answer_tokens is not None
    hours = money.spread(
        lambda *at: seconds(*at) * topology.chips / 3600, answer, command.efficiency, known=known
    )
    need = memory.Sampling.of(model, mesh, stage.engine, cap).need
    return RowsPlan(
        title, topology, prompts, stage.samples, answer, known, need, propose.capacity(topology)[0],
        seconds(answer, command.efficiency), hours,
    )  # fmt: skip


def to_json(p: RowsPlan, price: float | None) -> dict[str, Any]:
    return {
        "stage": p.title,
        "topology": p.topology.name,
        "fits": p.fits,
        "why_not": "" if p.fits else p.why_not,
        "need_bytes": p.need,
        "capacity_bytes": p.capacity,
        "answers": p.prompts * p.samples,
        "seconds": p.seconds,
        "device_hours": dataclasses.asdict(p.hours),
        "dollars": None if price is None else {n: getattr(p.hours, n) * price for n in ("low", "base", "high")},
    }
