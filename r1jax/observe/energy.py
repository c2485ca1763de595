"""The energy that this machine takes, where it can be read: processors by RAPL (``/sys/class/powercap``), NVIDIA's GPUs by
``nvidia-smi``. Of a run on several machines, that of the first process alone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
EVERY = 5.0
"""Seconds between two readings. RAPL's counters wrap around after minutes at the earliest."""


class Meter:
    """Counts from ``with Meter() as meter`` to the end of the block, in a thread of its own."""

    def __init__(self, powercap: Path = POWERCAP, gpu_watts: Callable[[], float | None] | None = None):
        self._zones = [zone for zone in (Zone.open(path) for path in sorted(powercap.glob("*:*"))) if zone is not None]
        self._gpu_watts = gpu_watts or (_nvidia_watts if shutil.which("nvidia-smi") else None)
        self._gpu = 0.0
        self._read_at: float | None = None
        self._lock = threading.Lock()
        self._ended = threading.Event()

    def __enter__(self) -> Meter:
        if self._zones or self._gpu_watts:
            self.read()
            threading.Thread(target=self._watch, name="energy", daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()

    def joules(self) -> dict[str, float]:
        """``cpu`` and ``gpu`` since the block began; what cannot be read is absent."""
        with self._lock:
            found = {"cpu": sum(zone.joules for zone in self._zones)} if self._zones else {}
            return found | ({"gpu": self._gpu} if self._gpu_watts else {})

    def read(self) -> None:
        with self._lock:
            for zone in self._zones:
                zone.read()
            if self._gpu_watts is not None:
                watts, now = self._gpu_watts(), time.monotonic()
                if watts is None:
                    self._gpu_watts = None
                elif self._read_at is not None:
                    self._gpu += watts * (now - self._read_at)
                self._read_at = now

    def _watch(self) -> None:
        while not self._ended.wait(EVERY):
            self.read()


class Zone:
    """A processor's counter."""

    def __init__(self, path: Path, range_uj: int, now_uj: int):
        self.path, self.range_uj, self.last_uj, self.joules = path, range_uj, now_uj, 0.0

    @classmethod
    def open(cls, path: Path) -> Zone | None:
        """None if it is a part of another zone, or may not be read, which mostly only root may."""
        if not re.fullmatch(r"intel-rapl:\d+", path.name):
            return None
        try:
            return cls(path, int((path / "max_energy_range_uj").read_text()), int((path / "energy_uj").read_text()))
        except (OSError, ValueError):
            return None

    def read(self) -> None:
        now = int((self.path / "energy_uj").read_text())
        self.joules += ((now - self.last_uj) % self.range_uj) / 1e6
        self.last_uj = now


def _nvidia_watts() -> float | None:
    """What the visible GPUs draw; None if they do not say."""
    command = ["nvidia-smi", "--query-gpu=power.draw", "--format=csv,noheader,nounits"]
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        command.append(f"--id={visible}")
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=EVERY, check=True).stdout
        return sum(float(line) for line in told.split())
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
