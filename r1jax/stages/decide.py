"""What becomes of each stage of a pipeline: kept as it is, gone on with, run, or run anew.

It is read off the run directory each time, so it does not matter where an earlier attempt was killed. A stage is run anew if
its config changed in a field that a resumed run may not change, if what it began with is made anew or is no longer what it
began with, or if ``--from`` names it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, NamedTuple

from r1jax import config, mirror, rundir
from r1jax.config import AnyStage, Pipeline, RejectionSampling
from r1jax.rundir import RunDir

ASKED = ".from"
"""In the run directory: the stage from which on it is being run anew, until that is done. With it the command that asked for it
can be given again after a kill."""


class Decision(NamedTuple):
    do: Literal["keep", "go on", "run", "rerun", "leave"]
    """``leave``: outside of what was asked for, and not finished."""
    why: str

    def line(self, name: str) -> str:
        return f"{name}: {self.do}" + (f", {self.why}" if self.why else "")


def decide(
    pipeline: Pipeline, run: Path | None, first: str | None = None, last: str | None = None
) -> dict[str, Decision]:
    """A decision for each stage, in their order.

    Args:
      run: the pipeline's run directory, if it is there.
      first: ``--from``: stages before it are used as they are, changed or not; itself is run anew if it was finished.
      last: ``--until``: stages after it are left alone.

    Raises:
      ConfigError: there is no such stage; what a stage needs is neither finished nor to be run; a stage on ``gs://`` is to be
        run anew.
    """
    stages, inputs = pipeline.stages(), pipeline.inputs()
    names = list(stages)
    for flag, name in (("--from", first), ("--until", last)):
        if name is not None and name not in stages:
            raise config.ConfigError(f"{flag} {name}: no such stage; there are {', '.join(names)}")
    begin = 0 if first is None else names.index(first)
    end = len(names) - 1 if last is None else names.index(last)
    if begin > end:
        raise config.ConfigError(f"--from {first} comes after --until {last}; there is nothing between them")
    asked = first is not None and (run is None or first != asked_for(run))
    found: dict[str, Decision] = {}
    for i, (name, stage) in enumerate(stages.items()):
        place = run / name if run is not None else None
        # Of a finished stage, what it made may have been deleted for the room that it took.
        finished = place is not None and RunDir(place, {}).is_finished(steps(stage))
        place = place if finished or (place is not None and rundir.has_saved(place)) else None
        if i > end:
            found[name] = Decision("leave", f"after --until {last}")
        elif i < begin:
            found[name] = Decision("keep" if finished else "leave", f"before --from {first}")
        else:
            if missing := [n for n in inputs[name] if found[n].do == "leave"]:
                raise config.ConfigError(f"{name} needs {missing[0]}, which is before --from {first} and is not finished")
            made_anew = [n for n in inputs[name] if found[n].do != "keep"]
            forced = asked and i == begin and finished
            why = "" if place is None else stale(stage, run, name, inputs[name], made_anew, forced)
            if place is None:
                found[name] = Decision("run", "")
            elif why:
                found[name] = Decision("rerun", why)
            elif finished:
                found[name] = Decision("keep", "finished")
            else:
                found[name] = Decision("go on", f"from {rundir.last_saved(place)}")
    if (again := [n for n, d in found.items() if d.do == "rerun"]) and mirror.is_remote(at := mirror.there(run)):
        raise config.ConfigError(
            f"{at}: {' and '.join(again)} must be run anew ({again[0]}: {found[again[0]].why}), and in a bucket nothing is put "
            f"aside for you: move it away (gcloud storage mv {at}/{again[0]} {at}/{again[0]}.1), or delete it, and begin again"
        )
    return found


def stale(
    stage: AnyStage, run: Path, name: str, inputs: tuple[str, ...], made_anew: list[str], forced: bool
) -> str:
    """Why a stage that has saved something must be run anew; '' if it need not."""
    if forced:
        return "--from names it"
    if changes := rundir.changes(run / name, config.to_json(stage)):
        return rundir.tell(changes)
    if made_anew:
        return f"it begins with what {' and '.join(made_anew)} will make"
    began_with = rundir.inputs(run / name)
    now = {n: rundir.identity(run / n) for n in inputs}
    others = [n for n in inputs if now[n] and began_with.get(n, now[n]) != now[n]]
    return f"{' and '.join(others)} is no longer what it began with" if others else ""


def steps(stage: AnyStage) -> int:
    """What ``finished.json`` must say at least."""
    return 1 if isinstance(stage, RejectionSampling) else stage.steps


def asked_for(run: Path) -> str | None:
    """The stage that an attempt which did not end was to begin from."""
    file = run / ASKED
    return json.loads(file.read_text()) if file.exists() else None


def note_asked(run: Path, first: str | None) -> None:
    """Notes it; None forgets it."""
    if first is None:
        (run / ASKED).unlink(missing_ok=True)
    else:
        (run / ASKED).write_text(json.dumps(first) + "\n")
