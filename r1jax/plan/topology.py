"""Machines by the names that clouds give them: ``v5p:8x8x8``, ``v6e-8``, ``h800:512``, ``rtx4090``."""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass

from r1jax.config.base import ConfigError
from r1jax.plan.chips import CHIPS, Chip

HERE = "here"
KNOWN = f"{', '.join(CHIPS)}, {HERE}"
_SHAPES = {
    2: {1: (1, 1), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 128: (8, 16), 256: (16, 16)},
    3: {4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4), 64: (4, 4, 4), 128: (4, 4, 8), 256: (4, 8, 8),
        512: (8, 8, 8), 1024: (8, 8, 16), 2048: (8, 16, 16), 4096: (16, 16, 16)},
}  # fmt: skip
"""Chips of a slice -> the torus that a cloud gives for the number alone, by its dimensions."""
_LARGEST = {"v5e": 256, "v6e": 256}


@dataclass(frozen=True)
class Topology:
    chip: Chip
    chips: int
    torus: tuple[int, ...] = ()
    """Of a TPU slice."""

    @property
    def devices(self) -> int:
        """That JAX sees."""
        return self.chips * self.chip.devices

    @property
    def nodes(self) -> int:
        return -(-self.chips // self.chip.per_node)

    @property
    def per_node(self) -> int:
        """Devices that reach each other by the chip's own link: a node's GPUs, a whole TPU slice."""
        return self.devices if self.chip.platform == "tpu" else min(self.devices, self.chip.per_node)

    def of_device(self, value: float) -> float:
        """A chip's figure as one of a device."""
        return value / self.chip.devices

    @property
    def name(self) -> str:
        if self.torus:
            return f"{self.chip.name}:{'x'.join(map(str, self.torus))}"
        return f"{self.chip.name}:{self.chips}"

    def describe(self) -> str:
        """What was understood, in words."""
        c = self.chip
        what = f"{self.chips} {c.name} chip{'s' * (self.chips > 1)}" if c.platform == "tpu" else f"{self.chips} x {c.name}"
        if self.torus:
            what += f" as a torus of {' x '.join(map(str, self.torus))}"
        if c.devices > 1:
            what += f", {self.devices} devices"
        nodes = f", {self.nodes} host{'s' * (self.nodes > 1)} of up to {c.per_node}" if self.nodes > 1 or c.per_node > 1 else ""
        return (
            f"{what}{nodes}; each {c.memory / 1e9:g} GB at {c.bandwidth / 1e9:,.0f} GB/s, {c.bf16 / 1e12:g} TFLOP/s bfloat16, "
            f"{c.link / 1e9:g} GB/s to its {'slice' if c.platform == 'tpu' else 'node'} and {c.network / 1e9:g} GB/s beyond"
        )


def of_this_machine(platform: str, devices: int, flops: float, bandwidth: float, memory: float) -> Topology:
    """The devices of this machine, by what was measured on one: FLOP/s, bytes/s and free bytes."""
    chip = Chip(HERE, platform, flops, flops, memory, bandwidth, bandwidth, bandwidth, devices, "measured on this machine")
    return Topology(chip, devices)


def parse(text: str) -> Topology:
    """A topology by its name.

    ``CHIP:AxB[xC]`` is a TPU slice's torus; ``CHIP:N`` and ``CHIP`` are N devices and one; ``CHIP-N`` is Google's name of a
    slice, where N counts TensorCores of v4 and v5p, which have two, and chips of the others.

    Raises:
      ConfigError: there is no such chip, or no such slice of it.
    """
    plain = text.strip().lower().replace("v5litepod", "v5e")
    found = re.fullmatch(r"([a-z0-9]+?)(?:([:-])([0-9x]+))?", plain)
    if found is None or found[1] not in CHIPS:
        near = difflib.get_close_matches(found[1] if found else text, [*CHIPS, HERE], n=2, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known are {KNOWN}"
        raise ConfigError(f"--topology {text}: no such chip; {hint} (as in v5p:8x8x8, v6e-8, h800:512)")
    chip, mark, size = CHIPS[found[1]], found[2], found[3] or "1"
    if mark is None and chip.platform == "tpu":
        size = "1" if chip.dims == 2 else "4"
    sizes = tuple(int(n) if n else 0 for n in size.split("x"))
    if 0 in sizes:
        raise ConfigError(f"--topology {text}: every size must be at least 1")
    if chip.platform == "gpu":
        if len(sizes) > 1 or mark == "-":
            raise ConfigError(f"--topology {text}: write {chip.name}:N for N GPUs")
        return _checked(text, Topology(chip, sizes[0]))
    if len(sizes) > 1:
        if len(sizes) != chip.dims:
            raise ConfigError(f"--topology {text}: a slice of {chip.name} has {chip.dims} dimensions, not {len(sizes)}")
        return _checked(text, Topology(chip, math.prod(sizes), sizes))
    chips, rest = divmod(sizes[0], chip.cores if mark == "-" else 1)
    torus = _SHAPES[chip.dims].get(chips)
    if rest or torus is None:
        fitting = [n * (chip.cores if mark == "-" else 1) for n in _SHAPES[chip.dims] if n <= _LARGEST.get(chip.name, n)]
        raise ConfigError(f"--topology {text}: no such slice; there are {', '.join(map(str, fitting))}, or give its torus")
    return _checked(text, Topology(chip, chips, torus))


def _checked(text: str, topology: Topology) -> Topology:
    c = topology.chip
    if topology.chips > (most := _LARGEST.get(c.name, 16384)):
        raise ConfigError(f"--topology {text}: more than {most} {c.name} are not planned for")
    if c.platform == "gpu" and topology.chips > c.per_node > 1 and topology.chips % c.per_node:
        raise ConfigError(f"--topology {text}: a node of {c.name} has {c.per_node} GPUs; name a multiple of it")
    if c.platform == "tpu" and topology.chips > 1 and any(n % 2 for n in topology.torus[:2]):
        raise ConfigError(f"--topology {text}: hosts have 2 x 2 chips, so the first two sizes must be even")
    return topology
