"""What was measured, the figures that follow from it, and both as JSON and as tables. README.md says what they mean."""

from __future__ import annotations

import dataclasses
import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from r1jax import config
from r1jax.config.model import DType

OURS = "r1jax"
ALL = "all"
"""The row of a table that is the sum of its phases."""


@dataclass(frozen=True)
class Product:
    """A matrix product [rows, inner] x [inner, outer] that was probed."""

    package: str
    """That multiplied: jax, or torch where another side uses it."""
    dtype: DType
    """Of the operands; sums are float32."""
    rows: int
    inner: int
    outer: int
    flops_per_s: float

    @property
    def shape(self) -> tuple[str, str, int, int, int]:
        """What tells one product from another."""
        return self.package, self.dtype, self.rows, self.inner, self.outer


@dataclass(frozen=True)
class Limits:
    """What the devices do at best."""

    device: str
    devices: int
    products: tuple[Product, ...]
    """Of one device."""
    bytes_per_s: float
    """Read and written by a copy, of one device."""

    def flops_per_s(self, dtype: str) -> float:
        """Of all devices: the fastest of the products probed in ``dtype``."""
        return self.devices * max(p.flops_per_s for p in self.products if p.dtype == dtype)

    @property
    def all_bytes_per_s(self) -> float:
        return self.devices * self.bytes_per_s


@dataclass(frozen=True)
class Need:
    """What the work of a phase needs at least."""

    tokens: int
    """That it reads, makes or trains on, for tokens/s."""
    flops: float = 0.0
    bytes: float = 0.0
    """0 where they are not counted."""
    bound: float = 0.0
    """Seconds that the machine's limit allows; 0 where it is not known."""


@dataclass(frozen=True)
class Side:
    """One of the packages that did the work."""

    name: str
    dtype: DType
    """Of the operands of its products."""
    rounds: tuple[dict[str, float], ...]
    """Seconds of each phase, for each round that counts."""
    need: dict[str, Need]
    """Of each phase for which it is known; of ``ALL`` the tokens alone, for the rest is the sum."""
    first: float
    """Seconds of the round that does not count, compiling included."""
    compile_seconds: float | None = None
    compilations: int | None = None
    """In the round that does not count and what was made ready before."""
    late_compilations: int | None = None
    """In the rounds that count: each should have been compiled before."""
    peak_bytes: int | None = None
    """Device memory at most; on a CPU, by how much the resident memory rose. None where it is not known."""
    notes: dict[str, float] = field(default_factory=dict)
    """What shows that the sides did the same work: tokens, the first loss, the first gradient's norm."""

    def seconds(self, phase: str) -> tuple[float, float, float]:
        """(median, least, most) over the rounds; of ``ALL``, of the sums of their phases."""
        values = [sum(r.values()) if phase == ALL else r[phase] for r in self.rounds]
        return statistics.median(values), min(values), max(values)

    def needed(self, phase: str) -> Need | None:
        """Of ``ALL``, the sum of what is known."""
        if phase != ALL:
            return self.need.get(phase)
        parts = [need for name, need in self.need.items() if name != ALL]
        bound = sum(p.bound for p in parts) if all(p.bound for p in parts) else 0.0
        return Need(self.need[ALL].tokens, sum(p.flops for p in parts), sum(p.bytes for p in parts), bound)


@dataclass(frozen=True)
class Report:
    command: str
    settings: dict[str, Any]
    model: dict[str, Any]
    parameters: int
    versions: dict[str, str]
    limits: Limits
    sides: tuple[Side, ...]

    def figures(self) -> dict[str, dict[str, dict[str, float]]]:
        """Side -> phase -> figure: what the table shows."""
        return {s.name: {p: figures(s, p, self.limits) for p in (*s.rounds[0], ALL)} for s in self.sides}

    def ratios(self) -> dict[str, float]:
        """Other side -> how many times its seconds are ours."""
        ours, *others = self.sides
        return {s.name: s.seconds(ALL)[0] / ours.seconds(ALL)[0] for s in others}


def figures(side: Side, phase: str, limits: Limits) -> dict[str, float]:
    """Of a phase, in seconds, tokens/s, FLOP/s and bytes/s; shares are of the machine's limit."""
    median, least, most = side.seconds(phase)
    found = {"seconds": median, "seconds_min": least, "seconds_max": most}
    need = side.needed(phase)
    if need is None or not median:
        return found
    found |= {"tokens_per_s": need.tokens / median, "mfu": need.flops / median / limits.flops_per_s(side.dtype)}
    if need.bytes:
        found |= {"bytes_per_s": need.bytes / median, "bandwidth_share": need.bytes / median / limits.all_bytes_per_s}
    if need.bound:
        found |= {"bound_seconds": need.bound, "bound_reached": need.bound / median}
    return found


def write(report: Report, path: Path) -> None:
    """Raises OSError if it cannot be written."""
    whole = config.to_json(report) | {"figures": report.figures(), "ratios": report.ratios()}
    path.write_text(json.dumps(whole, indent=1) + "\n")


def read(path: Path) -> Report:
    """The report of a file that ``write`` made.

    Raises:
      ConfigError: it holds something else.
    """
    known = {f.name for f in dataclasses.fields(Report)}
    return config.from_json(Report, {k: v for k, v in json.loads(path.read_text()).items() if k in known}, str(path))


def show(report: Report, console: Console) -> None:
    console.print(limits_table(report.limits), sides_table(report), sep="\n")
    for side in report.sides:
        console.print(f"{side.name}: {about(side)}", markup=False, soft_wrap=True)
    for name, ratio in report.ratios().items():
        console.print(f"{name} takes {ratio:.2f} times the seconds of {report.sides[0].name}", markup=False, soft_wrap=True)


def limits_table(limits: Limits) -> Table:
    table = Table(title=f"limits of {limits.devices} x {limits.device}, each", title_justify="left", box=None)
    for column in ("", "by", "operands", "speed"):
        table.add_column(column, justify="right" if column == "speed" else "left")
    for p in limits.products:
        table.add_row(f"{p.rows} x {p.inner} x {p.outer}", p.package, p.dtype, f"{scaled(p.flops_per_s)}FLOP/s")
    table.add_row("copy", "jax", "", f"{scaled(limits.bytes_per_s)}B/s")
    return table


def sides_table(report: Report) -> Table:
    title = f"bench {report.command}: {report.settings['model']}"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    for column in ("", "seconds", "min..max", "tokens/s", "MFU", "of copy", "limit", "reached"):
        table.add_column(column, justify="right" if column else "left")
    for name, phases in report.figures().items():
        table.add_row(f"[bold]{name}[/]")
        for phase, f in phases.items():
            table.add_row(
                f"  {phase}",
                f"{f['seconds']:.3g}",
                f"{f['seconds_min']:.3g}..{f['seconds_max']:.3g}",
                f"{f['tokens_per_s']:,.0f}" if "tokens_per_s" in f else "",
                f"{f['mfu']:.1%}" if "mfu" in f else "",
                f"{f['bandwidth_share']:.0%}" if "bandwidth_share" in f else "",
                f"{f['bound_seconds']:.2g}" if "bound_seconds" in f else "",
                f"{f['bound_reached']:.0%}" if "bound_reached" in f else "",
            )
    return table


def about(side: Side) -> str:
    """The rest in one line."""
    parts = [f"{side.first:.1f} s the first time"]
    if side.compilations is not None:
        parts.append(f"{side.compilations} compilations in {side.compile_seconds:.1f} s, {side.late_compilations} later")
    if side.peak_bytes is not None:
        parts.append(f"{scaled(side.peak_bytes)}B of memory at most")
    return ", ".join([*parts, *(f"{name} {value:.6g}" for name, value in side.notes.items())])


def scaled(value: float) -> str:
    """With the largest decimal unit of which there is one: ``3.35 T``."""
    units = " kMGTP"
    while value >= 999.5 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.3g} {units[0].strip()}"
