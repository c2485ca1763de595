"""What runs there are and how each is: ``r1jax runs``, and the head of a report."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from r1jax import lock, rundir
from r1jax.config.base import ConfigError
from r1jax.observe import jsonl
from r1jax.observe.metrics import FILE
from r1jax.observe.text import is_unicode, number, printable

STATES = {
    "finished": "finished", "guard": "stopped by a guard", "pre-empted": "pre-empted", "interrupted": "interrupted",
    "failed": "failed", "killed": "killed", "running": "running", "waiting": "not begun",
}  # fmt: skip
"""Of a run or a stage, in words."""
SCORES = ("eval/pass@1", "reward/total", "loss")
"""What tells how far a run is, the best first."""
RECENT = 600.0
"""Seconds: where a file system has no locks, a run that wrote since then is taken to go on."""
_CHANGING = (FILE, "samples.jsonl", "ledger.json", "config.json", "finished.json", "ended.json")


@dataclass(frozen=True)
class Stage:
    """A stage's run directory; of a single stage the run's own."""

    name: str
    path: Path
    config: dict
    state: str
    """A key of ``STATES``."""
    step: int
    steps: int | None
    """None of a stage that makes rows, whose steps are batches of prompts."""

    @property
    def kind(self) -> str:
        return self.config["kind"]


@dataclass(frozen=True)
class Run:
    path: Path
    config: dict
    stages: tuple[Stage, ...]
    state: str
    why: str
    """What a guard or an error said."""
    changed: float
    """When it last wrote something: seconds since the epoch."""

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def current(self) -> Stage:
        """The last stage that has begun."""
        begun = [stage for stage in self.stages if stage.state != "waiting"]
        return begun[-1] if begun else self.stages[0]


def read(path: Path) -> Run:
    """The run in a directory.

    Raises:
      ConfigError: there is none.
    """
    if not rundir.is_run(path):
        raise ConfigError(f"{path} is no run directory: it holds no config.json of a run; `r1jax runs` lists those in runs/")
    found = rundir.read_config(path)
    names = [""] if rundir.is_stage(found) else rundir.stages_of(found)
    stages = tuple(_stage(path / name, name, found[name] if name else found) for name in names)
    changed = max((_changed(p) for p in {path, *(s.path for s in stages)}), default=0.0)
    end, held = rundir.ended(path) or {}, rundir.is_held(path)
    if held:
        state = "running"
    elif end:  # an attempt removes what the one before it noted
        state = end["how"]
    elif held is None and time.time() - changed < RECENT:
        state = "running"
    else:
        state = "finished" if all(s.state == "finished" for s in stages) else "killed"
    if state not in ("finished", "killed"):  # the run knows more than the stage that it was in
        stages = tuple(dataclasses.replace(s, state=state) if s.state in ("killed", "running") else s for s in stages)
    return Run(path, found, stages, state, end.get("why", ""), changed)


def find(folder: Path) -> tuple[list[Run], list[str]]:
    """The runs in a folder, the newest last; and what is wrong with those that cannot be read, a line each."""
    found, damaged = [], []
    for path in sorted(p for p in folder.glob("*") if p.is_dir()):
        try:
            if rundir.is_run(path):
                found.append(read(path))
        except (ConfigError, ValueError) as error:
            damaged.append(str(error))
    return sorted(found, key=lambda run: run.changed), damaged


def score(stage: Stage) -> dict[str, Any] | None:
    """``{"name", "value", "step"}`` of the newest of the first of ``SCORES`` that the stage has."""
    for name in SCORES:
        key = json.dumps(name).encode()
        for line in backwards(stage.path / FILE):
            if key in line and (value := json.loads(line).get(name)) is not None:
                return {"name": name, "value": value, "step": json.loads(line)["step"]}
    return None


def backwards(path: Path, block: int = 1 << 16) -> Iterator[bytes]:
    """The whole lines of a file, the last one first; none if it is not there."""
    if not path.exists():
        return
    with path.open("rb") as file:
        position, rest, torn = file.seek(0, 2), b"", True
        while position:
            size = min(block, position)
            position -= size
            file.seek(position)
            rest, *lines = (file.read(size) + rest).split(b"\n")
            if torn and lines:
                lines.pop()  # what is behind the last newline
                torn = False
            yield from (line for line in reversed(lines) if line)
        if rest and not torn:
            yield rest


def show_runs(folder: Path, *, as_json: bool = False, console: Console | None = None) -> int:
    """Prints a line for each run in a folder, the newest last.

    Returns:
      0, the exit code.

    Raises:
      ConfigError: there is no such folder.
    """
    console = console or Console(highlight=False)
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder; name one that holds run directories")
    found, damaged = find(folder)
    for line in damaged:
        print(line, file=sys.stderr)
    if as_json:
        print(json.dumps([jsonl.plain(_told(run)) for run in found], indent=1))
        return 0
    if not found and not damaged:
        console.print(f"no runs in {folder}", markup=False)
    for run in found:
        told = _told(run)
        step = f"step {told['step']}" + (f"/{told['steps']}" if told["steps"] else "")
        parts = [f"{told['stage']} {step}".strip()]
        if told["score"]:
            parts.append(f"{told['score']['name'].removeprefix('eval/')} {number(told['score']['value'])}")
        parts.append(f"{age(told['age_seconds'])} ago")
        style = {"running": "green", "finished": "", "guard": "red", "failed": "red"}.get(run.state, "yellow")
        name = escape(printable(str(run.path), console.encoding or "utf-8"))
        console.print(f"[bold]{name}[/]  [{style or 'default'}]{STATES[run.state]}[/]", soft_wrap=True)
        console.print("  " + escape(f"{_dot(console)}".join(parts)), soft_wrap=True)
        if run.why:
            console.print("  " + escape(printable(run.why, console.encoding or "utf-8")), style="dim", soft_wrap=True)
    return 0


def age(seconds: float) -> str:
    """``42 s``, ``3 min``, ``5 h``, ``12 d``."""
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def _told(run: Run) -> dict[str, Any]:
    stage = run.current
    best = next((s for each in reversed(run.stages) if (s := score(each))), None)
    return {
        "run": str(run.path), "state": run.state, "why": run.why, "stage": stage.name, "kind": stage.kind, "step": stage.step,
        "steps": stage.steps, "score": best, "age_seconds": max(0.0, time.time() - run.changed),
    }  # fmt: skip


def _dot(console: Console) -> str:
    return " · " if is_unicode(console.encoding) else ", "


def _stage(path: Path, name: str, settings: dict) -> Stage:
    own = rundir.read_config(path) if rundir.is_run(path) else settings
    step = next((json.loads(line)["step"] for line in backwards(path / FILE)), 0)
    finished = rundir.RunDir(path, own).finished
    if lock.is_taken(path):  # a bucket knows of the run alone
        state = "running"
    elif finished:
        state = "finished"
    else:
        state = "killed" if step or rundir.is_run(path) else "waiting"
    return Stage(name, path, own, state, int(step), own.get("steps"))


def _changed(path: Path) -> float:
    return max((file.stat().st_mtime for name in _CHANGING if (file := path / name).exists()), default=0.0)
