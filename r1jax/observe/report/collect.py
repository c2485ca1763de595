"""What a report shows, read from run directories: one value of JSON, which the page draws."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import r1jax
from r1jax import config, rundir
from r1jax.config.base import ConfigError
from r1jax.observe import jsonl, ledger, runs
from r1jax.observe.metrics import FILE, LOAD
from r1jax.observe.report import curves, panels, published
from r1jax.observe.samples import FILE as SAMPLES

EDGES = ("eval/pass@1", "eval/greedy")
"""Of these the table of stages shows the first value too."""
LASTS = ("reward/total", "length/mean", "length/truncated", "kl", "entropy", "loss")


def collect(found: Sequence[runs.Run], bench: Sequence[Path] = ()) -> dict[str, Any]:
    """All of a page.

    Args:
      bench: files that ``r1jax bench --out`` wrote.

    Raises:
      ConfigError: a file of ``bench`` is none.
      ValueError: a broken line in a run's files; names file and line.
    """
    tracks = [(run, stage) for run in found for stage in run.stages if stage.state != "waiting"]
    columns = [curves.read_columns(stage.path / FILE) for _, stage in tracks]
    points = curves.points_each(sum(map(len, columns)))
    loads = [curves.expert_load(s.path / LOAD, curves.CELLS // max(1, len(tracks))) for _, s in tracks]
    return {
        "title": ", ".join(run.name for run in found),
        "version": r1jax.__version__,
        "made": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "runs": [_run(run) for run in found],
        "tracks": [_track(run, stage, found, column) for (run, stage), column in zip(tracks, columns, strict=True)],
        "groups": panels.lay_out({key for column in columns for key in column}),
        "curves": [{key: curves.curve(c, points) for key, c in column.items()} for column in columns],
        "experts": loads,
        "samples": _samples([stage for _, stage in tracks]),
        "cost": [_cost(run) for run in found],
        "published": {"stages": published.STAGES, "table": published.TABLE},
        "settings": [published.beside(stage.config) for _, stage in tracks],
        "provenance": [provenance(stage) for _, stage in tracks],
        "configs": [run.config for run in found],
        "differences": differences(found),
        "bench": [read_bench(path) for path in bench],
    }


def _run(run: runs.Run) -> dict[str, Any]:
    changed = datetime.datetime.fromtimestamp(run.changed).astimezone().isoformat(timespec="seconds")
    return {
        "name": run.name, "path": str(run.path), "state": run.state, "says": runs.STATES[run.state], "why": run.why,
        "changed": changed, "pipeline": not rundir.is_stage(run.config),
    }  # fmt: skip


def _track(run: runs.Run, stage: runs.Stage, found: Sequence[runs.Run], column: dict[str, curves.Column]) -> dict[str, Any]:
    names = [*([run.name] if len(found) > 1 else []), *([stage.name] if stage.name else [])]
    edge = {key: _edges(column[key]) for key in column if key.startswith("eval/") or key in LASTS}
    return {
        "label": " / ".join(names) or run.name, "run": found.index(run), "stage": stage.name, "kind": stage.kind,
        "init": stage.config.get("init", ""), "state": stage.state, "says": runs.STATES[stage.state], "step": stage.step,
        "steps": stage.steps, "edges": {key: value for key, value in edge.items() if value},
    }  # fmt: skip


def _edges(column: curves.Column) -> list[float] | None:
    """The first and the last finite value."""
    fine = [v for v in column[1] if math.isfinite(v)]
    return [fine[0], fine[-1]] if fine else None


def _samples(stages: Sequence[runs.Stage]) -> dict[str, Any]:
    files = [stage.path / SAMPLES for stage in stages]
    with_some = sum(file.exists() for file in files)
    shown, total = [], 0
    for track, file in enumerate(files):
        rows, count = curves.samples(file, curves.SAMPLES // max(1, with_some))
        shown += [{"track": track, **row} for row in rows]
        total += count
    return {"rows": curves.fit(shown), "total": total, "texts": curves.TEXTS}


def _cost(run: runs.Run) -> dict[str, Any]:
    """The bill of a run: ``stages`` {name: account}, ``put_aside``, ``total``, ``published``."""
    bill = config.Bill()
    if "bill" in run.config:
        bill = config.from_json(config.Bill, run.config["bill"], f"{run.path / 'config.json'}: bill")
    if rundir.is_stage(run.config):
        file = run.path / ledger.FILE
        stages = {run.name: ledger.account(json.loads(file.read_text()), bill)} if file.exists() else {}
        return {"stages": stages, "put_aside": {}, "total": ledger.total(stages.values()), "published": {}}
    return ledger.bill_of(run.path, rundir.stages_of(run.config), bill)


def provenance(stage: runs.Stage) -> dict[str, Any]:
    """Where a stage's model and rows come from: ``sources`` with the digest of their rows, commits of the Hub, what earlier
    stages made, and of rows that were cleaned or made here the counts."""
    settings = stage.config
    digests, about = settings.get("digests", {}), []
    listed = [("trains on", s) for s in settings["sources"]]
    listed += [("adds", s) for s in settings.get("join", [])]
    listed += [("is measured on", s) for s in settings.get("eval", {}).get("sources", [])]
    for use, source in listed:
        told = {
            "use": use, "name": source["name"], "path": source["path"], "digest": digests.get(source["name"], ""),
            "weight": source.get("weight"), "rewards": source.get("rewards", {}),
        }  # fmt: skip
        about.append(told | ({"summary": found} if (found := _summary(Path(source["path"]))) else {}))
    made = stage.path / "statistics.json"
    return {
        "init": settings.get("init", ""), "sources": about, "commits": settings.get("commits", {}),
        "inputs": settings.get("inputs", {}), "made": json.loads(made.read_text()) if made.exists() else None,
    }  # fmt: skip


def _summary(path: Path) -> dict[str, Any] | None:
    """What ``r1jax data provenance`` counted in a file of rows, where it lies beside it."""
    file = path.with_name(f"{path.stem}.summary.json")
    if path.suffix != ".jsonl" or not file.is_file():
        return None
    found = json.loads(file.read_text())
    kept = ("sources", "licences", "dates", "rows_that_name_a_model", "models", "rows_of_an_unnamed_model", "notice")
    return {name: found[name] for name in kept if name in found} or None


def differences(found: Sequence[runs.Run]) -> list[dict[str, Any]]:
    """Settings in which the runs are not alike: ``{"field", "values": one for each run}``; what was only found is left out."""
    if len(found) < 2:
        return []
    configs = [_settings(run.config) for run in found]
    places = dict.fromkeys(place for other in configs[1:] for place, _, _ in config.diff(configs[0], other))
    return [{"field": place, "values": [_at(c, place.split(".")) for c in configs]} for place in places]


def _settings(value: dict) -> dict:
    kept = {k: v for k, v in value.items() if k not in rundir.FOUND}
    return {k: _settings(v) if rundir.is_stage(v) else v for k, v in kept.items()}


def _at(value: Any, parts: list[str]) -> Any:
    """Names may hold dots themselves (file.py:f): the longest that is there is taken."""
    if not parts:
        return value
    if isinstance(value, list) and parts[0].isdigit() and int(parts[0]) < len(value):
        return _at(value[int(parts[0])], parts[1:])
    if isinstance(value, dict):
        for n in range(len(parts), 0, -1):
            if ".".join(parts[:n]) in value:
                return _at(value[".".join(parts[:n])], parts[n:])
    return None


def read_bench(path: Path) -> dict[str, Any]:
    """The parts of a bench file that the page shows.

    Raises:
      ConfigError: it is no file that ``r1jax bench --out`` wrote.
    """
    try:
        found = json.loads(path.read_text())
        kept = {name: found[name] for name in ("command", "settings", "parameters", "versions", "limits", "figures", "ratios")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no file that `r1jax bench --out` wrote ({type(error).__name__}: {error})") from error
    return jsonl.plain(kept | {"file": path.name})
