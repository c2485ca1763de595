"""The disk that a run writes to: whether it can and will have room, before anything is trained, and what is said if not."""

from __future__ import annotations

import errno
import math
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import jax

from r1jax import config, mirror, rundir
from r1jax.eval.answers import from_first
from r1jax.plan.capacity import human
from r1jax.rundir import RunDir
from r1jax.stages.prepare import Prepared, PreparedRows
from r1jax.train.update import Trainer

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE)
"""What a disk says that takes no more."""


def checkpoint_bytes(found: Prepared) -> int:
    """Of one checkpoint of a stage, over all devices."""
    leaves = jax.tree.leaves(Trainer(found.stage, found.model, found.mesh).abstract())
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)


def room_needed(stages: Mapping[Path, tuple[config.Stage, int]]) -> tuple[int, Path | None]:
    """The bytes that checkpoints will take beside those that are there, at the most, and the stage that takes them so far.

    Args:
      stages: run directory -> the stage and the bytes of one of its checkpoints, in the order in which they run.
    """
    kept, most, where = 0, 0, None
    for path, (stage, size) in stages.items():
        there = rundir.saved_steps(path)
        newest, every = max(there, default=0), stage.checkpoint.every
        saves = stage.steps // every - newest // every + (stage.steps > newest and stage.steps % every > 0)
        stay = stage.checkpoint.keep + (stage.eval.every > 0)  # the newest and the best
        held = len(there) + max(0, saves)
        peak = kept + size * max(0, min(held, stay + 1) - len(there))  # one more while it is written
        kept += size * max(0, min(held, stay) - len(there))
        if peak > most:
            most, where = peak, path
    return most, where


def check_room(prepared: Mapping[str, Prepared | PreparedRows], run: RunDir, *, pipeline: bool) -> None:
    """
    Raises:
      ConfigError: the checkpoints of the stages that are to be run will not fit on the disk.
    """
    problem = ""
    if jax.process_index() == 0 and not mirror.is_remote(run.name):
        trained = {name: found for name, found in prepared.items() if isinstance(found, Prepared)}
        stages = {
            run.path / name if pipeline else run.path: (found.stage, checkpoint_bytes(found)) for name, found in trained.items()
        }
        need, where = room_needed(stages)
        if need > (free := shutil.disk_usage(run.path).free):
            keep = stages[where][0].checkpoint.keep
            problem = (
                f"the checkpoints will need {human(need)} and {human(free)} are free in {run.name}: each of {where} takes "
                f"{human(stages[where][1])}, and checkpoint.keep is {keep}, beside the best and the one that is written; make "
                "room, name a --run-dir on another disk, or lower checkpoint.keep"
            )
    _raise_everywhere("room", problem)


def check_writable(run: RunDir) -> None:
    """
    Raises:
      ConfigError: what a stage writes to in its run directory takes nothing.
    """
    problem = ""
    if jax.process_index() == 0:
        place = run.path
        try:
            for place in (run.metrics, run.samples):
                place.open("ab").close()
            if not mirror.is_remote(run.checkpoints):
                place = run.checkpoints
                place.mkdir(exist_ok=True)
                with tempfile.TemporaryFile(dir=place) as file:
                    file.write(b"1" * 4096)
        except OSError as error:
            problem = f"cannot write to {place}: {error.strerror}; make it writable and make room, or name another --run-dir"
    _raise_everywhere("writable", problem)


def explained(error: OSError, run: RunDir | None) -> str:
    """What is lost and what to do where a disk takes no more, in one line; empty for any other error."""
    if error.errno not in NO_ROOM or run is None:
        return ""
    saved = rundir.last_saved(run.path)
    what = f"{saved} is saved and whole" if saved else "nothing was saved yet"
    where = error.filename or run.name
    return f"cannot write to {where}: {error.strerror}; {what}; make room, and go on with --run-dir {run.name}"


def _raise_everywhere(name: str, problem: str) -> None:
    if told := from_first(name, problem):
        raise config.ConfigError(told)
