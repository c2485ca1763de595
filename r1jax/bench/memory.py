"""Resident memory, as the system tells it. Other packages' processes read it too, so it imports no jax."""

from __future__ import annotations

import contextlib
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident(line: str) -> int | None:
    """Bytes of this process: ``VmRSS`` now, ``VmHWM`` at most. None where the system does not tell."""
    with contextlib.suppress(OSError):
        for text in STATUS.read_text().splitlines():
            if text.startswith(line):
                return 1024 * int(text.split()[1])
    return None


def forget_peak() -> int | None:
    """Makes the most that was in use what is in use now, where the system lets us, and returns that."""
    with contextlib.suppress(OSError):
        CLEAR.write_text("5")
    return resident("VmRSS")


def risen(before: int | None) -> int | None:
    """By how much the most that was in use is above ``before``."""
    peak = resident("VmHWM")
    return None if before is None or peak is None else max(0, peak - before)
