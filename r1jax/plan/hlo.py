"""Collectives of a compiled program, read from its HLO text: what is sent, along which axes of the mesh, over which links."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")
_BITS = {"pred": 8, "bf16": 16, "token": 0}
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*)$")
_SHAPE = re.compile(r"\b(pred|bf16|f8\w*|[sufc]\d+)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|called_computations)=\{?%?([\w.\-]+)")
_NO_BUFFER = re.compile(r" (parameter|tuple|get-tuple-element|bitcast|while|optimization-barrier)\(")
_OF_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^)]*\)?)\))? *\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclass(frozen=True)
class Collective:
    """All collectives of one kind along the same axes, of one device."""

    kind: str
    axes: tuple[str, ...]
    """Of the mesh; those along which members of a group differ."""
    link: str
    """``node`` (of a TPU: its slice) or ``network``, where a group has members in several."""
    count: float
    """Times that one is run, loops of known length multiplied."""
    bytes: float
    """That a device sends: of an all-gather of n parts n - 1 of them, of an all-reduce twice as much."""
    largest: int
    """Bytes of the largest result."""


@dataclass(frozen=True)
class _Found:
    kind: str
    groups: np.ndarray
    """int[groups, members]"""
    bytes: float
    result: int


def collectives(text: str, axes: dict[str, int], nodes: Sequence[int]) -> list[Collective]:
    """Of a partitioned module, largest first. A loop whose length the compiler does not know counts once: its figures are those
    of a turn.

    Args:
      axes: names and sizes of the mesh, in its order.
      nodes: of each device of the mesh, in row-major order, the node it is in.
    """
    computations, entry = _computations(text)
    sums: dict[tuple[str, tuple[str, ...], str], list[float]] = defaultdict(lambda: [0.0, 0.0, 0])
    found = {name: list(_found(lines)) for name, lines in computations.items()}
    for name, times in _times(computations, entry).items():
        for one in found[name]:
            total = sums[one.kind, *_crossed(one.groups, axes, nodes)]
            total[0] += times
            total[1] += times * one.bytes
            total[2] = max(total[2], one.result)
    listed = [Collective(*key, count, size, int(largest)) for key, (count, size, largest) in sums.items()]
    return sorted(listed, key=lambda c: -c.bytes)


def largest_buffers(text: str, count: int = 5) -> list[tuple[int, str]]:
    """(bytes, what) of the largest results of a module: what to look at when a program does not fit. Parameters and what only
    renames a buffer are left out, and so is what a fusion holds inside."""
    computations, _ = _computations(text)
    inside = {name for lines in computations.values() for line in lines if " fusion(" in line for name in _CALLED.findall(line)}
    found: dict[tuple[int, str], None] = {}
    for name, lines in computations.items():
        if name in inside:
            continue
        for line in lines:
            match = _INSTRUCTION.match(line)
            if match is None or _NO_BUFFER.search(match[2]):
                continue
            shape = match[2].partition("{")[0].partition(" ")[0]
            where = re.search(r'op_name="([^"]*)"', line)
            made = where[1].rpartition("/")[2] if where else match[1]
            found[_bytes(shape), f"{shape} of {made}"] = None
    return sorted(found, reverse=True)[:count]


def sent(kind: str, result: float, members: int) -> float:
    """Bytes that a device sends for a result of so many, by a ring."""
    others = members - 1
    if kind == "all-reduce":
        return 2 * result * others / members
    if kind == "reduce-scatter":
        return result * others
    return result if kind == "collective-permute" else result * others / members


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """(name -> lines of its instructions, the entry's name)"""
    found: dict[str, list[str]] = {}
    entry, lines = "", None
    for line in text.splitlines():
        if lines is None:
            head = re.match(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$", line) or re.match(r"^(ENTRY )?%?([\w.\-]+) \{$", line)
            if head:
                lines = found[head[2]] = []
                entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            lines = None
        else:
            lines.append(line)
    return found, entry


def _times(computations: dict[str, list[str]], entry: str) -> dict[str, float]:
    """How often each computation is run."""
    calls = {
        name: [
            (called, int(trips[1]) if (trips := _TRIPS.search(line)) and " while(" in line else 1)
            for line in lines
            for called in _CALLED.findall(line)
            if called in computations
        ]
        for name, lines in computations.items()
    }
    times: dict[str, float] = defaultdict(float)

    def run(name: str, often: float) -> None:
        times[name] += often
        for called, turns in calls[name]:
            run(called, often * turns)

    if entry:
        run(entry, 1.0)
    return times


def _found(lines: list[str]) -> Iterator[_Found]:
    for line in lines:
        match = re.search(rf" ({'|'.join(KINDS)})(-start)?\(", line)
        named = _INSTRUCTION.match(line)
        if match is None or named is None:
            continue
        if match[2] and "calls=" in line:  # the computation that it calls holds the collective
            continue
        result = _result(line[line.index(" = ") + 3 : match.start()], match[1], bool(match[2]))
        groups = _pairs(line) if match[1] == "collective-permute" else _groups(line)
        yield _Found(match[1], groups, sent(match[1], result, groups.shape[1]), result)


def _result(shape: str, kind: str, started: bool) -> int:
    """Bytes of a result. What ``-start`` returns holds the operands before it, and of a permute two numbers behind it."""
    sizes = [_bytes(f"{dtype}[{dims}]") for dtype, dims in _SHAPE.findall(shape)]
    if not started or kind == "all-reduce":
        return sum(sizes)
    if kind == "collective-permute":
        return sizes[1] if len(sizes) > 1 else sizes[0]
    return sum(sizes[len(sizes) // 2 :])


def _bytes(shape: str) -> int:
    total = 0
    for dtype, dims in _SHAPE.findall(shape):
        bits = _BITS.get(dtype) or int(re.search(r"\d+", dtype)[0])
        total += math.prod(int(n) for n in dims.split(",") if n) * bits // 8
    return total


def _groups(line: str) -> np.ndarray:
    """The partitions of each group: listed, or as an array that is reshaped and turned."""
    if found := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
        shape, dims, order = ([int(n) for n in part.split(",")] if part else [] for part in found.groups())
        places = np.arange(math.prod(dims)).reshape(dims)
        return places.transpose(order or range(len(dims))).reshape(shape)
    if found := _OF_MESH.search(line):
        return _groups_of_mesh(*found.groups())
    if found := re.search(r"replica_groups=\{(\{[\d,{} ]*\})\}", line):
        return np.array([[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d, ]+)\}", found[1])])
    return np.zeros((1, 1), int)


def _groups_of_mesh(mesh: str, ids: str | None, along: str) -> np.ndarray:
    """Groups along axes of a mesh, ``'a'=2,'b'=4`` over ``[4,2]T(1,0)`` along ``'a'``. Of an axis of 8, ``'a':(2)4`` is the
    part of size 4 below one of size 2."""
    sizes = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", mesh)}
    places = np.arange(math.prod(sizes.values()))
    if ids is not None:
        dims, _, order = ids.partition("T")
        places = places.reshape([int(n) for n in re.findall(r"\d+", dims)])
        places = places.transpose([int(n) for n in re.findall(r"\d+", order)] or range(places.ndim))
    parts = {name: (1, int(n), 1) for name, n in sizes.items()}
    taken = re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", along)
    for name, before, size in taken:
        if size:
            parts[name] = (int(before), int(size), sizes[name] // (int(before) * int(size)))
    places = places.reshape([n for name in sizes for n in parts[name]])
    inner = [3 * list(sizes).index(name) + 1 for name, *_ in taken]
    outer = [i for i in range(places.ndim) if i not in inner]
    return places.transpose(outer + inner).reshape(-1, math.prod(places.shape[i] for i in inner))


def _pairs(line: str) -> np.ndarray:
    found = re.search(r"source_target_pairs=\{(\{[\d,{} ]*\})\}", line)
    pairs = [[int(n) for n in pair.split(",")] for pair in re.findall(r"\{([\d, ]+)\}", found[1])] if found else []
    return np.array([p for p in pairs if p[0] != p[1]] or [[0, 0]])


def _crossed(groups: np.ndarray, axes: dict[str, int], nodes: Sequence[int]) -> tuple[tuple[str, ...], str]:
    """(axes of the mesh, link) along which a group's members differ."""
    places = np.stack(np.unravel_index(groups, tuple(axes.values())))
    differ = (places != places[..., :1]).any(axis=(1, 2))
    where = np.asarray(nodes)[groups]
    apart = (where != where[:, :1]).any()
    return tuple(name for name, along in zip(axes, differ, strict=True) if along), "network" if apart else "node"
