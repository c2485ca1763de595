"""``r1jax train``: one stage or a pipeline of stages, in a run directory that can be resumed."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import jax

from r1jax import config, lease, loading, mirror, processes, rundir
from r1jax.config import GRPO, AnyStage, Pipeline, RejectionSampling, RewardModel
from r1jax.config.base import GuardStop
from r1jax.eval.answers import from_first
from r1jax.lease import Lease
from r1jax.observe import ledger, report
from r1jax.observe.profile import Steps
from r1jax.rundir import RunDir
from r1jax.stages import decide, disk, grpo, preflight, rejection_sampling, reward_model, sft, summary
from r1jax.stages.decide import Decision
from r1jax.stages.dry_run import dry_run as show_dry_run
from r1jax.stages.evaluation import hold_out
from r1jax.stages.prepare import Prepared, PreparedRows, open_input, prepare_all, prepare_any
from r1jax.stages.workspace import Preempted, Workspace, open_workspace

PREEMPTED = 75


def train(
    settings: AnyStage | Pipeline,
    *,
    name: str,
    run_dir: str | None = None,
    dry_run: bool = False,
    first: str | None = None,
    last: str | None = None,
    profile: Steps | None = None,
) -> int:
    """Trains to the end. Returns the exit code: 0 done, 75 pre-empted and saved.

    Args:
      name: of the config; the default run directory is named after it.
      run_dir: where to write; a run that is there is resumed.
      dry_run: only check, and show what would be done.
      first, last: of a pipeline: the stages to begin and to end with, see ``decide.decide``.
      profile: the first and the last step to trace; of a pipeline, in each stage that trains.

    Raises:
      ConfigError: the user's mistakes, before anything is trained.
      GuardStop: a check stopped the run.
    """
    if not isinstance(settings, Pipeline) and (first or last):
        raise config.ConfigError(f"--from and --until name stages of a pipeline, and {name} is a single stage")
    with lease.held(None if dry_run else run_dir, jax.process_index()) as held:
        return _train(settings, name, run_dir, dry_run, first, last, profile, held)


def _train(
    settings: AnyStage | Pipeline, name: str, run_dir: str | None, dry_run: bool, first: str | None, last: str | None,
    profile: Steps | None, held: Lease | None,
) -> int:  # fmt: skip
    pipeline = isinstance(settings, Pipeline)
    path = None if run_dir is None else rundir.find(run_dir, jax.process_index())
    there = path if path is not None and rundir.is_run(path) else None
    if dry_run:
        return show_dry_run(settings, name, there, decide.decide(settings, there, first, last) if pipeline else None)
    if jax.process_count() > 1 and run_dir is None:
        raise config.ConfigError("several processes must agree on the run directory; name it with --run-dir")
    # A run that is there may refuse the config or be finished, whatever has become of its rows and weights; a directory is
    # only made for what could be trained.
    run = open_run(name, settings, there, held) if there is not None else None
    try:
        decisions = agree(settings, run and run.path, first, last) if pipeline else None
        prepared = prepare_all(settings, name, run and run.path, decisions)
        run = run or open_run(name, settings, path, held)
        idle = not prepared and (rundir.ended(run.path) or {}).get("how") == "finished"
        if not idle and jax.process_index() == 0:
            run.begin()
        run.upload()  # a bucket that holds a stage's files alone holds no run
        print(f"run directory: {run.name}", flush=True)
        if pipeline:
            make_way(decisions, run, first)
        disk.check_room(prepared, run, pipeline=pipeline)  # what was put aside stays on the disk
        if pipeline:
            train_stages(settings, decisions, prepared, run, profile)
            if jax.process_index() == 0:
                decide.note_asked(run.path, None)
        else:
            train_stage(prepared.get(name), settings, run, name, profile)
        if not idle:
            note_end(run, "finished")
    except Preempted as saved:
        note_end(run, "pre-empted", saved)
        print(f"{saved}; go on with --run-dir {run.name}", flush=True)
        return PREEMPTED
    except OSError as error:
        line = disk.explained(error, run)
        with contextlib.suppress(OSError):  # a disk that is full takes no note either
            note_end(run, "failed", line or error)
        if not line:
            raise
        raise config.ConfigError(line) from error
    except KeyboardInterrupt:
        note_end(run, "interrupted")
        # The command line says how to go on with a run.
        raise (KeyboardInterrupt() if run is None else KeyboardInterrupt(run.path)) from None
    except Exception as error:
        note_end(run, "guard" if isinstance(error, GuardStop) else "failed", error)
        raise
    finally:
        if run is not None:
            run.close()
    if jax.process_index() == 0:
        summary.show(run.path, settings)
        if pipeline:
            ledger.show(run.path, list(settings.stages()), settings.bill)
        if not idle:
            write_report(run)
        run.upload()
    return 0


def note_end(run: RunDir | None, how: rundir.End, why: object = "") -> None:
    """Says in the run directory how this attempt ends; where a guard stopped it, a report shows what the guard saw."""
    if run is not None and jax.process_index() == 0:
        run.end(how, str(why))
        if how == "guard":
            write_report(run)


def write_report(run: RunDir) -> None:
    try:
        report.write(run.path)
    except Exception as error:  # of whatever kind: what was trained counts, and the command can be given again
        print(f"no report.html: {type(error).__name__}: {error}; try `r1jax report {run.name}`", flush=True)


def open_run(name: str, settings: AnyStage | Pipeline, path: Path | None, held: Lease | None) -> RunDir:
    """Process 0 makes or resumes the directory; the others only name its files, and stop with it if it must not."""
    described = config.to_json(settings)
    run, refused = RunDir(path, described), None
    if jax.process_index() == 0:
        try:
            run = rundir.create(name, described) if path is None else rundir.open_or_resume(path, described, held=held)
        except config.ConfigError as error:
            refused = error
    if processes.any_of("open the run directory", refused is not None):
        refused = refused or config.ConfigError(f"process 0 cannot train in {path}; it says why")
    if refused is not None:
        raise refused
    return run


# -- Pipelines


def agree(pipeline: Pipeline, run: Path | None, first: str | None, last: str | None) -> dict[str, Decision]:
    """What process 0 decides by what it sees in the run directory.

    Raises:
      ConfigError: as ``decide.decide`` does, in all processes.
    """
    found, refused = {}, None
    if jax.process_index() == 0:
        try:
            found = decide.decide(pipeline, run, first, last)
        except config.ConfigError as error:
            refused = error
    told = from_first("decisions", {"found": found, "refused": refused and str(refused)})
    if told["refused"] is not None:
        raise config.ConfigError(told["refused"])
    return {name: Decision(*decision) for name, decision in told["found"].items()}


def make_way(decisions: Mapping[str, Decision], run: RunDir, first: str | None) -> None:
    """Says what is run anew, and puts aside what was there: all of it before anything is trained."""
    for name, decision in decisions.items():
        if decision.do == "rerun" and jax.process_index() == 0:
            line = decision.line(name)
            print(f"{line}; what it made is kept in {rundir.put_aside(run.path / name)}", flush=True)
    if first is not None and jax.process_index() == 0:
        decide.note_asked(run.path, first)
    if all(decision.do == "keep" for decision in decisions.values()):
        print("every stage is finished: nothing to do", flush=True)
    processes.meet("stages put aside")  # the others must not look for a stage before it was moved


def train_stages(
    pipeline: Pipeline,
    decisions: Mapping[str, Decision],
    prepared: dict[str, Prepared | PreparedRows],
    run: RunDir,
    profile: Steps | None = None,
) -> None:
    """Every stage in a run directory of its own below the pipeline's; finished ones are skipped."""
    stages, inputs = pipeline.stages(), pipeline.inputs()
    done: dict[str, Path] = {}
    for name, stage in stages.items():
        title, decision = f"{run.path.name}/{name}", decisions[name]
        if decision.do == "leave":
            print(f"{title}: left out, {decision.why}", flush=True)
            continue
        if decision.do == "keep":
            print(f"{title}: {finished_line(stage, RunDir(run.path / name, {}))}", flush=True)
        else:
            inner = open_run(name, stage, run.path / name, run.lease)
            try:
                if jax.process_index() > 0:
                    rundir.find(run.name, jax.process_index())  # of a run on gs://, what the first process has written since
                ready = given(stage, prepared.pop(name), done, inputs[name], inner.path)
                train_stage(ready, stage, inner, title, profile)
            finally:
                inner.close()
        done[name] = run.path / name


def given(
    stage: AnyStage, found: Prepared | PreparedRows, done: Mapping[str, Path], inputs: tuple[str, ...], run: Path
) -> Prepared | PreparedRows:
    """What was prepared, with what the stage begins with: a config names stages, and only here do the names become weights and
    rows."""
    made = {name: rundir.rows_of(path) for name, path in done.items() if rundir.rows_of(path).exists()}
    models = {
        name: loading.open_model(str(path), head=None) for name, path in done.items() if name in inputs and name not in made
    }
    waits = None in (found.prompts, found.joined) if isinstance(found, PreparedRows) else found.mixture is None
    if waits:
        found = prepare_any(stage, models, run if rundir.has_saved(run) else None, made)
    elif models and not rundir.has_checkpoint(run):
        opened = open_input(stage.init, models, head=None) if stage.init.partition("@")[0] in models else found.opened
        found = dataclasses.replace(found, opened=opened)
    if isinstance(found, Prepared) and found.teacher is not None:
        found = dataclasses.replace(found, teacher=open_input(stage.teacher, models))
    if isinstance(stage, GRPO) and not waits:
        made_here = [p.model.partition("@")[0] in models for p, _ in found.judges]
        judges = zip(found.judges, made_here, strict=True)
        judges = tuple((p, open_input(p.model, models, head=True) if here else other) for (p, other), here in judges)
        found = dataclasses.replace(found, judges=judges)
    if isinstance(found, PreparedRows) and found.rewriter is not None:
        found = dataclasses.replace(found, rewriter=open_input(stage.rewrite.model, models))
    return dataclasses.replace(found, inputs={name: rundir.identity(done[name]) for name in inputs})


# -- One stage


def train_stage(
    found: Prepared | PreparedRows | None, stage: AnyStage, run: RunDir, title: str, profile: Steps | None = None
) -> None:
    """One stage from where it is to its last step.

    Args:
      found: None if it is finished.
    """
    if found is None:
        print(f"{title}: {finished_line(stage, run)}", flush=True)
        return
    if isinstance(found, PreparedRows):
        rejection_sampling.make(found, run, title)
        return
    with open_workspace(found, run, title, profile) as work:
        if work.step == 0:
            begin(work)
        if work.step < stage.steps:
            trainer_of(stage)(work)
        work.checkpoints.wait()
        # An attempt may have ended between saving the last step and exporting it.
        if stage.export.every and processes.first_says("not exported yet", not (run.exports / str(work.step)).exists()):
            work.export()
        if jax.process_index() == 0:
            run.finish(work.step)


def finished_line(stage: AnyStage, run: RunDir) -> str:
    if isinstance(stage, RejectionSampling):
        return f"already made {mirror.there(rundir.rows_of(run.path))}"
    return f"already finished at step {run.finished['step']}; more --steps make it go on"


def trainer_of(stage: AnyStage) -> Callable[[Workspace], None]:
    if isinstance(stage, GRPO):
        return grpo.train
    return reward_model.train if isinstance(stage, RewardModel) else sft.train


def begin(work: Workspace) -> None:
    """What comes before the first step: for RL the preflight, then the held-out evaluation."""
    stage = work.stage
    if isinstance(stage, RewardModel):
        reward_model.begin(work)
        return
    if isinstance(stage, GRPO) and stage.preflight:
        preflight.check(work)
    if stage.eval.every:
        hold_out(work, edge=True)
    work.stop_if_terminated()
