"""What a report draws, as PNG and CSV files for papers."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

from r1jax.observe.curve import curve_png


def write(data: dict[str, Any], folder: Path) -> None:
    """Into ``folder``: ``curves.csv``, the points of all curves; ``stages.csv``, the table of stages; and a PNG for each panel,
    or where several stages have its metrics for each of them."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = [track["label"] for track in data["tracks"]]
    with (folder / "curves.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["stage", "metric", "step", "value", "least", "most"])
        for label, curves in zip(labels, data["curves"], strict=True):
            for key, c in curves.items():
                for x, y, low, high in zip(c["x"], c["y"], c.get("lo", c["y"]), c.get("hi", c["y"]), strict=True):
                    table.writerow([label, key, x, y, low, high])
    with (folder / "stages.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["stage", "kind", "state", "step", "metric", "first", "last"])
        for track in data["tracks"]:
            for key, (first, last) in track["edges"].items():
                table.writerow([track["label"], track["kind"], track["state"], track["step"], key, first, last])
    for panel in (panel for group in data["groups"] for panel in group["panels"]):
        series = {(label, k): c[k] for label, c in zip(labels, data["curves"], strict=True) for k in panel["keys"] if k in c}
        owners = list(dict.fromkeys(label for label, _ in series))
        if len(owners) == 1:
            _png(folder, panel, panel["title"], {key: c for (_, key), c in series.items()})
            continue
        for key in panel["keys"]:
            title = f"{panel['title']}: {key}" if len(panel["keys"]) > 1 else panel["title"]
            _png(folder, panel, title, {label: c for (label, k), c in series.items() if k == key})


def _png(folder: Path, panel: dict, title: str, series: dict[str, dict]) -> None:
    points = {name: list(zip(c["x"], c["y"], strict=True)) for name, c in series.items() if c["x"]}
    if points:
        name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:80]
        curve_png(folder / f"{name}.png", points, title=title, ylabel=panel["unit"])
