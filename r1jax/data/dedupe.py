"""``r1jax data dedupe``: exact and near duplicates among rows.

Two rows are duplicates if the runs of 5 words and signs (shingles) in what is trained on, prompt and completion, have a Jaccard
similarity of at least the threshold, and the numbers in their prompts are the same in the same order: a problem with other
numbers is another problem, however alike the words are. Rows that a chain of such pairs links are one group, and its first row
is kept. So the groups do not depend on the order of the rows, and what is kept has no more duplicates. Several completions of
one prompt, as rejection sampling makes them, stay unless they are alike themselves.

Pairs are found by MinHash in bands (Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, 3.4) and then compared exactly:
no pair below the threshold counts, rows with the same shingles are always found, and a pair at the threshold is missed with a
chance of at most 1 - ``RECALL``. Meanwhile a row takes 100 bytes of memory, and 8 a word if it may have a duplicate.
"""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from r1jax.config import data_commands
from r1jax.data import cleaning, words
from r1jax.data.words import RUNS, WORD_OR_SIGN

SHINGLE = 5
HASHES = 128
RECALL = 0.99
_ODD = np.random.default_rng(0).integers(1 << 63, size=HASHES, dtype=np.uint64) << np.uint64(1) | np.uint64(1)
_AT_ONCE = 1 << 12  # shingles that are hashed together, for the memory of a long text


class Group(NamedTuple):
    rows: list[int]
    """Numbers of rows, in their order."""
    similarity: list[float]
    """Of each to the first."""


def dedupe(args: data_commands.DataDedupe) -> int:
    """Writes the first row of each group and the rows without a duplicate, a line per group, and the counts.

    Raises:
      ConfigError: the user's mistakes.
    """
    with cleaning.open_output(args) as out:
        groups = find_groups(out.rows, args.threshold)
        first = {row: group.rows[0] for group in groups for row in group.rows}
        places: dict[int, str] = {}
        answers: dict[int, set[str]] = defaultdict(set)
        for number, (where, row) in enumerate(out):
            if first.get(number, number) == number:
                out.keep(row)
            if number in first:
                places[number] = where
                answers[first[number]].add(json.dumps(row.get("answer"), sort_keys=True, default=str))
        for group in groups:
            kept, *dropped = group.rows
            told = [
                {"row": places[row], "similarity": round(s, 4)} for row, s in zip(dropped, group.similarity[1:], strict=True)
            ]
            out.report({"kept": places[kept], "dropped": told, "answers_differ": len(answers[kept]) > 1})
        same = sum(s == 1 for group in groups for s in group.similarity[1:])
        differ = sum(len(found) > 1 for found in answers.values())
        out.summary = {"groups": len(groups), "dropped_same_shingles": same, "groups_answers_differ": differ}
        out.notes = [f"{len(groups):,} groups; {same:,} of the dropped rows have the very words of the row that is kept"]
        if differ:
            report = cleaning.beside(args.out, "report.jsonl")
            out.notes += [f"in {differ:,} groups the answers differ: look for answers_differ in {report}"]
    return 0


def find_groups(rows: Iterable[tuple[str, dict]], threshold: float) -> list[Group]:
    """The groups of at least two rows, by their first.

    Args:
      rows: (place, row with ``prompt``); they are gone through twice.
      threshold: Jaccard similarity, in (0, 1].
    """
    width = band_width(threshold)
    bands = bytearray()
    for _, row in rows:
        bands += Shingles(row).bands(width).tobytes()
    count = HASHES // width
    table = np.frombuffer(bands, np.uint32).reshape(-1, count)
    buckets = {bucket for band in table.T for bucket in _same(band)}
    wanted = {row for bucket in buckets for row in bucket}
    shingles = {number: Shingles(row).hashes for number, (_, row) in enumerate(rows) if number in wanted}
    parent = {row: row for row in wanted}
    for bucket in sorted(buckets):
        unite(bucket, parent, lambda a, b: similarity(shingles[a], shingles[b]) >= threshold)
    groups: dict[int, list[int]] = defaultdict(list)
    for row in sorted(wanted):
        groups[root(parent, row)].append(row)
    return [
        Group(group, [similarity(shingles[group[0]], shingles[row]) for row in group])
        for group in groups.values()
        if len(group) > 1
    ]


def band_width(threshold: float) -> int:
    """The most hashes in a band by which a pair at the threshold is still found with a chance of ``RECALL``."""
    return max(r for r in range(1, HASHES + 1) if 1 - (1 - threshold**r) ** (HASHES // r) >= RECALL)


class Shingles:
    """What of a row is compared."""

    def __init__(self, row: dict):
        prompt = words.prompt_text(row)
        rest = (row.get(field) for field in ("completion", "chosen", "rejected"))
        trained = [prompt, *(text for text in rest if isinstance(text, str))]
        found = [WORD_OR_SIGN.findall(words.normal(text)) for text in trained]
        self._figures = [word for word in found[0] if word[0].isdigit()]
        # A text without any word is one shingle, as one of fewer than 5 words is.
        numbers = words.numbers(list(itertools.chain(*found)) or trained)
        starts = np.arange(max(len(numbers) - SHINGLE + 1, 1))
        self.hashes = np.unique(RUNS.hash(numbers, starts, np.minimum(starts + SHINGLE, len(numbers))))
        """uint64[N], sorted."""

    def bands(self, width: int) -> np.ndarray:
        """uint32[B]: equal in a place where all ``width`` of its hashes are, and the numbers of the prompts."""
        lowest = np.full(HASHES, np.iinfo(np.uint64).max, np.uint64)
        for at in range(0, len(self.hashes), _AT_ONCE):
            part = _ODD[:, None] * self.hashes[None, at : at + _AT_ONCE]
            np.minimum(lowest, part.min(axis=1), out=lowest)
        count = HASHES // width
        starts = np.arange(count) * width
        found = RUNS.hash(lowest, starts, starts + width)
        if self._figures:
            ends = np.array([len(self._figures)])
            found ^= RUNS.hash(words.numbers(self._figures), ends * 0, ends)
        return (found >> np.uint64(32)).astype(np.uint32)


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Jaccard similarity of two sorted sets."""
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / (len(a) + len(b) - both)


def _same(band: np.ndarray) -> list[tuple[int, ...]]:
    """The rows that have a value in common with others, by value."""
    order = band.argsort(kind="stable")
    ends = np.flatnonzero(np.diff(band[order], append=np.inf)) + 1
    starts = ends - np.diff(ends, prepend=0)
    return [tuple(order[a:b].tolist()) for a, b in zip(starts, ends, strict=True) if b - a > 1]


def unite(bucket: Sequence[int], parent: dict[int, int], alike: Callable[[int, int], bool]) -> None:
    """Links the rows of a bucket that are alike. Those that are linked already are not compared."""
    parts: list[list[int]] = []
    for row in bucket:
        joined, apart = [row], []
        for part in parts:
            if root(parent, row) == root(parent, part[0]) or any(alike(row, other) for other in part):
                parent[root(parent, row)] = root(parent, part[0])
                joined += part
            else:
                apart.append(part)
        parts = [*apart, joined]


def root(parent: dict[int, int], row: int) -> int:
    while parent[row] != row:
        parent[row] = row = parent[parent[row]]
    return row
