"""Device-hours and dollars of a run, what moves them, and R1's published table beside them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

from r1jax.config.plan import Efficiency

PUBLISHED = (("R1-Zero", 101_000), ("SFT data creation", 5_000), ("R1", 41_000), ("all", 147_000))
"""H800-hours (Nature 2025, supplement); at $2 an hour $294K. R1-Zero about 198 hours on 512 devices, R1 about 80."""
PUBLISHED_PRICE = 2.0
R1_ZERO_HOURS, R1_ZERO_STEPS, R1_ZERO_ANSWERS = 101_376, 10_400, 512
"""198 hours on 512 devices; steps; answers of a step."""
ARE_PUBLISHED = (
    "published: 512 H800, 198 hours, 10,400 steps of 32 questions x 16 answers, 16 updates a round, caps of 32,768 and 65,536 "
    "tokens, $2 a GPU-hour"
)
ARE_ASSUMED = (
    "assumed: mean length of an answer, layout over devices, precision of rollout and update, rows that a device packs, and "
    "every share of a peak"
)


@dataclass(frozen=True)
class Range:
    """Device-hours of a stage."""

    low: float
    base: float
    high: float
    moved_by: tuple[tuple[str, float, float], ...]
    """The three inputs that move it most: (input with its values, hours at the one, at the other)."""


def spread(hours: Callable[[float, Efficiency], float], answer: float, e: Efficiency, *, known: bool) -> Range:
    """Low, base and high: each input goes to its two ends while the others stay, and what it adds or takes is summed in
    quadrature, as if inputs were independent.

    Args:
      hours: of a mean length of answers and shares of peaks.
      known: the mean length was given.
    """
    base = hours(answer, e)
    inputs: dict[str, list[tuple[float, Efficiency]]] = {}
    ends = (0.8, 1.25) if known else (0.5, 2.0)
    inputs[f"mean answer {ends[0] * answer:,.0f} to {ends[1] * answer:,.0f} tokens"] = [(end * answer, e) for end in ends]
    for name, (least, most) in ENDS.items():
        text = f"{name.replace('_', ' ')} {least:g} to {most:g}"
        inputs[text] = [(answer, dataclasses.replace(e, **{name: end})) for end in (least, most)]
    moved = sorted(((text, *(hours(*end) for end in pair)) for text, pair in inputs.items()), key=lambda m: -abs(m[2] - m[1]))
    below = math.sqrt(sum(max(0.0, base - min(m[1:])) ** 2 for m in moved))
    above = math.sqrt(sum(max(0.0, max(m[1:]) - base) ** 2 for m in moved))
    return Range(max(base - below, 0.0), base, base + above, tuple(moved[:3]))


ENDS = {
    "compute": (0.2, 0.5),
    "bandwidth": (0.35, 0.8),
    "link": (0.4, 0.9),
    "overlap": (0.0, 0.9),
    "layer_seconds": (1e-5, 1e-4),
    "longest": (1.5, 5.0),
    "packing": (0.7, 0.98),
    "reward_seconds": (0.01, 0.5),
}
"""What each input may be: published runs of ``plan.published`` lie within the first three."""


def implied_rate(answer: float) -> float:
    """Tokens/s of a device that R1-Zero's published hours imply, all phases counted, at this mean length."""
    return R1_ZERO_STEPS * R1_ZERO_ANSWERS * answer / (R1_ZERO_HOURS * 3600)
