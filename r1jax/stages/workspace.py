"""What a stage works with: built from its config, restored from its run directory, closed in order."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import signal
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from rich.console import Console

from r1jax import config, loading, sharding
from r1jax.checkpoint import Checkpointer
from r1jax.data import sources, tokenizer
from r1jax.data.sources import Mixture
from r1jax.data.template import Template
from r1jax.data.tokenizer import Tokenizer
from r1jax.observe import compiling
from r1jax.observe.display import Display
from r1jax.observe.ledger import Ledger
from r1jax.observe.metrics import MetricsWriter
from r1jax.observe.phases import Phase
from r1jax.observe.samples import SamplesWriter
from r1jax.plan import memory
from r1jax.rewards import Pool
from r1jax.rollout import Sampler
from r1jax.rundir import RunDir
from r1jax.train.state import TrainState
from r1jax.train.update import Trainer


@dataclass
class Cursor:
    """Where a run is in its data: integers, so a resume is exact and does not depend on the number of processes."""

    round: int = 0
    """Rollouts made (SFT: updates)."""
    row: int = 0
    """Next index into the mixture."""
    left_out: int = 0
    """Rows that were too long."""


class Preempted(Exception):
    """A SIGTERM arrived; what was learned is saved."""


@dataclass
class Workspace:
    stage: config.Stage
    run: RunDir
    model: config.Model
    mesh: jax.sharding.Mesh
    tokenizer: Tokenizer
    template: Template
    mixture: Mixture
    trainer: Trainer
    sampler: Sampler
    pool: Pool
    checkpoints: Checkpointer
    metrics: MetricsWriter | None
    samples: SamplesWriter | None
    display: Display
    ledger: Ledger
    state: TrainState
    cursor: Cursor
    held_out: list[dict]
    terminating: threading.Event
    memory: memory.Memory
    seconds: dict[str, float] = field(default_factory=dict)
    """Of the phases since the last ``write``."""
    rollout_rate: float = 0.0
    """Sampled tokens per second of the last rollout."""

    @property
    def step(self) -> int:
        return int(self.state.step)

    @property
    def weights(self) -> dict[str, dict[str, float]]:
        """Source name -> reward name -> weight."""
        return {s.name: s.rewards for s in (*self.stage.sources, *self.stage.eval.sources)}

    @contextlib.contextmanager
    def phase(self, name: str, total: int | None = None, unit: str = "") -> Iterator[Any]:
        """Names what runs, on the display, in the ledger and in the metrics ``time/NAME``."""
        with self.display.phase(name, total, unit) as phase:
            yield phase
        self.account(phase)

    def account(self, phase: Phase) -> None:
        """Adds a phase that has ended to the ledger and to the metrics of the next ``write``."""
        self.seconds[phase.name] = self.seconds.get(phase.name, 0.0) + phase.seconds
        self.ledger.add(phase.name, phase.seconds, phase.tokens)

    def write(self, step: int, values: dict[str, float]) -> None:
        """One line of metrics, and one on the terminal."""
        values = {**values, **{f"time/{name}": s for name, s in self.seconds.items()}}
        self.seconds.clear()
        if self.metrics is not None:
            self.metrics.write(step, values)
        self.display.step(step, values)

    def save(self, score: float | None = None) -> None:
        with self.phase("save"):
            meta = {"cursor": dataclasses.asdict(self.cursor), "data": self.mixture.fingerprint}
            self.checkpoints.save(self.step, self.state, meta, score)
            if jax.process_index() == 0:
                self.ledger.save()

    def stop_if_terminated(self) -> None:
        """Saves and leaves if a SIGTERM arrived. Call it where the state is whole: between rounds."""
        told = np.array(self.terminating.is_set())
        if jax.process_count() > 1:
            told = multihost_utils.process_allgather(told)
        if told.any():
            self.checkpoints.wait()
            if self.checkpoints.latest() != self.step:  # saved just now, it has the score of its evaluation
                self.save()
                self.checkpoints.wait()
            raise Preempted(f"SIGTERM: saved at step {self.step}; go on with --run-dir {self.run.path}")


def find_model(
    stage: config.Stage, planned: Mapping[str, loading.Opened] = MappingProxyType({})
) -> tuple[config.Model, loading.Opened | None]:
    """The architecture, with the stage's compute choices, and where its weights come from (None: random).

    Args:
      planned: models that ``init`` may name and that are not made yet: those of a pipeline's earlier stages.
    """
    opened = None if stage.init == "random" else planned.get(stage.init) or loading.open_model(stage.init)
    model = stage.model if opened is None else opened.model
    chosen = {name: getattr(stage, name) for name in ("matmul_dtype", "remat") if getattr(stage, name) is not None}
    return dataclasses.replace(model, **chosen), opened


def find_text(
    stage: config.Stage, model: config.Model, opened: loading.Opened | None
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


def held_out_rows(stage: config.Stage) -> list[dict]:
    """The problems of the evaluation: ``eval.sources``, or the test split of the sources it trains on."""
    if not stage.eval.every:
        return []
    chosen = stage.eval.sources or tuple(s for s in stage.sources if s.weight > 0)
    loaded = [sources.load(s, held_out=not stage.eval.sources) for s in chosen]
    return [rows[i] for rows in loaded for i in range(min(stage.eval.limit, len(rows)))]


@contextlib.contextmanager
def open_workspace(stage: config.Stage, run: RunDir, title: str) -> Iterator[Workspace]:
    """Builds everything a stage needs and restores the newest checkpoint, if there is one."""
    main = jax.process_index() == 0
    mesh = sharding.make_mesh(stage.mesh)
    model, opened = find_model(stage)
    found, template, text = find_text(stage, model, opened)
    mixture = Mixture([(s, sources.load(s)) for s in stage.sources], stage.seed)
    trainer = Trainer(stage, model, mesh)
    sampler = Sampler(model, stage.engine, mesh, end_ids=found.end_ids, text=found.decode, seed=stage.seed)
    rows = held_out_rows(stage)
    plan = memory.table(stage, model, mesh)
    memory.check(plan, stage, model, mesh)
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(Pool(stage.workers))
        pool.check([name for s in (*stage.sources, *stage.eval.sources) for name in s.rewards])
        checkpoints = Checkpointer(run.checkpoints, keep=stage.checkpoint.keep)
        stack.callback(checkpoints.close)
        if main:
            loading.describe(run.path, model, text, found)
        latest = checkpoints.latest()
        console = None if main else Console(file=io.StringIO())
        display = stack.enter_context(Display(title, stage.steps, console=console, first_step=latest or 0))
        display.note(plan.line())
        stack.enter_context(_out_of_memory(display, plan, stage, model))
        cursor = Cursor()
        with display.phase("load"):
            if latest is None:
                state = trainer.create(
                    trainer.init_params(stage.seed) if opened is None else opened.load(trainer.param_shardings)
                )
            else:
                state, meta = checkpoints.restore(trainer.abstract())
                cursor = Cursor(**meta["cursor"])
                if meta["data"] != mixture.fingerprint:
                    raise config.ConfigError(
                        f"{run.path}: its sources changed since step {latest}; restore them, or start a new run from it"
                    )
        # An attempt that saved nothing counts for nothing: not even its evaluation before step 1 is kept.
        resumed_at = -1 if latest is None else latest
        if main:
            run.cut_back(resumed_at)
        metrics = samples = None
        if main:
            log = stage.log
            metrics = stack.enter_context(
                MetricsWriter(
                    run.path, tensorboard=log.tensorboard, wandb=log.wandb, config=config.to_json(stage), resumed_at=resumed_at
                )
            )
            samples = stack.enter_context(SamplesWriter(run.path, resumed_at=resumed_at))
        if latest is not None:
            display.note(f"going on from step {latest} of {run.path}")
        ledger = Ledger(run.path, mesh.size)
        terminating = stack.enter_context(_sigterm())
        work = Workspace(
            stage, run, model, mesh, found, template, mixture, trainer, sampler, pool, checkpoints, metrics, samples,
            display, ledger, state, cursor, rows, terminating, plan,
        )  # fmt: skip
        stack.enter_context(compiling.watch(partial(display.phase, "compile"), work.account))
        yield work


@contextlib.contextmanager
def _out_of_memory(display: Display, plan: memory.Memory, stage: config.Stage, model: config.Model) -> Iterator[None]:
    """An out-of-memory error in the block becomes one line."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not memory.is_out_of_memory(error):
            raise
        raise config.ConfigError(memory.explain(error, display.where, plan, stage, model)) from error


@contextlib.contextmanager
def _sigterm() -> Iterator[threading.Event]:
    """An event that a SIGTERM sets, instead of ending the process."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, before)
