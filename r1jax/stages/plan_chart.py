"""A plan as a picture."""

from __future__ import annotations

from pathlib import Path

from r1jax.observe.curve import COLOURS
from r1jax.plan.report import StagePlan


def chart(plans: list[StagePlan], path: Path) -> None:
    """Memory per device and time of a round, of every stage."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.4 + 1.1 * len(plans)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    names = [p.title for p in plans]
    memory, time = figure.subplots(2, 1)
    _stacked(memory, names, [{n: size / 2**30 for n, size in p.memory.parts.items()} for p in plans])
    for i, p in enumerate(plans):
        memory.plot([p.memory.capacity / 2**30] * 2, [i - 0.4, i + 0.4], color="black")
        memory.plot([p.need / 2**30] * 2, [i - 0.4, i + 0.4], color="black", linestyle=":")
    memory.set_title("GiB per device by part (line: capacity; dotted: needed at once)", loc="left")
    _stacked(time, names, [{n: x.seconds for n, x in p.round.phases.items()} for p in plans])
    time.set_title(f"seconds of a round on {plans[0].topology.name}", loc="left")
    figure.savefig(path)


def _stacked(axes, names: list[str], rows: list[dict[str, float]]) -> None:
    labels = list(dict.fromkeys(label for row in rows for label in row))
    left = [0.0] * len(rows)
    for i, label in enumerate(labels):
        values = [row.get(label, 0.0) for row in rows]
        hatch = "//" if i >= len(COLOURS) else None
        axes.barh(names, values, left=left, label=label, color=COLOURS[i % len(COLOURS)], hatch=hatch)
        left = [a + b for a, b in zip(left, values, strict=True)]
    axes.legend(fontsize=7, frameon=False, ncols=5, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
