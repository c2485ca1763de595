"""``r1jax compare``: one metric of several runs, those that differ by their seed alone taken together."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table

from r1jax.config import ConfigError
from r1jax.observe.curve import Point, curve_png
from r1jax.observe.metrics import FILE, read_metrics, series


def compare(runs: Sequence[Path], *, metric: str, out: Path | None) -> int:
    """Prints a table, and writes the curves to ``out`` and all figures beside it as JSON. Returns the exit code.

    Raises:
      ConfigError: a run has no such metric.
    """
    groups: dict[str, list[list[Point]]] = {}
    for run in runs:
        groups.setdefault(label(run), []).append(points_of(run, metric))
    told = {name: summary(curves) for name, curves in groups.items()}
    console = Console(highlight=False)
    table = Table(title=f"{metric}, mean over runs ± standard error", title_justify="left")
    for column in ("", "runs", "first", "last", "best step", "its mean"):
        table.add_column(column, justify="right" if column else "left")
    for name, s in sorted(told.items(), key=lambda item: -item[1]["last"]):
        step, best = max(s["mean"], key=lambda point: point[1])
        table.add_row(name, str(s["runs"]), *(with_error(s, end) for end in ("first", "last")), f"{step:.0f}", f"{best:.3f}")
    console.print(table)
    if out is not None:
        curve_png(out, {name: s["mean"] for name, s in told.items()}, title=metric, ylabel=metric)
        figures = {"metric": metric, "groups": {name: s | {"curves": groups[name]} for name, s in told.items()}}
        out.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")
        console.print(f"(as a picture: {out}; the figures: {out.with_suffix('.json')})", markup=False, soft_wrap=True)
    return 0


def label(run: Path) -> str:
    """The run directory's name without the numbers at its end: ``compare_grpo`` of ``compare_grpo-2``."""
    return re.sub(r"(-\d+)+$", "", run.absolute().name)


def points_of(run: Path, metric: str) -> list[Point]:
    """``(step, value)``, rising, of a run, or of the last stage of a pipeline that has the metric."""
    described = json.loads((run / "config.json").read_text()) if (run / "config.json").exists() else {}
    for place in (*(run / name for name in reversed(described)), run):
        if (place / FILE).exists() and (found := series(read_metrics(place), metric)):
            return sorted((float(x), float(y)) for x, y in dict(found).items())
    raise ConfigError(f"{run}: no stage of it has written {metric!r}; name a run, or another metric of its metrics.jsonl")


def summary(curves: Sequence[Sequence[Point]]) -> dict[str, Any]:
    """Means over the runs at the steps that all have, with the standard errors at both ends (nan of a single run)."""
    steps = sorted(set.intersection(*({x for x, _ in points} for points in curves)))
    if not steps:
        raise ConfigError("runs of one name have no step in common; give runs of one config")
    at = [dict(points) for points in curves]
    found: dict[str, Any] = {"runs": len(curves), "mean": [(x, mean(points[x] for points in at)) for x in steps]}
    for end, step in (("first", steps[0]), ("last", steps[-1])):
        values = [points[step] for points in at]
        found[end] = mean(values)
        found[f"{end}_error"] = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return found


def with_error(told: Mapping[str, Any], end: str) -> str:
    error = told[f"{end}_error"]
    return f"{told[end]:.3f}" + ("" if error is None else f" ± {error:.3f}")
