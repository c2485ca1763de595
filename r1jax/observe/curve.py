"""A metric over the steps of a run: as text for the terminal, and as a PNG."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from r1jax.observe.text import is_unicode, number

Point = tuple[float, float]

# Okabe and Ito's palette (2008), told apart with every kind of colour blindness; its yellow is too pale for a line.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")

# The bit of a braille character (from U+2800) for its dot at [row from the top][column].
_BRAILLE = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


def curve_text(
    points: Sequence[Point], width: int = 72, height: int = 16, title: str = "", *, encoding: str | None = None
) -> str:
    """A line chart of ``(step, value)`` with axes, at most ``width`` columns and ``height`` lines, title and ticks included.

    Where points are closer than a dot is wide, the mean of a dot's points is drawn. Values that are not finite are left out.

    Args:
      encoding: of the stream the text is for; None takes stdout's. One that is not UTF draws with ASCII.
    """
    fancy = is_unicode(encoding or sys.stdout.encoding)
    points = [(float(x), float(y)) for x, y in points if math.isfinite(y)]
    if not points:
        return f"{title}: no values yet" if title else "no values yet"
    low, high = value_range([y for _, y in points])
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    rows = max(3, height - 2 - bool(title))
    rows -= 1 - rows % 2  # an odd count has a middle row for the middle tick
    ticks = {0: high, rows // 2: high - (high - low) * (rows // 2) / (rows - 1), rows - 1: low}
    labels = {row: _tick(value) for row, value in ticks.items()}
    margin = max(map(len, labels.values()))
    columns = max(8, width - margin - 2)

    dots_wide, dots_high = (columns * 2, rows * 4) if fancy else (columns, rows)
    bins: dict[int, list[float]] = {}
    for x, y in points:
        bins.setdefault(round((x - left) / ((right - left) or 1) * (dots_wide - 1)), []).append(y)
    heights = {x: round((sum(ys) / len(ys) - low) / (high - low) * (dots_high - 1)) for x, ys in sorted(bins.items())}
    dots = _line(sorted(heights.items()))

    axis, corner, tick = ("│", "└", "┤") if fancy else ("|", "+", "+")
    lines = [" " * (margin + 2) + title] if title else []
    for row in range(rows):
        if fancy:
            body = "".join(_braille(dots, column, dots_high - 1 - row * 4) for column in range(columns))
        else:
            body = "".join("*" if (column, rows - 1 - row) in dots else " " for column in range(columns))
        label = labels.get(row, "")
        lines.append(f"{label:>{margin}} {tick if label else axis}{body}".rstrip())
    lines.append(" " * (margin + 1) + corner + ("─" if fancy else "-") * columns)
    first, last = f"{left:,.0f}", f"{right:,.0f}"
    middle = f"step {last}".rjust(columns - len(first)) if right > left else ""
    lines.append(" " * (margin + 2) + first + middle)
    return "\n".join(lines)


def curve_png(path: Path, series: Mapping[str, Sequence[Point]], *, title: str, xlabel: str = "step", ylabel: str = "") -> None:
    """Writes a line chart of every series, ``{name: [(step, value), ...]}``. Series of more than 40 points lie under their
    running mean over a twentieth of the points."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.2), dpi=150, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.15)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    values: list[float] = []
    for index, (name, points) in enumerate(series.items()):
        points = [(x, y) for x, y in points if math.isfinite(y)]
        xs, ys = [x for x, _ in points], [y for _, y in points]
        values += ys
        colour, style = COLOURS[index % len(COLOURS)], STYLES[index // len(COLOURS) % len(STYLES)]
        if len(points) > 40:
            axes.plot(xs, ys, color=colour, linewidth=1, alpha=0.25)
            ys = running_mean(ys, len(ys) // 20)
        marker = "o" if len(points) <= 40 else None
        axes.plot(xs, ys, color=colour, linestyle=style, linewidth=2.5, marker=marker, markersize=6, label=name)
    if values:
        low, high = value_range(values)
        pad = (high - low) * 0.02
        axes.set_ylim(low - pad, high + pad)
    axes.set_title(title, fontsize=17, loc="left", pad=12)
    axes.set_xlabel(xlabel, fontsize=15)
    axes.set_ylabel(ylabel, fontsize=15)
    axes.tick_params(labelsize=13, length=0)
    axes.grid(True, color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#999999")
    if len(series) > 1:
        many = sum(map(len, series.values())) > 2000  # the best place is then slow to find
        axes.legend(fontsize=13, frameon=False, loc="upper left" if many else "best")
    figure.savefig(path)


def value_range(values: Sequence[float]) -> tuple[float, float]:
    """The vertical axis: 0 to 1 for shares (all in [0, 1], the largest at least 0.1) and
    where all is 0, else from the least to the most."""
    low, high = min(values), max(values)
    if low >= 0 and 0.1 <= high <= 1 or low == high == 0:
        return 0.0, 1.0
    if low == high:
        half = abs(low) / 2 or 1.0
        return low - half, high + half
    return low, high


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean of up to ``window`` values around each (at the ends, of those there are)."""
    before, after = (window - 1) // 2, window // 2 + 1
    parts = [values[max(0, i - before) : i + after] for i in range(len(values))]
    return [sum(part) / len(part) for part in parts]


def _line(corners: Sequence[tuple[int, int]]) -> set[tuple[int, int]]:
    """The dots of the line through ``corners``."""
    dots = set(corners)
    for (x0, y0), (x1, y1) in zip(corners, corners[1:], strict=False):
        for i in range(steps := max(abs(x1 - x0), abs(y1 - y0))):
            dots.add((x0 + round((x1 - x0) * i / steps), y0 + round((y1 - y0) * i / steps)))
    return dots


def _braille(dots: set[tuple[int, int]], column: int, top: int) -> str:
    """The character in whose upper row the dots have height ``top``; a blank where there are none."""
    bits = sum(_BRAILLE[dy][dx] for dy in range(4) for dx in range(2) if (column * 2 + dx, top - dy) in dots)
    return chr(0x2800 + bits) if bits else " "


def _tick(value: float) -> str:
    return f"{value:.2f}" if 0.01 <= abs(value) < 100 or value == 0 else number(value)
