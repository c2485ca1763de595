"""What is found out about a stage before a run directory is made, weights are loaded or anything is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import jax

from r1jax import config, loading, rundir, sharding
from r1jax.config import Pipeline, Stage
from r1jax.convert import export as hugging_face
from r1jax.data import sources, tokenizer
from r1jax.data.sources import Mixture
from r1jax.data.template import Template
from r1jax.data.tokenizer import Tokenizer
from r1jax.plan import auto_mesh, memory, micro_batch, shortage
from r1jax.rundir import RunDir
from r1jax.stages.export import plan_export

COMPUTE = ("param_dtype", "dtype", "matmul_dtype", "attention_kernel", "remat", "capacity_factor", "overlap")
"""The fields of a model that are not its architecture; a stage has each too."""


@dataclass(frozen=True)
class Prepared:
    """A stage whose config, model, text, rows and memory are in order."""

    stage: Stage
    mesh: jax.sharding.Mesh
    model: config.Model
    opened: loading.Opened | None
    """Where the weights come from; None: random."""
    tokenizer: Tokenizer
    template: Template
    text: config.Text
    mixture: Mixture
    held_out: list[dict]
    memory: memory.Memory
    export: hugging_face.Plan | None
    """What each export writes; None: there is none."""
    commits: dict[str, str]
    """``init`` and ``sources.NAME`` that are names on the Hub -> the commit that they stood for."""
    digests: dict[str, str]
    """``sources.NAME``, and ``eval.sources.NAME`` of the evaluation -> ``data.sources.Rows.identity``."""
    chosen: dict[str, int]
    """Fields that the config leaves to the memory that is free -> what was chosen."""
    mesh_reason: str
    """Why ``mesh.auto`` chose its sizes; empty if the config did."""


def prepare_all(settings: Stage | Pipeline, name: str, run: Path | None = None) -> dict[str, Prepared]:
    """Every stage that is not finished, by its name. One that begins from an earlier is given the model that this will leave.

    Args:
      run: the run directory, if it is there.

    Raises:
      ConfigError: what a run would find wrong before its first step, too little memory included.
    """
    planned: dict[str, loading.Opened] = {}
    found: dict[str, Prepared] = {}
    pipeline = isinstance(settings, Pipeline)
    for title, stage in (settings.stages() if pipeline else {name: settings}).items():
        place = None if run is None else run / title if pipeline else run
        if place is not None and RunDir(place, {}).is_finished(stage.steps):
            planned[title] = loading.open_model(str(place))
            continue
        p = found[title] = prepare(stage, planned, place)
        planned[title] = loading.Opened(title, p.model, p.tokenizer, p.text, _not_made, p.opened and p.opened.origin)
    return found


def prepare(
    stage: Stage, planned: Mapping[str, loading.Opened] = MappingProxyType({}), run: Path | None = None
) -> Prepared:
    """One stage.

    Args:
      planned: models that ``init`` may name and that are not made yet: those of a pipeline's earlier stages.
      run: where it is trained. Once there is a checkpoint, model and text are the run's own: what they were made from may have
        changed since, or be gone.
    """
    if run is not None and rundir.has_checkpoint(run):
        opened = loading.open_model(str(run))
        model, found, text = opened.model, opened.tokenizer, opened.text
        template = Template(text, found)
    else:
        model, opened = find_model(stage, planned)
        found, template, text = find_text(stage, model, opened)
    stage.engine.check(model)
    sizes, why = auto_mesh.choose(stage, model, devices=sharding.trainer_devices(stage.engine))
    mesh = sharding.trainer_mesh(sizes, stage.engine)
    loaded = [(s, sources.load(s)) for s in stage.sources]
    mixture = Mixture(loaded, stage.seed)
    evaluated = held_out(stage)
    rows = [rows[i] for _, rows in evaluated for i in range(min(stage.eval.limit, len(rows)))]
    chosen = {}
    if stage.micro_batch == "auto":
        stage = micro_batch.choose(stage, model, mesh, before=rundir.chosen(run).get("micro_batch"))
        chosen["micro_batch"] = stage.micro_batch
    needed = memory.table(stage, model, mesh)
    shortage.check(needed, stage, model, mesh)
    export = plan_export(stage, model, text, found, opened) if stage.export.every else None
    commits = {"init": opened and opened.commit} | {f"sources.{s.name}": r.commit for s, r in loaded}
    commits = {place: commit for place, commit in commits.items() if commit is not None}
    parts = (("sources", loaded), ("eval.sources", evaluated))
    digests = {f"{place}.{s.name}": r.identity for place, part in parts for s, r in part}
    return Prepared(
        stage, mesh, model, opened, found, template, text, mixture, rows, needed, export, commits, digests, chosen, why
    )  # fmt: skip


def find_model(
    stage: Stage, planned: Mapping[str, loading.Opened]
) -> tuple[config.Model, loading.Opened | None]:
    """The architecture, with the stage's compute choices, and where its weights come from (None: random).

    Raises:
      ConfigError: the stage's own architecture is not that of the weights, or routes are to be replayed and it has no
      experts.
    """
    opened = None if stage.init == "random" else planned.get(stage.init) or loading.open_model(stage.init)
    model = stage.model if opened is None else opened.model
    if opened is not None and stage.model is not None and (differ := architecture_diff(stage.model, model)):
        raise config.ConfigError(f"init is {stage.init!r}, whose architecture is not model's: {differ}; leave model out (None)")
    if isinstance(stage, config.GRPO) and stage.routing_replay and not any(s.ff == "moe" for s in model.segments):
        raise config.ConfigError("routing_replay is on, but the model has no experts; leave it off")
    return with_choices(stage, model, loaded=opened is not None), opened


def with_choices(stage: Stage, model: config.Model, *, loaded: bool) -> config.Model:
    """An architecture with the stage's compute choices. Weights that are loaded are trained in float32 unless it says else."""
    chosen = {name: getattr(stage, name) for name in COMPUTE}
    if loaded and stage.param_dtype is None and not stage.lora.rank:
        chosen["param_dtype"] = "float32"
    return dataclasses.replace(model, **{name: value for name, value in chosen.items() if value is not None})


def find_text(
    stage: Stage, model: config.Model, opened: loading.Opened | None
) -> tuple[Tokenizer, Template, config.Text]:
    """Tokenizer and template: the stage's, and for each setting it leaves at its default that which the weights came with.

    Raises:
      ConfigError: the tokenizer has more entries than the model.
    """
    text = stage.text
    if opened is not None:
        kept = {f.name: getattr(opened.text, f.name) for f in dataclasses.fields(text)}
        plain = config.Text()
        text = dataclasses.replace(text, **{n: v for n, v in kept.items() if getattr(text, n) == getattr(plain, n)})
    if text.tokenizer == "auto":
        if opened is None:
            raise config.ConfigError("text.tokenizer is 'auto' but init is 'random'; name a tokenizer, for example 'bytes'")
        found = opened.tokenizer
    else:
        found = tokenizer.load(text)
    if found.vocab_size > model.vocab_size:
        raise config.ConfigError(
            f"the tokenizer has {found.vocab_size} entries and the model {model.vocab_size}; set model.vocab_size to at least "
            f"{found.vocab_size}, or name the model's own tokenizer"
        )
    return found, Template(text, found), text


def held_out(stage: Stage) -> list[tuple[config.Source, sources.Rows]]:
    """Where the problems of the evaluation come from: ``eval.sources``, or the test split of the sources it trains on."""
    if not stage.eval.every:
        return []
    chosen = stage.eval.sources or tuple(s for s in stage.sources if s.weight > 0)
    return [(s, sources.load(s, held_out=not stage.eval.sources)) for s in chosen]


def architecture_diff(asked: config.Model, found: config.Model) -> str:
    """Where two models differ beside how they compute and how they were initialised; empty if nowhere."""
    free = (*COMPUTE, "init_std")
    places = config.diff(config.to_json(asked), config.to_json(found))
    return ", ".join(f"{place} is {new}, not {old}" for place, old, new in places if place not in free)


def _not_made(*_):
    raise config.ConfigError("the weights of an earlier stage are not made yet")
