"""A plan as tables, and as a chart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from rich.console import Group, RenderableType
from rich.table import Table

from r1jax.config.model import CONFIG_671B
from r1jax.config.plan import Efficiency
from r1jax.plan import money, published
from r1jax.plan.compiling import Program
from r1jax.plan.memory import human
from r1jax.plan.report import StagePlan

LENGTHS = (2000, 4000, 7500, 10_000, 14_000)


def render(p: StagePlan, price: float | None) -> Group:
    parts: list[RenderableType] = [p.topology.describe(), mesh_line(p), p.memory.table(f"{p.title}, estimated")]
    for program in p.programs:
        parts += list(compiled(p, program))
    parts += [phases(p), costs(p, price)]
    if (p.model.n_layers, p.model.d_model) == (CONFIG_671B.n_layers, CONFIG_671B.d_model):
        parts += [r1_hours(), money.ARE_PUBLISHED, money.ARE_ASSUMED]
    return Group(*parts)


def mesh_line(p: StagePlan) -> str:
    split = ", ".join(f"{axis} {n}" for axis, n in p.shape.items() if n > 1) or "one device"
    return f"mesh: {split}; micro_batch {p.stage.micro_batch} rows of {p.stage.sequence_length} tokens"


def compiled(p: StagePlan, program: Program) -> Iterator[RenderableType]:
    """What the compiler told of one program."""
    if program.refused:
        yield f"{program.name}: refused by the compiler after {program.seconds:.0f} s: {program.refused}"
        yield from (f"  {human(size)}  {what}" for size, what in program.largest)
        return
    table = _table(f"{program.name}, compiled in {program.seconds:.0f} s: memory per device", ("", "bytes"))
    for name, size in program.parts.items():
        told = f"{name}, {program.cache_copies:.2g} copies of each token" if name == "cache" else name
        table.add_row(told, human(size))
    rest = program.arguments - sum(program.parts.values())
    if rest > 0:
        table.add_row("other arguments", human(rest))
    made = "temporary: gradients, activations" if program.name == "update" else "temporary"
    table.add_row(made, human(program.temporary))
    table.add_row("results beside arguments, code", human(program.new_outputs + program.code))
    if program.host:
        table.add_row("on the host", human(program.host))
    peak = p.peak(program)
    table.add_row("peak, with what stays beside it", f"{human(peak)} of {human(p.memory.capacity)}", end_section=True)
    yield table
    turn = "of a micro-batch" if program.name == "update" else f"of a token for {program.slots} slots"
    columns = ("", "along", "over", "times", "sent", "largest result")
    links = _table(f"{program.name}: collectives {turn}, of one device", columns)
    for c in program.collectives:
        if c.axes:
            where = "slice" if p.topology.chip.platform == "tpu" and c.link == "node" else c.link
            links.add_row(c.kind, ", ".join(c.axes), where, f"{c.count:,.0f}", human(round(c.bytes)), human(c.largest))
    yield links
    if program.gathers:
        yield "gathers whole: " + "; ".join(program.gathers)
    else:
        yield "no all-gather is as large as all tokens or as a kernel of all experts"
    if peak > p.memory.capacity:
        yield "largest buffers: " + ", ".join(f"{human(size)} {what}" for size, what in program.largest)


def phases(p: StagePlan) -> Group:
    """What a round asks of a device, and its time."""
    load = p.load
    given = "given" if p.answer_known else "assumed: a quarter of the cap"
    title = (
        f"{p.title}: a round of {load.answers} answers and {load.updates} update{'s' * (load.updates > 1)}, mean answer "
        f"{p.answer:,.0f} tokens ({given}), longest {load.longest:,.0f}"
    )
    asked = _table(title, ("of a device", "FLOPs", "memory", "links in a node", "beyond"))
    times = _table("seconds", ("", "products", "memory", "links", "exposed", "other", "all"))
    for name, x in p.round.phases.items():
        asked.add_row(name, f"{x.flops:.2g}", *(human(round(size)) for size in (x.memory, x.node, x.network)))
        times.add_row(
            name, *(f"{s:,.1f}" for s in (x.arithmetic_s, x.memory_s, x.link_s, x.exposed_s, x.other_s, x.seconds))
        )
    seconds = p.round.seconds
    times.add_section()
    for name, value in (
        ("round", seconds), ("without overlap", p.round.without_overlap), ("a step", seconds / load.updates),
        ("tokens/s a chip", load.answers * load.answer / seconds / p.topology.chips),
    ):  # fmt: skip
        times.add_row(name, *[""] * 5, f"{value:,.1f}")
    return Group(asked, times)


def costs(p: StagePlan, price: float | None) -> Group:
    """Device-hours of the whole stage, and dollars."""
    h = p.hours
    unit = "chip" if p.topology.chip.platform == "tpu" else "GPU"
    table = _table(f"{p.title}: {p.stage.steps:,} steps", ("", f"{unit}-hours", *(("dollars",) if price is not None else ())))
    for name, value in (("low", h.low), ("base", h.base), ("high", h.high)):
        table.add_row(name, _hours(value), *((f"${value * price:,.0f}",) if price is not None else ()))
    moved = [f"moved most by {text}: {_hours(one)} to {_hours(other)} {unit}-hours" for text, one, other in h.moved_by]
    return Group(table, *moved)


def _hours(value: float) -> str:
    return f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"


def r1_hours() -> Group:
    """What was published of R1, and the rate that it implies."""
    table = _table("R1 as published, H800-hours at $2", ("", "hours", "dollars"))
    for name, hours in money.PUBLISHED:
        table.add_row(name, f"{hours:,}", f"${hours * money.PUBLISHED_PRICE:,.0f}")
    implied = ", ".join(f"{money.implied_rate(n):,.0f} at {n:,}" for n in LENGTHS)
    return Group(table, f"R1-Zero's hours imply so many tokens/s of a GPU, at a mean answer of so many tokens: {implied}")


def recipe(hours: Mapping[str, money.Range], counterparts: Mapping[str, str], price: float | None, unit: str) -> Group:
    """Every stage of a pipeline, and what stages stand for beside R1's published bill.

    Args:
      hours: stage -> device-hours.
      counterparts: stage -> name in ``money.PUBLISHED``, as in ``config.Bill``.
      unit: "GPU" or "chip".
    """
    priced = ("dollars",) if price is not None else ()
    table = _table(f"the recipe, {unit}-hours", ("", "low", "base", "high", *priced, "published", "at $2"))

    def row(name: str, parts: Iterable[money.Range], published: float | None = None, **options) -> None:
        parts = list(parts)
        ends = [sum(getattr(p, end) for p in parts) for end in ("low", "base", "high")]
        ours = (f"${ends[1] * price:,.0f}",) if price is not None else ()
        theirs = ("", "") if published is None else (f"{published:,}", f"${published * money.PUBLISHED_PRICE:,.0f}")
        table.add_row(name, *map(_hours, ends), *ours, *theirs, **options)

    for name, h in hours.items():
        row(name, [h], end_section=name == list(hours)[-1])
    published = dict(money.PUBLISHED)
    stood_for = {part: [n for n, its in counterparts.items() if its == part and n in hours] for part in published}
    for part, names in stood_for.items():
        if names:
            row(f"{part}: {', '.join(names)}", [hours[n] for n in names], published[part])
    if any(stood_for.values()):
        row("all of these", [hours[n] for names in stood_for.values() for n in names], published["all"])
    notes = [
        "published: H800-hours of arXiv 2501.12948v2's table, without failed runs, the base model's training, students and "
        "reward models, none of which is itemised; how R1's 41K were split over its stages is unpublished",
        "ours: of stages that take other steps, rows or lengths than R1's, which the config says, other hours",
    ]
    return Group(table, *notes) if any(stood_for.values()) else Group(table)


def calibration(e: Efficiency) -> Table:
    """Predicted over actual of published runs."""
    title = "published runs, predicted with these shares: ratio is predicted over actual"
    table = _table(title, ("run", "on", "predicted", "actual", "unit", "ratio", ""))
    runs = (*published.TRAINING, *published.REINFORCEMENT)
    for on, x in zip((r.topology for r in runs), published.predictions(e), strict=True):
        note = "fitted" if x.fitted else x.assumed
        table.add_row(x.run, on, f"{x.predicted:,.3g}", f"{x.actual:,.3g}", x.unit, f"{x.ratio:.2f}", note)
    return table


def _table(title: str, columns: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left")
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i == 0 else "right")
    return table
