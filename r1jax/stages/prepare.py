"""What is found out about a stage before a run directory is made, weights are loaded or anything is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import jax

from r1jax import config, loading, rundir, sharding
from r1jax.config import AnyStage, Pipeline, Preference, RejectionSampling, RewardModel, Stage
from r1jax.config.stages import ROWS_OF
from r1jax.convert import export as hugging_face
from r1jax.data import sources, tokenizer
from r1jax.data.sources import Mixture
from r1jax.data.template import Template
from r1jax.data.tokenizer import Tokenizer
from r1jax.eval import reward_model
from r1jax.plan import auto_mesh, memory, micro_batch, shortage
from r1jax.rundir import RunDir
from r1jax.stages.decide import Decision, steps
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
    mixture: Mixture | None
    """None while rows that an earlier stage of the pipeline makes, here or for the evaluation, are not there."""
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
    judges: tuple[tuple[Preference, loading.Opened], ...] = ()
    """The reward models that it asks."""
    inputs: dict[str, str] = dataclasses.field(default_factory=dict)
    """Of a pipeline's stage: each earlier stage that it begins with -> ``rundir.identity`` of what that made."""
    teacher: loading.Opened | None = None
    """``GRPO.teacher``."""


@dataclass(frozen=True)
class PreparedRows:
    """A stage that makes rows whose config, model, text, rows and memory are in order."""

    stage: RejectionSampling
    mesh: jax.sharding.Mesh
    model: config.Model
    opened: loading.Opened
    tokenizer: Tokenizer
    template: Template
    rewriter: loading.Opened | None
    """A model that is loaded here to write answers again."""
    prompts: list[tuple[config.Source, sources.Rows]] | None
    """None while rows that an earlier stage of the pipeline makes are not there; so ``joined``."""
    joined: list[tuple[config.Source, sources.Rows]] | None
    memory: memory.Sampling
    commits: dict[str, str]
    digests: dict[str, str]
    inputs: dict[str, str] = dataclasses.field(default_factory=dict)


def prepare_all(
    settings: AnyStage | Pipeline, name: str, run: Path | None = None, decisions: Mapping[str, Decision] | None = None
) -> dict[str, Prepared | PreparedRows]:
    """Every stage that is to be run, by its name. One that begins from an earlier is given the model that this will leave.

    Args:
      run: the run directory, if it is there.
      decisions: of a pipeline, for each stage.

    Raises:
      ConfigError: what a run would find wrong before its first step, too little memory included.
    """
    if not isinstance(settings, Pipeline):
        if run is not None and is_finished(settings, run):
            return {}
        return {name: prepare_any(settings, run=run)}
    planned: dict[str, loading.Opened] = {}
    made: dict[str, Path] = {}
    found: dict[str, Prepared | PreparedRows] = {}
    wanted = {n for title, names in settings.inputs().items() if decisions[title].do not in ("keep", "leave") for n in names}
    for title, stage in settings.stages().items():
        do = decisions[title].do
        if do == "leave":
            continue
        makes_rows = isinstance(stage, RejectionSampling)
        if do == "keep":
            if makes_rows:
                made[title] = rundir.rows_of(run / title)
            elif title in wanted:
                planned[title] = loading.open_model(str(run / title), head=isinstance(stage, RewardModel))
            continue
        p = found[title] = prepare_any(stage, planned, run / title if do == "go on" else None, made)
        if not makes_rows:
            head = loading.ScalarHead(stage.form, stage.reads) if isinstance(stage, RewardModel) else None
            origin = p.opened and p.opened.origin
            planned[title] = loading.Opened(title, p.model, p.tokenizer, p.text, _not_made, origin, head=head)
    return found


def is_finished(stage: AnyStage, run: Path) -> bool:
    return RunDir(run, {}).is_finished(steps(stage))


def prepare_any(
    stage: AnyStage,
    planned: Mapping[str, loading.Opened] = MappingProxyType({}),
    run: Path | None = None,
    made: Mapping[str, Path] = MappingProxyType({}),
) -> Prepared | PreparedRows:
    return (prepare_rows if isinstance(stage, RejectionSampling) else prepare)(stage, planned, run, made)


def prepare(
    stage: Stage,
    planned: Mapping[str, loading.Opened] = MappingProxyType({}),
    run: Path | None = None,
    made: Mapping[str, Path] = MappingProxyType({}),
) -> Prepared:
    """One stage.

    Args:
      planned: models that ``init`` may name and that are not made yet: those of a pipeline's earlier stages.
      made: the files of the rows that earlier stages have made.
      run: where it is trained. Once there is a checkpoint, model and text are the run's own: what they were made from may have
        changed since, or be gone.
    """
    mesh = sharding.make_mesh(stage.mesh)
    stage = dataclasses.replace(
        stage, sources=named_files(stage.sources, made),
        eval=dataclasses.replace(stage.eval, sources=named_files(stage.eval.sources, made)),
    )  # fmt: skip
    if run is not None and rundir.has_checkpoint(run):
        opened = loading.open_model(str(run), head=isinstance(stage, RewardModel))
        model, found, text = opened.model, opened.tokenizer, opened.text
        template = Template(text, found)
    else:
        model, opened = find_model(stage, planned)
        found, template, text = find_text(stage, model, opened)
    stage.engine.check(model)
    teacher = open_teacher(stage, found, planned)
    taught = with_types(teacher.model, stage) if teacher else None
    sizes, why = auto_mesh.choose(stage, model, devices=sharding.trainer_devices(stage.engine), teacher=taught)
    mesh = sharding.trainer_mesh(sizes, stage.engine)
    loaded = [(s, sources.load(s)) for s in stage.sources if not unmade(s)]
    waits = any(map(unmade, (*stage.sources, *stage.eval.sources)))
    mixture = None if waits else Mixture(loaded, stage.seed)
    evaluated = held_out(stage)
    rows = [rows[i] for _, rows in evaluated for i in range(min(stage.eval.limit, len(rows)))]
    asked = stage.preference if isinstance(stage, config.GRPO) else ()
    judges = tuple((p, open_input(p.model, planned, head=True)) for p in asked)
    beside = sum(reward_model.bytes_per_device(opened.model, mesh) for _, opened in judges)
    chosen, free = {}, memory.available(mesh) if judges else None
    if stage.micro_batch == "auto":
        stage = micro_batch.choose(
            stage, model, mesh, before=rundir.chosen(run).get("micro_batch"),
            capacity=None if free is None else max(0, free - beside), teacher=taught,
        )  # fmt: skip
        chosen["micro_batch"] = stage.micro_batch
    needed = dataclasses.replace(memory.table(stage, model, mesh, teacher=taught), judges=beside)
    shortage.check(needed, stage, model, mesh)
    export = plan_export(stage, model, text, found, opened) if stage.export.every else None
    commits = {"init": opened and opened.commit, "teacher": teacher and teacher.commit}
    commits |= {f"sources.{s.name}": r.commit for s, r in loaded}
    commits = {place: commit for place, commit in commits.items() if commit is not None}
    parts = (("sources", loaded), ("eval.sources", evaluated))
    digests = {f"{place}.{s.name}": r.identity for place, part in parts for s, r in part}
    return Prepared(
        stage, mesh, model, opened, found, template, text, mixture, rows, needed, export, commits, digests, chosen, why,
        judges, teacher=teacher,
    )  # fmt: skip


def prepare_rows(
    stage: RejectionSampling,
    planned: Mapping[str, loading.Opened] = MappingProxyType({}),
    run: Path | None = None,
    made: Mapping[str, Path] = MappingProxyType({}),
) -> PreparedRows:
    """A stage that makes rows. Arguments and errors are those of ``prepare``."""
    mesh = sharding.sampler_mesh(stage.engine, sharding.make_mesh(stage.mesh))
    stage = dataclasses.replace(
        stage, sources=named_files(stage.sources, made), join=named_files(stage.join, made)
    )
    opened = open_input(stage.init, planned)
    model = with_types(opened.model, stage)
    found, template, _ = find_text(stage, model, opened)
    rewriter = None
    if stage.rewrite.model and not stage.rewrite.url:
        rewriter = open_input(stage.rewrite.model, planned)
    stage.engine.check(model)
    parts = {}
    for place, given in (("sources", stage.sources), ("join", stage.join)):
        parts[place] = None if any(map(unmade, given)) else [(s, sources.load(s)) for s in given]
    needed = memory.Sampling.of(model, mesh, stage.engine, stage.sampling.max_new_tokens)
    capacity = memory.available(mesh)
    if capacity is not None and needed.need > capacity:
        raise config.ConfigError(
            f"too large: weights {memory.human(needed.weights)} and the cache of {stage.engine.slots} answers "
            f"{memory.human(needed.cache)} per device, and {memory.human(capacity)} are free; lower engine.slots or "
            "sampling.max_new_tokens"
        )
    listed = [(f"{place}.{s.name}", r) for place, part in parts.items() for s, r in part or ()]
    commits = {"init": opened.commit} | {place: rows.commit for place, rows in listed}
    return PreparedRows(
        stage, mesh, model, opened, found, template, rewriter, parts["sources"], parts["join"], needed,
        {place: commit for place, commit in commits.items() if commit is not None},
        {place: rows.identity for place, rows in listed},
    )  # fmt: skip


def named_files(given: tuple[config.Source, ...], made: Mapping[str, Path]) -> tuple[config.Source, ...]:
    """The sources, with the file of the rows for the name of a stage that has made them."""
    names = {ROWS_OF + name: str(file) for name, file in made.items()}
    return tuple(dataclasses.replace(s, path=names.get(s.path, s.path)) for s in given)


def unmade(source: config.Source) -> bool:
    return source.path.startswith(ROWS_OF)


def open_input(name: str, planned: Mapping[str, loading.Opened], head: bool | None = False) -> loading.Opened:
    """The model called ``name``, of an earlier stage (NAME, NAME@STEP, NAME@best) or any other; ``head`` as for
    ``loading.open_model``."""
    stage, _, step = name.partition("@")
    if stage not in planned:
        return loading.open_model(name, head=head)
    opened = planned[stage]
    return loading.open_model(f"{opened.name}@{step}", head=head) if step and opened.read is not _not_made else opened


def open_teacher(stage: Stage, own: Tokenizer, planned: Mapping[str, loading.Opened]) -> loading.Opened | None:
    """The model that a stage distils from; None if it names none.

    Raises:
      ConfigError: there is no such model, or its tokens are not the policy's.
    """
    if not isinstance(stage, config.GRPO) or not stage.teacher:
        return None
    opened = open_input(stage.teacher, planned)
    theirs = opened.tokenizer
    if theirs.vocabulary != own.vocabulary:
        apart = sum(own.vocabulary.get(token) != i for token, i in theirs.vocabulary.items())
        raise config.ConfigError(
            f"teacher {stage.teacher!r} and policy {stage.init!r} have different tokenizers ({len(theirs.vocabulary)} and "
            f"{len(own.vocabulary)} tokens, {apart} of the teacher's have another id): its log-probs are of other tokens; name "
            "a teacher of the policy's family, or train on its answers with SFT"
        )
    return opened


def with_types(model: config.Model, stage: AnyStage) -> config.Model:
    """The model with the types that the stage chooses."""
    chosen = {name: vars(stage)[name] for name in COMPUTE if name in vars(stage)}
    return dataclasses.replace(model, **{name: value for name, value in chosen.items() if value is not None})


def find_model(
    stage: Stage, planned: Mapping[str, loading.Opened]
) -> tuple[config.Model, loading.Opened | None]:
    """The architecture, with the stage's compute choices, and where its weights come from (None: random).

    Raises:
      ConfigError: the stage's own architecture is not that of the weights, or routes are to be replayed and it has no
      experts.
    """
    either = None if isinstance(stage, RewardModel) else False
    opened = None if stage.init == "random" else open_input(stage.init, planned, either)
    model = stage.model if opened is None else opened.model
    if opened is not None and stage.model is not None and (differ := architecture_diff(stage.model, model)):
        raise config.ConfigError(f"init is {stage.init!r}, whose architecture is not model's: {differ}; leave model out (None)")
    if isinstance(stage, config.GRPO) and stage.routing_replay and not any(s.ff == "moe" for s in model.segments):
        raise config.ConfigError("routing_replay is on, but the model has no experts; leave it off")
    return with_choices(stage, model, loaded=opened is not None), opened


def with_choices(stage: Stage, model: config.Model, *, loaded: bool) -> config.Model:
    """An architecture with the stage's compute choices. Weights that are loaded are trained in float32 unless it says else."""
    if loaded and stage.param_dtype is None and not stage.lora.rank:
        model = dataclasses.replace(model, param_dtype="float32")
    if isinstance(stage, RewardModel):
        model = dataclasses.replace(model, mtp_depth=0)  # the module would need the output head
    return with_types(model, stage)


def find_text(
    stage: AnyStage, model: config.Model, opened: loading.Opened | None
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
    chosen = [s for s in chosen if not unmade(s)]
    return [(s, sources.load(s, held_out=not stage.eval.sources)) for s in chosen]


def architecture_diff(asked: config.Model, found: config.Model) -> str:
    """Where two models differ beside how they compute and how they were initialised; empty if nowhere."""
    free = (*COMPUTE, "init_std")
    places = config.diff(config.to_json(asked), config.to_json(found))
    return ", ".join(f"{place} is {new}, not {old}" for place, old, new in places if place not in free)


def _not_made(*_):
    raise config.ConfigError("the weights of an earlier stage are not made yet")
