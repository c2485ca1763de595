"""``r1jax plan``: every stage of a config on machines that are not here. Creates no arrays and reads no rows."""

from __future__ import annotations

import dataclasses
import json

from rich.console import Console

from r1jax import config
from r1jax.config.plan import Plan
from r1jax.plan import report, rows, show, topology
from r1jax.plan.topology import Topology
from r1jax.stages.plan_chart import chart
from r1jax.stages.prepare import find_model, open_input, with_choices, with_types


def plan(settings: config.AnyStage | config.Pipeline, name: str, command: Plan) -> int:
    """Prints and writes the plan of every stage, and of a pipeline the whole bill. Returns the exit code.

    Raises:
      ConfigError: no such topology, a compiler is missing, or a stage does not fit: with settings that do.
    """
    pipeline = isinstance(settings, config.Pipeline)
    stages = settings.stages() if pipeline else {name: settings}
    models, unknown = known_models(stages)
    if not models:
        raise ValueError(next(iter(unknown.values())))
    console = Console()
    for title, why in unknown.items():
        console.print(f"not planned: {title}: {why}", highlight=False, soft_wrap=True)
    found = here(models[next(iter(models))]) if command.topology == topology.HERE else topology.parse(command.topology)
    price = command.price if command.price is not None or not pipeline else settings.bill.price_per_hour or None
    plans = []
    for title, stage in ((title, stage) for title, stage in stages.items() if title in models):
        if isinstance(stage, config.RejectionSampling):
            plans.append(rows.plan(title, stage, models[title], found, command))
            console.print(plans[-1].line, highlight=False, soft_wrap=True)
            continue
        p = report.plan(
            title, stage, models[title], found, command, lambda text: console.print(text, highlight=False),
            teacher_of(stage, models),
        )  # fmt: skip
        plans.append(p)
        console.print(show.render(p, price), highlight=False)
    console.print(show.calibration(command.efficiency), *published_notes(), highlight=False, sep="\n")
    if pipeline:
        unit = "chip" if found.chip.platform == "tpu" else "GPU"
        hours = {p.title: p.hours for p in plans}
        console.print(show.recipe(hours, settings.bill.counterparts, price, unit), highlight=False)
    if command.out is not None:
        write(plans, command, price)
    if command.chart is not None:
        chart([p for p in plans if isinstance(p, report.StagePlan)], command.chart)
    if small := [p.why_not for p in plans if not p.fits]:
        raise config.ConfigError("; ".join(small))
    return 0


def known_models(stages: dict[str, config.AnyStage]) -> tuple[dict[str, config.Model], dict[str, str]]:
    """Each stage's architecture with its compute choices: an earlier stage's, its own ``model``, or that of the weights; and of
    the stages whose weights cannot be found why not: those of a student may be elsewhere while a plan is made."""
    found: dict[str, config.Model] = {}
    unknown: dict[str, str] = {}
    for title, stage in stages.items():
        earlier = stage.init.partition("@")[0]
        if earlier in unknown:
            unknown[title] = f"it begins with {earlier}"
            continue
        try:
            found[title] = model_of(stage, found.get(earlier))
        except ValueError as error:  # a ConfigError, or what hub.py finds
            unknown[title] = str(error)
    return found, unknown


def model_of(stage: config.AnyStage, earlier: config.Model | None) -> config.Model:
    if isinstance(stage, config.RejectionSampling):
        return with_types(earlier or open_input(stage.init, {}).model, stage)
    if earlier is not None:
        return with_choices(stage, earlier, loaded=True)
    if stage.model is not None:
        return with_choices(stage, stage.model, loaded=stage.init != "random")
    return find_model(stage, {})[0]


def teacher_of(stage: config.Stage, models: dict[str, config.Model]) -> config.Model | None:
    """The architecture of its teacher, an earlier stage's or that of other weights, with the types of the stage; None if there
    is no teacher, or it is not within reach."""
    if not isinstance(stage, config.GRPO) or not stage.teacher:
        return None
    try:
        return with_types(models.get(stage.teacher.partition("@")[0]) or open_input(stage.teacher, {}).model, stage)
    except ValueError:
        return None


def here(model: config.Model) -> Topology:
    """This machine's devices, with rates as they are measured on them."""
    import jax

    from r1jax import sharding
    from r1jax.bench.limits import probe
    from r1jax.plan.capacity import available

    mesh = sharding.make_mesh(config.Mesh())
    limits = probe(model, mesh, 64)
    device = mesh.devices.flat[0]
    kind = "cpu" if device.platform == "cpu" else device.platform
    memory = available(mesh)
    if memory is None:
        raise config.ConfigError("the devices of this machine do not tell how much memory is free; name their topology instead")
    rate = limits.flops_per_s("bfloat16") if model.matmul_dtype != "float32" else limits.flops_per_s("float32")
    return topology.of_this_machine(kind, jax.device_count(), rate, limits.all_bytes_per_s / mesh.size, memory)


def published_notes() -> list[str]:
    from r1jax.plan.published import NOT_PREDICTED

    return [f"not predicted: {text}" for text in NOT_PREDICTED]


def write(plans: list[report.StagePlan | rows.RowsPlan], command: Plan, price: float | None) -> None:
    told = {
        "stages": [(rows if isinstance(p, rows.RowsPlan) else report).to_json(p, price) for p in plans],
        "efficiency": dataclasses.asdict(command.efficiency),
        "price": price,
        "published": [dataclasses.asdict(x) | {"ratio": x.ratio} for x in show.published.predictions(command.efficiency)],
    }
    command.out.write_text(json.dumps(told, indent=1) + "\n")
