"""Sampled answers with their rewards: ``samples.jsonl``, and the viewer behind ``r1jax samples``.

A row is ``{"step", "prompt_id", "sample", "source", "prompt", "completion", "answer", "rewards": {name: {"value", "status",
"why"}}, "reward": float, "advantage": float, "finish": str, "length": int}``; of a stage that makes
rows also ``dropped``, the rule that an answer broke ('' where it was kept), and ``why``.
"""

from __future__ import annotations

import json
import operator
import re
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from r1jax import mirror, rundir
from r1jax.config.observe import Samples
from r1jax.observe import jsonl
from r1jax.observe.text import number, printable

FILE = "samples.jsonl"
FIELDS = ("step", "prompt_id", "sample", "source", "answer", "reward", "advantage", "finish", "length", "dropped")
"""Fields of a row that ``--where`` compares, beside rewards by name, ``NAME.status``, ``truncated`` and ``held_out``."""
COMPARES = {"=": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
NAMED = 5
"""Runs that a complaint names at most."""


class SamplesWriter:
    """Appends sampled answers to ``samples.jsonl`` in the run directory ``path``.

    Args:
      path: the run directory; made if absent.
      resumed_at: the step of the checkpoint that a resumed run goes on from; later rows are dropped.
    """

    def __init__(self, path: Path, *, resumed_at: int | None = None):
        self._lines = jsonl.Appender(Path(path) / FILE, resumed_at)

    def write(self, step: int, rows: list[dict]) -> None:
        """``rows`` are as the module says; ``step`` is put in."""
        self._lines.write(*({**row, "step": int(step)} for row in rows))

    def close(self) -> None:
        self._lines.close()

    def __enter__(self) -> SamplesWriter:
        return self

    def __exit__(self, *_) -> None:
        self.close()


@dataclass(frozen=True)
class Condition:
    """``name`` of a row compared with ``value``."""

    name: str
    compare: str
    value: str

    @classmethod
    def parse(cls, text: str) -> Condition:
        """
        Raises:
          ValueError: ``text`` is not NAME, one of ``COMPARES``, and a value.
        """
        match = re.fullmatch(r"\s*([^=<>!]+?)\s*(<=|>=|!=|[=<>])\s*(.*?)\s*", text)
        if not match or (match[2][0] in "<>" and _as_float(match[3]) is None):
            raise ValueError(f"--where {text}: expected NAME=VALUE, NAME!=VALUE, NAME<NUMBER, <=, > or >=, e.g. accuracy=0")
        return cls(*match.groups())

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Numbers are compared as numbers, anything else as text, and only by = and !=. An absent name does not hold."""
        if self.name not in values:
            return False
        value = values[self.name]
        left, right = _as_float(value), _as_float(self.value)
        if left is None or right is None:
            same = str(value) == self.value
            return same if self.compare == "=" else self.compare == "!=" and not same
        return COMPARES[self.compare](left, right)


def values(row: Mapping[str, Any]) -> dict[str, Any]:
    """What ``--where`` can name in a row: its fields, and each reward's value and ``NAME.status``."""
    found = {name: row[name] for name in FIELDS if name in row}
    found |= {"truncated": float(row.get("finish") == "length"), "held_out": float(row.get("held_out", False))}
    for name, score in row.get("rewards", {}).items():
        found[name] = score.get("value")
        found[f"{name}.status"] = score.get("status")
    return found


def show_samples(command: Samples, console: Console | None = None) -> int:
    """Prints the last samples of a run, or of each stage of a pipeline's run; with ``follow`` also those that come.

    Returns:
      0, the exit code.

    Raises:
      ValueError: no samples there, a malformed condition, or a name that no sample has; one line.
    """
    run, last, follow = Path(command.run), command.last, command.follow
    if mirror.is_remote(command.run):
        run = rundir.find(command.run)
    console = console or Console(highlight=False)
    conditions = [Condition.parse(text) for text in command.where]
    wanted = command.text.casefold()

    def matches_all(row: Mapping[str, Any]) -> bool:
        if wanted and wanted not in f"{prompt_of(row)}\n{row.get('completion', '')}".casefold():
            return False
        return all(c.holds(values(row)) for c in conditions)

    if not run.is_dir():
        raise ValueError(f"{run} is not a directory; name a run directory, such as runs/quickstart-20260101-120000")
    if runs := _runs(run):
        newest = ", ".join(str(path) for path in runs[-NAMED:])
        raise ValueError(f"{run} is a folder of {len(runs)} runs; name one: {newest}{', ...' if len(runs) > NAMED else ''}")
    tails = {stage: _Tail(path) for stage, path in _files(run).items()}
    if not tails and not follow:
        raise ValueError(f"{run} holds no {FILE}; the run has sampled nothing yet, or its log.samples_per_step is 0")

    known: set[str] = set()
    matches: dict[str, deque[dict]] = {stage: deque(maxlen=last or None) for stage in tails}
    for stage, tail in tails.items():
        for row in tail.rows():
            known |= values(row).keys()
            if matches_all(row):
                matches[stage].append(row)
    for condition in conditions:
        if known and condition.name not in known:
            raise ValueError(f"--where {condition.name}: no sample has it; there are {', '.join(sorted(known))}")
    for stage, rows in matches.items():
        for row in rows:
            print_sample(row, stage, console)
    if not any(matches.values()) and not follow:
        console.print("no sample matches" if known else "no samples yet", highlight=False)

    try:
        while follow:
            for stage, path in _files(run).items():
                for row in tails.setdefault(stage, _Tail(path)).rows():
                    if matches_all(row):
                        print_sample(row, stage, console)
            time.sleep(0.5)
    except KeyboardInterrupt:
        pass  # the way that following ends
    return 0


def print_sample(row: Mapping[str, Any], stage: str, console: Console) -> None:
    """One sample in full: a ruled heading, prompt, completion, and a line for each reward."""

    def put(text: str, style: str = "") -> None:
        console.print(Text(printable(text, console.encoding or "utf-8"), style), soft_wrap=True)

    heading = [stage] if stage else []
    heading += [f"{name} {row[name]}" for name in ("step", "source", "prompt_id", "sample") if name in row]
    console.rule(Text(printable("  ".join(heading), console.encoding or "utf-8"), "bold"), align="left")
    put(prompt_of(row), "dim")
    put(str(row.get("completion", "")))
    if row.get("answer") is not None:
        put(f"answer      {row['answer']}", "green")
    for name, score in row.get("rewards", {}).items():
        status, value, why = score.get("status", "ok"), score.get("value"), score.get("why", "")
        text = "null" if value is None else number(value)
        put("  ".join([f"{name:<10}  {text:<6}", status, *([why] if why else [])]), "cyan" if status == "ok" else "red")
    ends = [f"{k} {number(row[k])}" for k in ("reward", "advantage") if row.get(k) is not None]
    ends += [f"{k} {row[k]}" for k in ("finish", "length") if k in row]
    put("  ".join(ends), "dim")
    put("")


def prompt_of(row: Mapping[str, Any]) -> str:
    """The prompt as text, also where it is messages."""
    prompt = row.get("prompt", "")
    if isinstance(prompt, list):
        return "\n".join(f"{message.get('role')}: {message.get('content')}" for message in prompt)
    return str(prompt)


class _Tail:
    """The complete lines of a file that were not yet read; starts over when the file was cut back."""

    def __init__(self, path: Path):
        self._path = path
        self._offset = 0

    def rows(self) -> Iterator[dict]:
        with self._path.open("rb") as file:
            if file.seek(0, 2) < self._offset:
                self._offset = 0
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                yield jsonl.parse(line, f"{self._path}, byte {self._offset - len(line)}")


def _runs(folder: Path) -> list[Path]:
    """The runs in a folder, the newest last; none if it is a run itself."""
    if (folder / "config.json").exists():
        return []
    return sorted((path.parent for path in folder.glob("*/config.json")), key=lambda path: path.stat().st_mtime)


def _files(run: Path) -> dict[str, Path]:
    """The samples of a run under "", or those of a pipeline's stages under their names, in the order of its config."""
    if (run / FILE).exists():
        return {"": run / FILE}
    found = {path.parent.name: path for path in run.glob(f"*/{FILE}")}
    config = run / "config.json"
    # Of a pipeline its stages alone: what was put aside lies beside them.
    order = list(json.loads(config.read_text())) if config.exists() else sorted(found)
    return {name: found[name] for name in order if name in found}


def _as_float(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
