"""What a stage works with: built from its config, restored from its run directory, closed in order."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import numpy as np
from rich.console import Console

from r1jax import config, loading, lora, mirror, processes, sharding
from r1jax.checkpoint import Checkpointer
from r1jax.config.base import GuardStop
from r1jax.convert import export as hugging_face
from r1jax.data.sources import Mixture
from r1jax.data.template import Template
from r1jax.data.tokenizer import Tokenizer
from r1jax.eval.answers import from_first
from r1jax.observe import compiling
from r1jax.observe.display import Display
from r1jax.observe.energy import Meter
from r1jax.observe.ledger import Ledger
from r1jax.observe.metrics import MetricsWriter, read_metrics
from r1jax.observe.phases import Phase
from r1jax.observe.samples import SamplesWriter
from r1jax.observe.watchdog import Watching
from r1jax.plan import micro_batch, shortage
from r1jax.rewards import Pool
from r1jax.rollout import Sampler
from r1jax.rundir import RunDir
from r1jax.stages import disk
from r1jax.stages.begun import Group, Rollout, restored, saved
from r1jax.stages.export import export_step
from r1jax.stages.guarding import Guarding
from r1jax.stages.prepare import Prepared
from r1jax.train.state import TrainState
from r1jax.train.update import Trainer
from r1jax.types import PackedBatch


@dataclass
class Cursor:
    """Where a run is in its data: integers, so a resume is exact and does not depend on the number of processes."""

    round: int = 0
    """Rollouts made (SFT: updates)."""
    row: int = 0
    """Next index into the mixture."""
    left_out: int = 0
    """Rows that were too long."""
    refreshed: int = 0
    """The step at which the reference became the policy."""
    not_finite: int = 0
    """Updates in a row that were not applied, up to now."""


class Preempted(Exception):
    """A SIGTERM or SIGHUP arrived; what was learned is saved."""


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
    guarding: Guarding
    planned_export: hugging_face.Plan | None
    step: int
    """``state.step``, counted here: to read it would wait for the device."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Of the phases since the last ``write``."""
    rollout_rate: float = 0.0
    """Sampled tokens per second of the last rollout."""
    replaced: int = 0
    """Groups without a signal that gave way to others in the last rollout."""
    usage: dict[str, float] = field(default_factory=dict)
    """``Usage.metrics`` of the rollout that is learned from, where the sampler may be at another already."""
    kept: list[Group] = field(default_factory=list)
    """Answers that go on in the next rollout."""
    ahead: Future[Rollout] | None = None
    """The next round's answers, which are being sampled; ``kept`` is then theirs."""
    aside: ThreadPoolExecutor | None = None
    """Samples while this thread computes updates; None where both must launch their programs in one order: on several
    devices."""
    leaving: threading.Event = field(default_factory=threading.Event)
    """What is sampled in ``aside`` is no longer wanted."""

    @property
    def weights(self) -> dict[str, dict[str, float]]:
        """Source name -> reward name -> weight."""
        return {s.name: s.rewards for s in (*self.stage.sources, *self.stage.eval.sources)}

    def data_metrics(self) -> dict[str, float]:
        """Rows left out, and how often the rows of each source have come."""
        epochs = {f"data/epochs/{name}": value for name, value in self.mixture.epochs(self.cursor.row).items()}
        return {"data/left_out": float(self.cursor.left_out), **epochs}

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

    def count(self, flops: dict[str, float]) -> None:
        """Adds the FLOPs of phases to the ledger."""
        for name, n in flops.items():
            self.ledger.add(name, flops=n)

    def load_sampler(self) -> None:
        """The sampler takes the weights of now."""
        with self.phase("reshard"):
            self.sampler.load(self.state.params, version=self.step)
            jax.block_until_ready(self.sampler.params)

    def write(self, step: int, values: dict[str, float]) -> None:
        """One line of metrics, and one on the terminal."""
        values = {**values, **{f"time/{name}": s for name, s in self.seconds.items()}}
        self.seconds.clear()
        marks, begun = self.guarding.saw(step, values)
        self.cursor.not_finite = self.guarding.in_a_row
        if self.metrics is not None:
            self.metrics.write(step, values | marks)
        self.display.step(step, values)
        for line in begun:
            self.display.warn(line)
        if jax.process_index() == 0:
            self.ledger.save()

    def update(self, batch: PackedBatch, count: int, denominator: float) -> dict[str, jax.Array]:
        """Has the trainer make an update. Does not wait for it, nor for its metrics."""
        self.state, metrics = self.trainer.update(self.state, batch, count, denominator)
        self.step += 1
        self.guarding.took(self.step, batch, count, denominator)
        return metrics

    def save(self, score: float | None = None) -> None:
        with self.phase("save"):
            meta = {"cursor": dataclasses.asdict(self.cursor), "data": self.mixture.fingerprint}
            answers, about = saved(self.kept, self.ahead and self.ahead.result())
            if about is not None:
                meta["ahead"] = about
            if jax.process_index() == 0:
                self.ledger.save(self.step)
                self.metrics.flush()
                self.run.upload()  # first: what a checkpoint goes on from must not be lost with the machine
            self.checkpoints.save(self.step, self.trainer.changing(self.state), meta, score, answers)
        if jax.process_index() == 0:
            self.ledger.save(self.step)

    def export(self) -> None:
        """Writes RUN/exports/STEP."""
        with self.phase("export"):
            export_step(self.planned_export, self.state.params, self.run.exports, self.step, self.stage.export.keep)
            self.run.upload()

    def stop_if_terminated(self) -> None:
        """Saves and leaves if a SIGTERM or SIGHUP arrived, or a guard says so. To be called where the state is whole: between
        rounds.

        Raises:
          Preempted, GuardStop: it is saved.
          CheckpointError: a save that went on behind has failed; to train on would add to what is lost.
        """
        seen = self.terminating.is_set(), self.checkpoints.failed, bool(self.guarding.reason)
        told, failed, guarded = processes.gather("told to end", np.array(seen)).any(0)
        if failed:
            self.checkpoints.wait()
        if guarded:
            reason = from_first("guards", self.guarding.reason)
            self.save_now()
            raise GuardStop(f"{reason}; saved at step {self.step} of {self.run.name}")
        if told:
            self.save_now()
            raise Preempted(f"told to end: saved at step {self.step} of {self.run.name}")

    def save_now(self) -> None:
        """Returns when the state is a checkpoint."""
        self.checkpoints.wait()
        # Saved just now, it has the score of its evaluation.
        if processes.first_says("not saved yet", self.checkpoints.latest() != self.step):
            self.save()
            self.checkpoints.wait()


def told(metrics: Any) -> Any:
    """Metrics of the device as numbers, fetched all at once."""
    return jax.tree.map(float, jax.device_get(metrics))


@contextlib.contextmanager
def open_workspace(found: Prepared, run: RunDir, title: str) -> Iterator[Workspace]:
    """Builds everything a stage needs and restores the newest checkpoint, if there is one."""
    main = jax.process_index() == 0
    stage, model, mesh, tokenizer, mixture = found.stage, found.model, found.mesh, found.tokenizer, found.mixture
    trainer = Trainer(stage, model, mesh)
    where = sharding.sampler_mesh(stage.engine, mesh)
    sampler = Sampler(
        model, stage.engine, where, end_ids=tokenizer.end_ids, text=tokenizer.decode, seed=stage.seed, adapters=stage.lora,
        record_routes=isinstance(stage, config.GRPO) and stage.routing_replay,
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(Pool(stage.workers))
        pool.check([name for s in (*stage.sources, *stage.eval.sources) for name in s.rewards])
        checkpoints = Checkpointer(run.checkpoints, keep=stage.checkpoint.keep)
        stack.callback(checkpoints.close)
        disk.check_writable(run)
        latest, damaged = checkpoints.newest_good()
        if main and latest is None:
            run.record(found.commits, found.digests, found.chosen, found.inputs)
            loading.describe(run.path, model, found.text, tokenizer, found.opened and found.opened.origin)
        console = None if main else Console(file=io.StringIO())
        display = stack.enter_context(Display(title, stage.steps, console=console, first_step=latest or 0))
        if damaged:
            display.warn(f"{damaged}; put aside: going on from step {latest} of {run.name}, the newest that is whole")
        display.note(found.memory.line())
        if found.mesh_reason:
            display.note(found.mesh_reason)
        if found.chosen:
            display.note(micro_batch.line(stage, mesh))
        stack.enter_context(_out_of_memory(display, found))
        logs = run.path / mirror.LOGS
        stack.enter_context(
            Watching(stage.watchdog, display.phases, lambda: display.last_step, logs, process=jax.process_index())
        )
        cursor = Cursor()
        with display.phase("load", unit="MB") as phase:
            if latest is None:
                state = trainer.create(_first_params(found, run, trainer, partial(_report, display, phase)))
            else:
                state, meta = checkpoints.restore(trainer.abstract())
                if stage.lora.rank:
                    base = loading.open_base(run.path)
                    state = trainer.whole(state, base.load(*_base_of(trainer), partial(_report, display, phase)))
                cursor = Cursor(**meta["cursor"])
                if meta["data"] != mixture.fingerprint:
                    raise config.ConfigError(
                        f"{run.name}: its sources changed since step {latest}; restore them, or start a new run from it"
                    )
        # An attempt that trained nothing counts for nothing: not even its evaluation before step 1 is kept.
        resumed_at = latest or -1
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
            display.note(f"going on from step {latest} of {run.name}")
        meter = stack.enter_context(Meter()) if main else None
        ledger = Ledger(run.path, mesh.size + stage.engine.devices, resumed_at=latest, meter=meter)
        terminating = stack.enter_context(told_to_end())
        written = (read_metrics(run.path) if latest is not None else []) if main else None
        guarding = Guarding(stage.guards, run.path, written, int(state.skipped), cursor.not_finite)
        work = Workspace(
            stage, run, model, mesh, tokenizer, found.template, mixture, trainer, sampler, pool, checkpoints, metrics, samples,
            display, ledger, state, cursor, found.held_out, terminating, guarding, found.export, int(state.step),
        )  # fmt: skip
        if isinstance(stage, config.GRPO) and stage.off_policy:
            if latest is not None:
                work.kept, work.ahead = restored(
                    checkpoints.answers(latest), meta.get("ahead"), stage.group, mixture, found.template
                )
            if stage.one_step_off_policy and mesh.size == 1:
                work.aside = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="rollout"))
                stack.callback(work.leaving.set)  # before it waits for the thread
        stack.enter_context(compiling.watch(partial(display.phase, "compile"), work.account))
        yield work


def _first_params(found: Prepared, run: RunDir, trainer: Trainer, report: loading.Report) -> Any:
    """What training begins with; without adapters, if there are any."""
    if found.opened is None:
        return trainer.init_params(found.stage.seed)
    if not found.stage.lora.rank:
        return found.opened.load(*_base_of(trainer), report)
    base = loading.pinned(found.opened)
    params = base.load(*_base_of(trainer), report)
    loading.record_base(run.path, base, params)
    return params


def _base_of(trainer: Trainer) -> tuple[Any, Any]:
    """Specs and shardings of the weights without adapters."""
    return trainer.base_specs, lora.off(trainer.param_shardings)


def _report(display: Display, phase: Phase, done: int, total: int) -> None:
    """Shows how many of a phase's bytes are done."""
    phase.total = total >> 20
    display.advance((done >> 20) - phase.done)


@contextlib.contextmanager
def _out_of_memory(display: Display, found: Prepared) -> Iterator[None]:
    """An out-of-memory error in the block becomes one line."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not shortage.is_out_of_memory(error):
            raise
        raise config.ConfigError(shortage.explain(error, display.where, found.memory, found.stage, found.model)) from error


@contextlib.contextmanager
def told_to_end() -> Iterator[threading.Event]:
    """An event that SIGTERM (pre-emption) and SIGHUP (the terminal was closed) set, instead of ending the process."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    # A run under nohup ignores SIGHUP, and goes on doing so.
    taken = [s for s in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) is not signal.SIG_IGN]
    before = {s: signal.signal(s, lambda *_: event.set()) for s in taken}
    try:
        yield event
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
