"""Compiles a stage's programs for a topology, each in a process of its own: the platform must be chosen before jax is imported,
and what a compiler for hundreds of devices needs is given back."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from r1jax import config
from r1jax.plan.hlo import Collective
from r1jax.plan.topology import HERE, Topology

NEEDS = {"tpu": ("libtpu", "jax[tpu]"), "gpu": ("jax_cuda12_plugin", "jax[cuda12]")}
"""Platform -> the package that compiles for it, and what brings it."""


@dataclass(frozen=True)
class Program:
    """Of one device, in bytes. ``collectives`` are of one turn of loops whose length is not known when compiling: of a
    micro-batch, of a decoded token."""

    name: str
    seconds: float
    """That it took to lower and compile."""
    refused: str = ""
    """What the compiler said where the program does not fit; the rest is then empty."""
    parts: dict[str, int] = field(default_factory=dict)
    """Name -> bytes of arguments."""
    arguments: int = 0
    temporary: int = 0
    new_outputs: int = 0
    """Results that take no argument's place."""
    code: int = 0
    host: int = 0
    """Arguments that lie in the host's memory, beside the others."""
    collectives: tuple[Collective, ...] = ()
    gathers: tuple[str, ...] = ()
    """All-gathers of all tokens or of all experts."""
    largest: tuple[tuple[int, str], ...] = ()
    cache_copies: float = 0.0
    cache_length: int = 0
    slots: int = 0

    @property
    def need(self) -> int:
        return self.arguments + self.temporary + self.new_outputs + self.code


def missing(platform: str) -> str:
    """What must be installed to compile for it; empty if nothing."""
    package, extra = NEEDS.get(platform, ("", ""))
    if not package or importlib.util.find_spec(package) is not None:
        return ""
    return (
        f"compiling for a {platform.upper()} needs {extra}: pip install 'r1jax[plan]', or take the estimate, --no-compile"
    )


def compile_stage(
    stage: config.Stage, model: config.Model, topology: Topology, program: str, timeout: float
) -> Program:
    """Compiles one of ``programs.PROGRAMS``.

    Args:
      stage: with a number for every size of its mesh and for ``micro_batch``.
      topology: ``here`` is the devices of this machine.

    Raises:
      ConfigError: the compiler is not installed, failed or took longer than ``timeout`` seconds.
    """
    here = topology.chip.name == HERE
    if not here and (why := missing(topology.chip.platform)):
        raise config.ConfigError(why)
    name = HERE if here else topology.name
    asked = {"stage": config.to_json(stage), "model": config.to_json(model), "topology": name, "program": program}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        request, result = Path(folder) / "request.json", Path(folder) / "result.json"
        request.write_text(json.dumps(asked))
        words = [sys.executable, "-m", "r1jax.plan.programs", str(request), str(result)]
        env = environment(None if here else topology)
        try:
            done = subprocess.run(words, env=env, capture_output=True, text=True, errors="replace", timeout=timeout)
        except subprocess.TimeoutExpired:
            raise config.ConfigError(
                f"compiling the {program} for {name} took longer than {timeout:.0f} s; raise --timeout, or use --no-compile"
            ) from None
        if not result.exists():
            raise config.ConfigError(f"compiling the {program} for {name} failed: {last_line(done.stderr)}")
        found = json.loads(result.read_text())
    return read(program, time.monotonic() - began, found)


def read(name: str, seconds: float, found: dict[str, Any]) -> Program:
    """What ``programs.main`` wrote."""
    if "refused" in found:
        return Program(name, seconds, refused=summary(found["refused"]), largest=tuple(allocations(found["refused"])))
    plain = {k: v for k, v in found.items() if not k.endswith("_seconds")}
    plain["collectives"] = tuple(Collective(**c | {"axes": tuple(c["axes"])}) for c in found["collectives"])
    plain["gathers"], plain["largest"] = tuple(found["gathers"]), tuple(map(tuple, found["largest"]))
    return Program(name, seconds, **plain)


def environment(topology: Topology | None) -> dict[str, str]:
    """Of the process that compiles; None is for the devices of this machine."""
    env = dict(os.environ)
    env["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).resolve().parents[2]), *filter(None, [env.get("PYTHONPATH")])])
    if topology is None:
        return env
    env["JAX_PLATFORMS"] = "cpu"
    if topology.chip.platform == "tpu":
        env |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    else:  # without a GPU nothing can be timed
        env["XLA_FLAGS"] = f"{env.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0".strip()
    return env


def last_line(stderr: str) -> str:
    """The line of the exception that ended a process, or the last one that says something."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt)\b", line)]
    return (named or lines or ["it said nothing"])[-1][:500]


def summary(error: str) -> str:
    """What the TPU's compiler found too large: its first sentence with sizes."""
    found = re.search(r"[^.\n]*(?:[Uu]sed|[Ee]xceeded)[^\n]*", error)
    return (found[0] if found else error.splitlines()[0]).strip()[:300]


def allocations(error: str) -> list[tuple[int, str]]:
    """(bytes, what) of the largest buffers that it lists."""
    units = {"B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    found = []
    for size, unit, rest in re.findall(r"Size: ([\d.]+)([BKMGT])\b(.*?)(?:\n\s*={5,}|\Z)", error, re.DOTALL):
        shape = re.search(r"Shape: (\S+?)(?:\{|\n|$)", rest)
        where = re.search(r'op_name="([^"]*)"', rest)
        made = f" of {where[1].rpartition('/')[2]}" if where else ""
        found.append((round(float(size) * units[unit]), f"{shape[1] if shape else 'a buffer'}{made}"))
    return sorted(found, reverse=True)[:5]
