"""What the three measurements share: limits, sides by turns, the report."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from r1jax import config, params
from r1jax.bench import measure, results
from r1jax.bench.limits import best, probe
from r1jax.bench.memory import forget_peak
from r1jax.bench.results import OURS, Limits, Need, Report, Side
from r1jax.bench.subject import Subject, device_of
from r1jax.config.bench import Measuring
from r1jax.data.tokenizer import Tokenizer
from r1jax.models import decoder

Needs = Callable[[config.Model, Limits], dict[str, Need]]
"""What the phases need, of a model in the types in which a side multiplies and caches."""


@contextlib.contextmanager
def open_peers(
    command: Measuring, subject: Subject, against: str | None, limits: Limits, job: Mapping[str, Any],
    tokenizer: Tokenizer | None = None,
) -> Iterator[dict[str, measure.Peer]]:  # fmt: skip
    """A process of ``against`` for each type that is asked for, with the subject's weights and ready to work; none for None.

    Raises:
      ConfigError: it cannot do the job.
    """
    peers: dict[str, measure.Peer] = {}
    if against is None:
        yield peers
        return
    device = device_of(subject.mesh)
    with tempfile.TemporaryDirectory(prefix="r1jax-bench-") as folder:
        directory = Path(folder) / "model"
        subject.export(directory, tokenizer)
        try:
            for dtype in command.against_dtype:
                say(f"{against} in {dtype} makes ready")
                whole = {**job, "device": device, "directory": str(directory), "seed": command.seed, "dtype": dtype}
                whole["shapes"] = [(p.rows, p.inner, p.outer) for p in limits.products if p.dtype == dtype]
                peers[f"{against} {dtype}"] = measure.Peer(whole)
            yield peers
        finally:
            for peer in peers.values():
                peer.close()


def compare(
    work: str, command: Measuring, subject: Subject, limits: Limits, needs: Needs,
    ours: Callable[[], measure.Work], peers: Mapping[str, measure.Peer],
) -> Report:  # fmt: skip
    """Measures all sides by turns, shows the report, and writes it where ``command.out`` says.

    Args:
      limits: as probed before; they are once more afterwards.
      ours: loads our weights and returns the work of one round.
    """
    device, compilations = subject.mesh.devices.flat[0], measure.Compilations()
    counted: list[tuple[int, float]] = []
    before = forget_peak()
    with compilations.watch():
        once = ours()

        def watched() -> measure.Turn:
            turn = once()
            counted.append((compilations.count, compilations.seconds))
            return turn

        turns = measure.interleave({OURS: watched} | {n: peer.turn for n, peer in peers.items()}, command.rounds, say)
    limits = best(limits, probe(subject.model, subject.mesh, limits.products[0].rows))
    products = itertools.chain(limits.products, *(peer.products for peer in peers.values()))
    limits = dataclasses.replace(limits, products=tuple(products))
    model, (first, seconds) = subject.model, counted[0]
    compiled = {"compilations": first, "compile_seconds": seconds, "late_compilations": counted[-1][0] - first}
    sides = [side(OURS, model, turns[OURS], needs(model, limits), measure.peak_bytes(device, before), **compiled)]
    for name, peer in peers.items():
        theirs = dataclasses.replace(model, dtype=peer.dtype, matmul_dtype=peer.dtype)
        sides.append(side(name, theirs, turns[name], needs(theirs, limits), peer.peak_bytes))
    report = Report(
        command=work,
        settings=json.loads(json.dumps(vars(command), default=_plain)),
        model=config.to_json(model),
        parameters=params.count(decoder.specs(model)),
        versions=measure.versions(vars(command)["against"]),
        limits=limits,
        sides=tuple(sides),
    )
    results.show(report, Console(highlight=False))
    if command.out is not None:
        results.write(report, command.out)
    return report


def side(name: str, model: config.Model, turns: list[measure.Turn], need: dict[str, Need], peak: int | None, **more) -> Side:
    """A side's part of the report; its first turn does not count."""
    first, *rest = turns
    return Side(
        name, model.matmul_dtype, tuple(t.seconds for t in rest), need, sum(first.seconds.values()), peak_bytes=peak,
        notes=first.notes, **more,
    )  # fmt: skip


def say(line: str) -> None:
    print(f"r1jax bench: {line}", file=sys.stderr, flush=True)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else config.to_json(value)
