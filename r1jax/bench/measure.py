"""Sides by turns, their compilations and their memory; and the process in which another package works."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata, util
from pathlib import Path
from typing import Any

import jax

import r1jax
from r1jax.bench.memory import risen
from r1jax.bench.results import Product
from r1jax.config import ConfigError
from r1jax.observe import compiling
from r1jax.observe.phases import Phase, Phases

NEEDS = {"hf": ("torch", "transformers"), "trl": ("torch", "transformers", "trl")}
"""What --against names -> the packages that it needs."""


@dataclass
class Turn:
    """One round of one side."""

    seconds: dict[str, float]
    """Of each phase."""
    notes: dict[str, float] = field(default_factory=dict)


Work = Callable[[], Turn]


def interleave(sides: Mapping[str, Work], rounds: int, say: Callable[[str], None]) -> dict[str, list[Turn]]:
    """Every side once, then ``rounds`` times all of them by turns, so that what changes on the machine meanwhile meets each.
    The first turn of each is the one that does not count."""
    turns: dict[str, list[Turn]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, work in sides.items():
            turn = work()
            turns[name].append(turn)
            what = f"round {number} of {rounds}" if number else "warming up"
            say(f"{what}: {name} {sum(turn.seconds.values()):.3f} s")
    return turns


# -- Our side


class Compilations:
    """Counts what this thread compiles."""

    def __init__(self):
        self.count, self.seconds = 0, 0.0
        self._phases = Phases()

    @contextlib.contextmanager
    def watch(self) -> Iterator[Compilations]:
        with compiling.watch(lambda: self._phases.open("compile", None, ""), self._ended):
            yield self

    def _ended(self, phase: Phase) -> None:
        self.count += 1
        self.seconds += phase.seconds


def peak_bytes(device: jax.Device, before: int | None) -> int | None:
    """The most that was in use: of the device's own memory, or by how much the process's has risen above ``before``. None where
    neither is told."""
    stats = device.memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    return risen(before)


# -- The other side


def refuse_missing(against: str | None) -> None:
    """
    Raises:
      ConfigError: a package is not installed.
    """
    missing = [name for name in NEEDS.get(against, ()) if util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"--against {against} needs {', '.join(missing)}; pip install 'r1jax[bench]'")


def versions(against: str | None) -> dict[str, str]:
    others = {name: metadata.version(name) for name in ("jax", "jaxlib", *NEEDS.get(against, ()))}
    return {"r1jax": r1jax.__version__, **others}


class Peer:
    """A process in which another package does the work of ``job`` when it is told to; see ``bench.peers``.

    Raises:
      ConfigError: it cannot.
    """

    def __init__(self, job: dict[str, Any]):
        self.dtype = job["dtype"]
        self.peak_bytes: int | None = None
        handle, path = tempfile.mkstemp(prefix="r1jax-bench-")
        self._told = Path(path)
        environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "r1jax.bench.peers"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=handle, text=True, env=environment,
        )  # fmt: skip
        os.close(handle)
        self._send(job)
        self.products = tuple(Product(**product) for product in self._receive()["products"])
        self._receive()

    def turn(self) -> Turn:
        self._send({})
        said = self._receive()
        self.peak_bytes = said.pop("peak_bytes")
        return Turn(**said)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.terminate()
        self._process.wait()
        self._process.stdout.close()
        self._told.unlink(missing_ok=True)

    def _send(self, value: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):  # what it died of is told when we listen
            self._process.stdin.write(json.dumps(value) + "\n")
            self._process.stdin.flush()

    def _receive(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        said = json.loads(line) if line else {"error": f"the other package's process ended: {self._last_words()}"}
        if "error" in said:
            self.close()
            raise ConfigError(said["error"])
        return said

    def _last_words(self) -> str:
        self._process.wait()
        lines = self._told.read_text(errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), f"exit code {self._process.returncode}")
