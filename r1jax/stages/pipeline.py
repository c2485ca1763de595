"""``r1jax train``: one stage or a pipeline of stages, in a run directory that can be resumed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax

from r1jax import config, loading, processes, rundir
from r1jax.config import GRPO, Pipeline, Stage
from r1jax.rundir import RunDir
from r1jax.stages import grpo, preflight, sft, summary
from r1jax.stages.dry_run import dry_run as show_dry_run
from r1jax.stages.evaluation import hold_out
from r1jax.stages.prepare import Prepared, prepare_all
from r1jax.stages.workspace import Preempted, Workspace, open_workspace

PREEMPTED = 75


def train(settings: Stage | Pipeline, *, name: str, run_dir: str | None = None, dry_run: bool = False) -> int:
    """Trains to the end. Returns the exit code: 0 done, 75 pre-empted and saved.

    Args:
      name: of the config; the default run directory is named after it.
      run_dir: where to write; a run that is there is resumed.
      dry_run: only check, and show what would be done.

    Raises:
      ConfigError: the user's mistakes, before anything is trained.
      GuardStop: a check stopped the run.
    """
    if dry_run:
        return show_dry_run(settings, name)
    if jax.process_count() > 1 and run_dir is None:
        raise config.ConfigError("several processes must agree on the run directory; name it with --run-dir")
    path = None if run_dir is None else rundir.find(run_dir, jax.process_index())
    # A run that is there may refuse the config or be finished, whatever has become of its rows and weights; a directory is
    # only made for what could be trained.
    run = open_run(name, settings, path) if path is not None and rundir.is_run(path) else None
    try:
        prepared = prepare_all(settings, name, run and run.path)
        run = run or open_run(name, settings, path)
        print(f"run directory: {run.name}", flush=True)
        if isinstance(settings, Pipeline):
            train_stages(settings, prepared, run)
        else:
            train_stage(prepared.get(name), settings, run, name)
    except Preempted as saved:
        print(f"{saved}; go on with --run-dir {run.name}", flush=True)
        return PREEMPTED
    except KeyboardInterrupt:
        # The command line says how to go on with a run.
        raise (KeyboardInterrupt() if run is None else KeyboardInterrupt(run.path)) from None
    finally:
        if run is not None:
            run.close()
    if jax.process_index() == 0:
        summary.show(run.path, settings)
        run.upload()
    return 0


def open_run(name: str, settings: Stage | Pipeline, path: Path | None) -> RunDir:
    """Process 0 makes or resumes the directory; the others only name its files, and stop with it if it must not."""
    described = config.to_json(settings)
    run, refused = RunDir(path, described), None
    if jax.process_index() == 0:
        try:
            run = rundir.create(name, described) if path is None else rundir.open_or_resume(path, described)
        except config.ConfigError as error:
            refused = error
    if processes.any_of("open the run directory", refused is not None):
        refused = refused or config.ConfigError(f"process 0 cannot train in {path}; it says why")
    if refused is not None:
        raise refused
    return run


def train_stages(pipeline: Pipeline, prepared: dict[str, Prepared], run: RunDir) -> None:
    """Every stage in a run directory of its own below the pipeline's; finished ones are skipped."""
    done: dict[str, Path] = {}
    for name, stage in pipeline.stages().items():
        inner = open_run(name, stage, run.path / name)
        try:
            found = prepared.get(name)
            if found is not None and stage.init in done and not rundir.has_checkpoint(inner.path):
                if jax.process_index() > 0:
                    rundir.find(run.name, jax.process_index())  # of a run on gs://, what the first process has written since
                # A stage's config names its input by stage; only here does the name become weights.
                found = dataclasses.replace(found, opened=loading.open_model(str(done[stage.init])))
            train_stage(found, stage, inner, f"{run.path.name}/{name}")
        finally:
            inner.close()
        done[name] = inner.path


def train_stage(found: Prepared | None, stage: Stage, run: RunDir, title: str) -> None:
    """One stage from where it is to its last step.

    Args:
      found: None if it is finished.
    """
    if found is None:
        print(f"{title}: already finished at step {run.finished['step']}; more --steps make it go on", flush=True)
        return
    with open_workspace(found, run, title) as work:
        if work.step == 0:
            begin(work)
        if work.step < stage.steps:
            (grpo if isinstance(stage, GRPO) else sft).train(work)
        work.checkpoints.wait()
        # An attempt may have ended between saving the last step and exporting it.
        if stage.export.every and processes.first_says("not exported yet", not (run.exports / str(work.step)).exists()):
            work.export()
        if jax.process_index() == 0:
            run.finish(work.step)


def begin(work: Workspace) -> None:
    """What comes before the first step: for RL the preflight, then the held-out evaluation."""
    stage = work.stage
    if isinstance(stage, GRPO) and stage.preflight:
        preflight.check(work)
    if stage.eval.every:
        hold_out(work, edge=True)
    work.stop_if_terminated()
