"""What scoring for long costs: ``python -m r1jax.bench.reward_soak [--minutes 10] [--workers 2]``.

Scores numbers, LaTeX and the format at full rate. For the first half of the time all goes well, so that what a worker keeps
would add up; in the second half now and then a reward ends its worker or hangs, with a child of its own running.
For each half: items a second, and by how much memory, file descriptors and processes rise per 100,000 items, by least squares
over the samples after the first fifth. All slopes should be about 0.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from r1jax.config import Workers
from r1jax.rewards import Item, Pool

SAMPLES = 200
"""Of the resources, in each half."""
LATEX = 20
"""Every so many items one answer is compared by math-verify."""
FAULTS = {4_000: "dies", 10_000: "hangs"}
"""Every so many items one does that, in the second half."""
MARK = "R1JAX_REWARD_SOAK"
"""A variable of the environment by which descendants are known that no longer have their parent."""
COLUMNS = ("MB of this process", "MB of the largest worker", "file descriptors here", "of all workers", "processes")


def main(arguments: Sequence[str]) -> None:
    options = {"--minutes": 10.0, "--workers": 2.0}
    pairs = list(zip(arguments[::2], arguments[1::2], strict=False))
    if len(arguments) % 2 or any(name not in options for name, _ in pairs):
        raise SystemExit(__doc__.partition("\n")[0])
    options |= {name: float(value) for name, value in pairs}
    workers = Workers(count=int(options["--workers"]))
    os.environ[MARK] = str(os.getpid())
    for title, faults in (("all goes well", {}), ("with faults", FAULTS)):
        soak(title, workers, 30 * options["--minutes"], faults)


def soak(title: str, workers: Workers, seconds: float, faults: dict[int, str]) -> None:
    """Scores for so long, and prints what that took."""
    rows, began, statuses = [], time.monotonic(), Counter()
    with Pool(workers) as pool:
        pool.check(["accuracy", "format", "r1jax.bench.reward_soak:misbehave"])
        count = 0
        for count, scores in enumerate(pool.stream(items(began + seconds, faults)), 1):
            statuses.update(score.status for score in scores.values())
            if scores["accuracy"].status == "ok" and scores["accuracy"].value != count % 2:
                raise SystemExit(f"item {count} has {scores['accuracy']}, which is wrong")
            if time.monotonic() > began + seconds * len(rows) / SAMPLES:
                rows.append((count, *resources()))
    passed = time.monotonic() - began
    left = resources()[-1]
    rate = f"{count} items in {passed:.0f} s, {count / passed:.0f} a second"
    print(f"{title}: {rate}; scores {dict(statuses)}; {left - 1} processes left behind")
    table = np.array(rows[len(rows) // 5 :], float)
    for name, values in zip(COLUMNS, table.T[1:], strict=True):
        slope = np.polyfit(table[:, 0] / 1e5, values, 1)[0]
        print(f"  {name:<26} {values[0]:8.1f} .. {values[-1]:8.1f}   {slope:+8.2f} per 100,000 items")


def items(until: float, faults: dict[int, str]) -> Iterator[Item]:
    """Numbered from 1; every second one is right."""
    for i in itertools.count(1):
        if time.monotonic() > until:
            return
        value = 2 * i + (i + 1) % 2
        answer = rf"\frac{{{value}\sqrt{{2}}}}{{2}}" if i % LATEX == 0 else str(value)
        expected = rf"\frac{{{2 * i}}}{{\sqrt{{2}}}}" if i % LATEX == 0 else 2 * i
        row = {"answer": expected, "do": next((do for every, do in faults.items() if i % every == 0), "")}
        thought = "so be it " * (20 + i % 400)
        rewards = ("accuracy", "format", "r1jax.bench.reward_soak:misbehave")
        yield Item(f"what is number {i}?", f"<think>{thought}</think> <answer>{answer}</answer>", row, rewards)


def misbehave(prompt: Any, completion: str, row: dict) -> float:
    if row["do"]:
        subprocess.Popen(["sleep", "3600"])
    if row["do"] == "dies":
        os._exit(1)
    if row["do"] == "hangs":
        time.sleep(3600)
    return 1.0


def resources() -> tuple[float, float, int, int, int]:
    """As ``COLUMNS``. Processes are this one, its children, zombies included, and whatever descends from them."""
    me, children, others = os.getpid(), [], 0
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(") ")[2].split()[1])
            marked = MARK.encode() in (path / "environ").read_bytes()
        except OSError:  # it ended meanwhile, or is another user's
            continue
        if parent == me:
            children.append(int(path.name))
        elif marked:
            others += 1
    largest = max((resident(pid) for pid in children), default=0.0)
    descriptors = [open_files(pid) for pid in (me, *children)]
    return resident(me), largest, descriptors[0], sum(descriptors[1:]), 1 + len(children) + others


def resident(pid: int) -> float:
    """MB."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:
        return 0.0


def open_files(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


if __name__ == "__main__":
    main(sys.argv[1:])
