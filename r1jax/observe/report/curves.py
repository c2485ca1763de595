"""A run's metrics and samples made small enough for a page, and saying what was left out."""

from __future__ import annotations

import base64
import json
import math
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from r1jax.observe import jsonl
from r1jax.observe.samples import prompt_of
from r1jax.observe.text import printable, shorten

POINTS = 500
"""Of a curve at most; a curve of more has so many stretches of steps, each with its mean, least and most."""
ALL_POINTS = 150_000
"""Of all curves of a page, more or less; with many curves each has fewer."""
FEWEST = 60
CELLS = 1 << 21
"""Of a heat map: a byte each."""
SAMPLES = 1000
"""Of a page at most."""
SAMPLE_BYTES = 6_000_000
TEXTS = {"prompt": 1500, "thought": 3000, "answer": 1500, "why": 300, "expected": 300}
"""Characters kept of each; of a longer one the beginning and the end."""

Column = tuple[array, array]
"""Steps and values, float64 each."""


def read_columns(file: Path) -> dict[str, Column]:
    """``metrics.jsonl`` by key, in the order written; a value that was not finite is NaN. A row of 100,000 would take a page
    of memory as a dict, here a few bytes a value.

    Raises:
      ValueError: a line before the last is broken.
    """
    columns: dict[str, Column] = {}
    for row in jsonl.read(file) if file.exists() else ():
        step = row.pop("step", math.nan)
        for key, value in row.items():
            if key not in columns:
                columns[key] = (array("d"), array("d"))
            steps, values = columns[key]
            steps.append(step)
            values.append(math.nan if value is None else value)
    return columns


def curve(column: Column, points: int) -> dict[str, Any]:
    """``{"x": steps, "y": values, "n": how many there were, "bad": how many of them were not finite}``; of more than ``points``
    also ``lo`` and ``hi``, the least and the most of the stretch whose mean is ``y`` and whose mean step is ``x``."""
    x, y = (np.frombuffer(part, np.float64) for part in column)
    fine = np.isfinite(y) & np.isfinite(x)
    told: dict[str, Any] = {"n": len(y), "bad": int((~fine).sum())}
    x, y = x[fine], y[fine]
    if len(y) <= points:
        return told | {"x": _short(x), "y": _short(y)}
    starts = np.linspace(0, len(y), points, endpoint=False).astype(int)
    sizes = np.diff(np.append(starts, len(y)))
    told |= {"x": _short(np.add.reduceat(x, starts) / sizes), "y": _short(np.add.reduceat(y, starts) / sizes)}
    return told | {"lo": _short(np.minimum.reduceat(y, starts)), "hi": _short(np.maximum.reduceat(y, starts))}


def points_each(curves: int) -> int:
    """How many points each of so many curves may have."""
    return max(FEWEST, min(POINTS, ALL_POINTS // max(1, curves)))


def expert_load(file: Path, cells: int = CELLS) -> dict[str, Any] | None:
    """``experts.jsonl`` as ``{"steps", "layers", "experts", "data", "left_out"}``, where ``data`` is base64 of
    uint8[steps, layers, experts]: the ``level`` of each load. None where there is none. Of too many rows, some that are spread
    over the run."""
    if not file.exists():
        return None
    count = sum(1 for _ in _lines(file))
    if not count:
        return None
    first = json.loads(next(_lines(file)))["load"]
    layers, experts = len(first), len(first[0])
    wanted = set(_spread(count, max(1, cells // (layers * experts))))
    steps, loads = [], []
    for i, line in enumerate(_lines(file)):
        if i in wanted:
            row = json.loads(line)
            steps.append(row["step"])
            loads.append([[math.nan if x is None else x for x in layer] for layer in row["load"]])
    levels = np.array([level(np.asarray(load)) for load in loads], np.uint8)
    return {
        "steps": steps, "layers": layers, "experts": experts, "left_out": count - len(steps),
        "data": base64.b64encode(levels.tobytes()).decode(),
    }  # fmt: skip


def level(load: np.ndarray) -> np.ndarray:
    """uint8 of loads over the mean: 1 + 127 + 32 log2(load) within 1 to 255, so 128 is the mean and a step of 32 twice as much;
    0 where there is none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.clip(np.round(128 + 32 * np.log2(load)), 1, 255)
    return np.where(np.isfinite(load) & (load > 0), np.nan_to_num(found), 0).astype(np.uint8)


def samples(file: Path, most: int) -> tuple[list[dict[str, Any]], int]:
    """At most so many rows of ``samples.jsonl``, evenly spread over the run, and how many there are in all."""
    if not file.exists() or not most:
        return [], sum(1 for _ in _lines(file)) if file.exists() else 0
    count = sum(1 for _ in _lines(file))
    wanted = set(_spread(count, most))
    return [_sample(json.loads(line)) for i, line in enumerate(_lines(file)) if i in wanted], count


def fit(rows: list[dict[str, Any]], limit: int = SAMPLE_BYTES) -> list[dict[str, Any]]:
    """Every row, or every second, fourth, ... so that they take ``limit`` bytes at most."""
    sizes = [len(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace")) for row in rows]
    every = 1
    while sum(sizes[::every]) > limit and every < len(rows):
        every *= 2
    return rows[::every]


def _sample(row: dict) -> dict[str, Any]:
    thought, answer = parts(str(row.get("completion", "")))
    texts = {"prompt": prompt_of(row), "thought": thought, "answer": answer, "why": str(row.get("why") or "")}
    texts["expected"] = "" if row.get("answer") is None else str(row["answer"])
    clipped = [name for name, text in texts.items() if len(text) > TEXTS[name]]
    told = {name: _cut(text, TEXTS[name]) for name, text in texts.items() if text}
    told |= {name: row[name] for name in ("step", "source", "finish", "length", "dropped") if row.get(name) not in (None, "")}
    told |= {name: jsonl.plain(round(row[name], 4)) for name in ("reward", "advantage") if row.get(name) is not None}
    told["rewards"] = {
        name: [s.get("value"), s.get("status", "ok"), _cut(str(s.get("why") or ""), TEXTS["why"])]
        for name, s in row.get("rewards", {}).items()
    }
    told["id"] = f"{row.get('prompt_id', '')}.{row.get('sample', '')}"
    return told | ({"held": True} if row.get("held_out") else {}) | ({"clipped": clipped} if clipped else {})


def parts(completion: str) -> tuple[str, str]:
    """The thought and what follows it. One that was not closed is all thought; without a ``<think>`` all is answer."""
    before, mark, after = completion.rpartition("</think>")
    if mark:
        return re.sub(r"^\s*<think>", "", before).strip("\n"), after.strip("\n")
    if completion.lstrip().startswith("<think>"):
        return completion.lstrip().removeprefix("<think>").strip("\n"), ""
    return "", completion.strip("\n")


def _cut(text: str, limit: int) -> str:
    return printable(shorten(text, limit, limit))


def _lines(file: Path) -> Iterator[bytes]:
    """The whole lines."""
    with file.open("rb") as content:
        yield from (line for line in content if line.endswith(b"\n"))


def _spread(count: int, most: int) -> list[int]:
    """So many of 0 to count - 1 at most, the first and the last among them."""
    return list(range(count)) if count <= most else np.linspace(0, count - 1, most).round().astype(int).tolist()


def _short(values: np.ndarray) -> list[float]:
    """With five significant digits."""
    return [int(v) if v == int(v) and abs(v) < 1e9 else float(f"{v:.5g}") for v in values.tolist()]
