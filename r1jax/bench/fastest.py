"""Seconds of a short piece of work. The processes of other packages time theirs with it too, so it imports no jax."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

State = TypeVar("State")
SECONDS, REPEATS = 0.2, 3
"""How long one measurement takes at least, and how many there are, of which the fastest counts."""


def fastest(
    step: Callable[[State], State], state: State, wait: Callable[[State], object],
    *, clock: Callable[[], float] = time.perf_counter,
) -> float:  # fmt: skip
    """Seconds of ``state = step(state)`` in the fastest of a few long runs. Steps are queued, and ``wait(state)`` is when they
    are done."""
    state, count, best = step(state), 1, []
    wait(state)
    while len(best) < REPEATS:
        began = clock()
        for _ in range(count):
            state = step(state)
        wait(state)
        seconds = clock() - began
        if seconds < SECONDS:
            count *= 2
        else:
            best.append(seconds / count)
    return min(best)
