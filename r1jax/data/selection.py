"""Which sampled answers become rows to train on, and the count of those that do not."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from r1jax.config import RejectionSampling
from r1jax.data import readable
from r1jax.data.dedupe import find_groups
from r1jax.rewards import Score

Dropped = tuple[str, str]
"""The rule that an answer broke, in words by which it is counted, and how."""


def styled(completion: str, style: str) -> str:
    """A turn as ``RejectionSampling.style`` wants it."""
    return readable.in_r1_style(completion) if style == "r1" else completion


def verdict(
    stage: RejectionSampling, row: dict, completion: str, scores: Mapping[str, Score], finish: str
) -> Dropped | None:
    """Why an answer is not kept, by what can be seen of it alone; None if it is. An answer that was cut off never is, for a row
    to train on ends with the end token.

    Args:
      completion: the assistant's whole turn.
      scores: of the rewards of its source.
      finish: one of ``types.FINISH``.
    """
    if broken := below(scores, stage.least(row["source"])):
        return broken
    if finish == "length":
        return "cut off", f"at {stage.sampling.max_new_tokens} tokens"
    return readable.fault(row, completion, stage.readable)


def below(scores: Mapping[str, Score], least: Mapping[str, float]) -> Dropped | None:
    """The first of the rewards in ``least`` that failed or is less than it must be."""
    for name, value in least.items():
        bare = name.partition("{")[0]
        if scores[name].status != "ok":
            return f"{bare} failed", f"{scores[name].status}: {scores[name].why}"
        if scores[name].value < value:
            return f"{bare} below {value:g}", f"{scores[name].value:g}: {scores[name].why}"
    return None


class Counts:
    """``{source: {"prompts": n, "answers": n, "kept": n, "dropped": {reason: n}}}``."""

    def __init__(self):
        self.sources: dict[str, dict[str, Any]] = {}

    def of(self, source: str) -> dict[str, Any]:
        return self.sources.setdefault(source, {"prompts": 0, "left_out": 0, "answers": 0, "kept": 0, "dropped": Counter()})

    def dropped(self, source: str, reason: str) -> None:
        self.of(source)["dropped"][reason] += 1

    def told(self) -> dict[str, Any]:
        every: Counter = Counter()
        for part in self.sources.values():
            every.update(part["dropped"])
        sums = {k: sum(p[k] for p in self.sources.values()) for k in ("prompts", "left_out", "answers", "kept")}
        parts = {s: {**p, "dropped": dict(p["dropped"].most_common())} for s, p in self.sources.items()}
        return {**sums, "dropped": dict(every.most_common()), "sources": parts}


def choose(
    stage: RejectionSampling, read: Callable[[], Iterator[dict]], report: Callable[[dict, str, str], None]
) -> Iterator[dict]:
    """Of rows that are right and readable, those that are not near duplicates, the first ``per_prompt`` of each prompt, and of
    those as many as ``rows`` allows, drawn by ``seed``. They come in their order.

    Args:
      read: goes through the rows, anew at each call, so that they need not lie in memory.
      report: is told each row that is left out, the reason, and how.
    """
    duplicate: dict[int, int] = {}
    if stage.dedupe:
        for group in find_groups(_Placed(read), stage.dedupe):
            duplicate |= {number: group.rows[0] for number in group.rows[1:]}
    taken: Counter[tuple[str, str]] = Counter()
    left: dict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(read()):
        prompt = row["source"], json.dumps(row["prompt"], sort_keys=True)
        if number in duplicate:
            report(row, "duplicate", f"of kept answer {duplicate[number]}")
        elif taken[prompt] == stage.per_prompt:
            report(row, "more than per_prompt", f"the prompt has {stage.per_prompt} already")
        else:
            taken[prompt] += 1
            left[row["source"]].append(number)
    kept = {number for source, numbers in left.items() for number in drawn(numbers, stage.rows.get(source), stage.seed, source)}
    over = {number for numbers in left.values() for number in numbers} - kept
    for number, row in enumerate(read()):
        if number in kept:
            yield row
        elif number in over:
            report(row, "more than rows", f"{stage.rows[row['source']]} of this source were drawn")


def drawn(numbers: Iterable[int], most: int | None, seed: int, source: str) -> list[int]:
    """At most ``most`` of the numbers, in their order; which is a function of the seed, the source and their count."""
    numbers = list(numbers)
    if most is None or most >= len(numbers):
        return numbers
    rng = random.Random(f"{seed}/{source}")
    order = sorted((rng.random(), i) for i in range(len(numbers)))[:most]
    return [numbers[i] for i in sorted(i for _, i in order)]


class _Placed:
    """Rows with a place, as deduplication goes through them, twice."""

    def __init__(self, read: Callable[[], Iterator[dict]]):
        self._read = read

    def __iter__(self) -> Iterator[tuple[str, dict]]:
        return ((str(i), row) for i, row in enumerate(self._read()))


def whole_lines(path: Path) -> list[bytes]:
    """The lines of a file that were written to their end."""
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")] if path.exists() else []
