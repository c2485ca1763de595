"""``r1jax export``, and the exports of a run."""

from __future__ import annotations

import dataclasses
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from r1jax import config, loading, sharding
from r1jax.config import ConfigError, commands
from r1jax.convert import export as hugging_face
from r1jax.convert import gguf_write, peft
from r1jax.convert.write import refuse_taken
from r1jax.data.tokenizer import Tokenizer
from r1jax.models import decoder
from r1jax.plan.memory import human


def export(command: commands.Export) -> int:
    """Writes the model to ``command.out``. Returns the exit code.

    Raises:
      ConfigError: the format cannot say the model, it is not like ``command.like``, or it cannot be written.
    """
    refuse_taken(command.out)
    opened = loading.open_model(command.model)
    tokenizer = opened.found_tokenizer
    if opened.trained_length:
        tokenizer = with_template(opened.text, tokenizer)
    if command.out.suffix == ".gguf":
        room, dtype = gguf_write, {"float32": "f32", None: "f16"}.get(command.dtype, command.dtype)
        tokenizer = tokenizer or opened.tokenizer
    else:
        room, dtype = hugging_face, command.dtype
    planned = room.plan(opened.model, tokenizer, dtype, opened.origin, opened.trained_length)
    if command.adapter:
        return export_adapters(command, opened, planned)
    if command.like is not None:
        refuse_differences(planned, command.like)
    # What is quantised is made from all the digits that there are.
    held = planned.dtype if planned.dtype in hugging_face.STORED else opened.model.param_dtype
    specs = decoder.specs(dataclasses.replace(opened.model, param_dtype=held))
    began = time.monotonic()
    mesh = sharding.make_mesh(command.mesh)
    params = opened.load(specs, sharding.param_shardings(specs, mesh, sharding.TRAIN))
    columns = ("export", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("", total=planned.bytes)
        room.write(planned, params, command.out, lambda done: bar.advance(task, done))
    if jax.process_index() == 0:
        print(f"{command.out}: {human(planned.bytes)} in {time.monotonic() - began:.1f} s")
    return 0


def export_adapters(command: commands.Export, opened: loading.Opened, whole: hugging_face.Plan) -> int:
    """Writes a PEFT directory. Returns the exit code.

    Raises:
      ConfigError: it is not a LoRA run, or PEFT cannot say its adapters.
    """
    found = opened.adapters
    if found is None:
        raise ConfigError(f"{command.model} has no adapters: it is not a run with lora.rank above 0; leave out --adapter")
    adapters = found.read()
    if jax.process_index() == 0:
        planned = peft.plan(whole, adapters, found.settings, found.base, command.dtype)
        peft.write(planned, command.out)
        print(f"{command.out}: {human(planned.bytes)}, adapters of {planned.modules} matrices of {found.base}")
        if planned.misread:
            print(
                f"PEFT with transformers 5 does not load those of {', '.join(planned.misread)} outside of the experts, and "
                "does not say so; export without --adapter for it",
                file=sys.stderr,
            )
    return 0


def plan_export(
    stage: config.Stage, model: config.Model, text: config.Text, tokenizer: Tokenizer, opened: loading.Opened | None
) -> hugging_face.Plan:
    """What the exports of a stage's run write.

    Raises:
      ConfigError: no released family can say what the model does.
    """
    return hugging_face.plan(
        model, with_template(text, tokenizer), stage.export.dtype, opened and opened.origin, stage.sequence_length
    )


def export_step(planned: hugging_face.Plan, params: Any, folder: Path, step: int, keep: int) -> None:
    """Writes ``folder/STEP`` and removes all but the ``keep`` newest, and those of an attempt that went further.

    Raises:
      ConfigError: it cannot be written.
    """
    main = jax.process_index() == 0
    if main:
        shutil.rmtree(folder / str(step), ignore_errors=True)
    hugging_face.write(planned, params, folder / str(step))
    if main:
        made = {int(path.name) for path in folder.iterdir() if path.name.isdigit()}
        kept = sorted(other for other in made if other <= step)[-keep:]
        for other in made - set(kept):
            shutil.rmtree(folder / str(other), ignore_errors=True)


def with_template(text: config.Text, tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with the template that the policy was trained with, for engines to use."""
    return dataclasses.replace(tokenizer, chat_template=hugging_face.chat_template(text, tokenizer))


def refuse_differences(planned: hugging_face.Plan, like: Path) -> None:
    """Prints every difference to a directory.

    Raises:
      ConfigError: there is one.
    """
    if found := hugging_face.differences(planned, like):
        if jax.process_index() == 0:
            print("\n".join(found))
        raise ConfigError(f"{len(found)} tensors are not like those of {like}; nothing was written")
