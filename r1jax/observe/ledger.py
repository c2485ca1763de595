"""What a run cost: where its time, its tokens and its arithmetic went, over all its resumes; and the bill of a pipeline."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from r1jax.config import Bill
from r1jax.observe.energy import Meter
from r1jax.observe.phases import Clock
from r1jax.observe.text import number

FILE = "ledger.json"
PLAN = "plan.json"
"""Of ``r1jax plan CONFIG --out RUN/plan.json``: its prediction stands beside what a pipeline's run took."""
AT_WORK = ("preflight", "rollout", "preference", "score", "update", "eval", "rewrite")
"""Phases in which the devices compute. In all others, and between them, they are idle."""
PUBLISHED = {"R1-Zero": (101_000, 202_000), "SFT data creation": (5_000, 10_000), "R1": (41_000, 82_000)}
"""H800 hours and dollars at 2 an hour (arXiv 2501.12948v2, appendix); in all 147K hours, $294K. Failed runs and the base
model's own training are in none of them."""
_MARKS = 8


class Ledger:
    """Sums per phase, in ``ledger.json``::

        {"phases": {"rollout": {"seconds": 12.5, "tokens": 40960, "flops": 1.2e12}},
         "seconds": 14.0, "redone_seconds": 0.0, "devices": 8, "resumes": 1, "joules": {"gpu": 5000.0}, "saved": {"20": 13.9}}

    ``seconds`` is the time that the run held its devices. Work that a resume threw away stays in the sums, for it was paid for;
    ``redone_seconds`` is how long it took, as far as it was written down before the end. ``saved`` is the run's time at its
    last saves, by step.

    Args:
      path: the run directory. A ledger found there is continued, and ``resumes`` grows by one.
      devices: how many accelerators the run holds.
      resumed_at: the step that the run goes on from; None begins again.
      meter: of the energy.
    """

    def __init__(
        self,
        path: Path,
        devices: int = 1,
        *,
        resumed_at: int | None = None,
        meter: Meter | None = None,
        timer: Clock = time.monotonic,
    ):
        self._file = Path(path) / FILE
        self._timer, self._began, self._meter = timer, timer(), meter
        self.phases: dict[str, dict[str, float]] = {}
        self.devices = devices
        self.resumes = 0
        self._before, self.redone, self._saved, self._joules = 0.0, 0.0, {}, {}
        if self._file.exists():
            found = json.loads(self._file.read_text())
            self.phases, self.resumes = found["phases"], found["resumes"] + 1
            self._before, self._saved = found.get("seconds", 0.0), found.get("saved", {})
            self._joules = found.get("joules", {})
            kept = 0.0 if resumed_at is None else self._saved.get(str(resumed_at), self._before)
            self.redone = found.get("redone_seconds", 0.0) + self._before - kept

    @property
    def seconds(self) -> float:
        return self._before + self._timer() - self._began

    def add(self, phase: str, seconds: float = 0.0, tokens: int = 0, flops: float = 0.0) -> None:
        sums = self.phases.setdefault(phase, {})
        for name, value in (("seconds", seconds), ("tokens", tokens), ("flops", flops)):
            sums[name] = sums.get(name, 0) + value

    def save(self, step: int | None = None) -> None:
        """Replaces the file atomically.

        Args:
          step: of a checkpoint that was made now.
        """
        if step is not None:
            earlier = [(k, v) for k, v in self._saved.items() if k != str(step)]
            self._saved = dict([*earlier, (str(step), self.seconds)][-_MARKS:])
        told = {
            "phases": self.phases, "seconds": self.seconds, "redone_seconds": self.redone, "devices": self.devices,
            "resumes": self.resumes, "saved": self._saved,
        }  # fmt: skip
        if joules := _sum([self._joules, self._meter.joules() if self._meter else {}]):
            told["joules"] = joules
        part = self._file.with_name(FILE + ".part")
        part.write_text(json.dumps(told, indent=1) + "\n")
        os.replace(part, self._file)


# -- The bill of a pipeline


def account(found: dict, bill: Bill) -> dict[str, Any]:
    """What the ledger of a stage comes to. What cannot be told is absent.

    Returns:
      device_hours; idle_share, of them; redone_hours; tokens_sampled and tokens_trained, and per second of the phases in which
      they are; flops; utilisation, of the devices' peak over all the time; kwh; dollars; and ``phases``, each with
      device_hours, tokens, tokens_per_s, flops and utilisation.
    """
    devices, seconds = found["devices"], found.get("seconds", 0.0)
    peak = bill.peak_tflops * 1e12 * devices

    def part(seconds: float, tokens: float, flops: float) -> dict[str, float]:
        told = {"device_hours": seconds * devices / 3600, "tokens": tokens, "flops": flops}
        told |= {"tokens_per_s": tokens / seconds} if tokens and seconds else {}
        return told | ({"utilisation": flops / seconds / peak} if peak and seconds and flops else {})

    def sums(phase: str) -> tuple[float, float, float]:
        at = found["phases"].get(phase, {})
        return at.get("seconds", 0.0), at.get("tokens", 0), at.get("flops", 0.0)

    phases = {name: part(*sums(name)) for name in found["phases"]}
    flops = sum(p["flops"] for p in phases.values())
    told = {"device_hours": seconds * devices / 3600, "redone_hours": found.get("redone_seconds", 0.0) * devices / 3600}
    if seconds:
        told["idle_share"] = max(0.0, 1 - sum(sums(name)[0] for name in AT_WORK) / seconds)
    for name, phase in (("sampled", "rollout"), ("trained", "update")):
        if phase in phases and phases[phase]["tokens"]:
            told[f"tokens_{name}"] = phases[phase]["tokens"]
            told[f"tokens_per_s_{name}"] = phases[phase].get("tokens_per_s", 0.0)
    told |= {"flops": flops} | ({"utilisation": flops / seconds / peak} if peak and seconds else {})
    if found.get("joules"):
        told["kwh"] = sum(found["joules"].values()) / 3.6e6
    if bill.price_per_hour:
        told["dollars"] = told["device_hours"] * bill.price_per_hour
    return told | {"phases": phases}


def total(parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Sums of what can be summed."""
    kept = ("device_hours", "redone_hours", "flops", "kwh", "dollars")
    return _sum([{k: part[k] for k in kept if k in part} for part in parts])


def bill_of(run: Path, stages: Sequence[str], bill: Bill) -> dict[str, Any]:
    """The bill of a pipeline's run: ``stages``, with ``planned_hours`` where ``PLAN`` is there; what was ``put_aside`` when a
    stage was run anew; ``total``, of both; and ``published``, R1's own figures beside those of the stages that
    ``bill.counterparts`` names."""
    found = {name: _read(run / name, bill) for name in stages if (run / name / FILE).exists()}
    again = "|".join(map(re.escape, stages))
    aside = [p for p in sorted(run.glob("*")) if re.fullmatch(rf"(?:{again})\.\d+", p.name) and (p / FILE).exists()]
    told: dict[str, Any] = {"stages": found, "put_aside": total(_read(p, bill) for p in aside)}
    told["total"] = total([*found.values(), told["put_aside"]])
    if (run / PLAN).exists():
        planned = {s["stage"]: s["device_hours"]["base"] for s in json.loads((run / PLAN).read_text())["stages"]}
        for name in found.keys() & planned.keys():
            found[name]["planned_hours"] = planned[name]
        told["total"]["planned_hours"] = sum(planned.get(name, 0.0) for name in found)
    beside = {}
    for part, (hours, dollars) in PUBLISHED.items():
        ours = [found[name] for name, its in bill.counterparts.items() if its == part and name in found]
        if ours:
            beside[part] = {"ours": total(ours), "published": {"device_hours": hours, "dollars": dollars}}
    return told | {"published": beside}


def show(run: Path, stages: Sequence[str], bill: Bill, console: Console | None = None) -> None:
    """Writes the bill of a pipeline's run to ``RUN/ledger.json`` and prints it."""
    told = bill_of(run, stages, bill)
    part = run / f"{FILE}.part"
    part.write_text(json.dumps(told, indent=1) + "\n")
    os.replace(part, run / FILE)
    console = console or Console(highlight=False)
    rows = dict(told["stages"])
    if told["put_aside"]:
        rows["put aside"] = told["put_aside"]
    rows["total"] = told["total"]
    columns = {
        "hours": lambda r: _hours(r.get("device_hours", 0)),
        "planned": lambda r: _hours(r["planned_hours"]) if "planned_hours" in r else "",
        "most of it": _most,
        "sampled/s": lambda r: number(r["tokens_per_s_sampled"]) if "tokens_sampled" in r else "",
        "trained/s": lambda r: number(r["tokens_per_s_trained"]) if "tokens_trained" in r else "",
        "FLOPs": lambda r: f"{r.get('flops', 0):.1e}".replace("e+", "e"),
        "of peak": lambda r: f"{r['utilisation']:.1%}" if "utilisation" in r else "",
        "idle": lambda r: f"{r['idle_share']:.0%}" if "idle_share" in r else "",
        "redone": lambda r: f"{r['redone_hours'] / r['device_hours']:.0%}" if r.get("redone_hours") else "",
        "kWh": lambda r: f"{r['kwh']:.3g}" if "kwh" in r else "",
        "$": lambda r: f"{r['dollars']:,.2f}" if "dollars" in r else "",
    }
    cells = {name: [make(row) for make in columns.values()] for name, row in rows.items()}
    filled = [i for i in range(len(columns)) if any(row[i] for row in cells.values())]
    title = "what it cost (tokens per second of the phase that makes them)"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    for i in filled:
        table.add_column(list(columns)[i], justify="right", no_wrap=True)
    for name, row in cells.items():
        table.add_row(name, *(row[i] for i in filled), end_section=name == list(told["stages"])[-1])
    console.print(table)
    for part, figures in told["published"].items():
        ours, theirs = figures["ours"], figures["published"]
        money = f", ${ours['dollars']:,.2f}" if "dollars" in ours else ""
        console.print(
            f"{part}: {_hours(ours['device_hours'])} device-hours here{money}; "
            f"published {theirs['device_hours']:,} H800 hours, ${theirs['dollars']:,}",
            markup=False, soft_wrap=True,
        )  # fmt: skip
    if told["published"]:
        hours, dollars = (sum(column) for column in zip(*PUBLISHED.values(), strict=True))
        console.print(f"R1 in all: published {hours:,} H800 hours, ${dollars:,}", markup=False)


def _hours(hours: float) -> str:
    return f"{hours:.2g}" if hours < 1 else number(hours)


def _most(row: dict) -> str:
    """The phase that took the largest part of a stage."""
    if not row.get("phases") or not row["device_hours"]:
        return ""
    name, phase = max(row["phases"].items(), key=lambda item: item[1]["device_hours"])
    return f"{name} {phase['device_hours'] / row['device_hours']:.0%}"


def _read(stage: Path, bill: Bill) -> dict[str, Any]:
    return account(json.loads((stage / FILE).read_text()), bill)


def _sum(parts: Iterable[dict[str, float]]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            sums[name] = sums.get(name, 0) + value
    return sums
