"""Where the time and the tokens of a run went, over all its resumes."""

from __future__ import annotations

import json
import os
from pathlib import Path

FILE = "ledger.json"


class Ledger:
    """Sums seconds and tokens per phase in ``ledger.json``::

        {"phases": {"rollout": {"seconds": 12.5, "tokens": 40960}}, "devices": 8, "resumes": 1}

    Work that a resume threw away stays in the sums: it was paid for.

    Args:
      path: the run directory. A ledger found there is continued, and ``resumes`` grows by one.
      devices: how many accelerators the run holds.
    """

    def __init__(self, path: Path, devices: int = 1):
        self._file = Path(path) / FILE
        self.phases: dict[str, dict[str, float]] = {}
        self.devices = devices
        self.resumes = 0
        if self._file.exists():
            found = json.loads(self._file.read_text())
            self.phases, self.resumes = found["phases"], found["resumes"] + 1

    def add(self, phase: str, seconds: float, tokens: int = 0) -> None:
        sums = self.phases.setdefault(phase, {"seconds": 0.0, "tokens": 0})
        sums["seconds"] += seconds
        sums["tokens"] += tokens

    def save(self) -> None:
        """Replaces the file atomically."""
        part = self._file.with_name(FILE + ".part")
        part.write_text(json.dumps({"phases": self.phases, "devices": self.devices, "resumes": self.resumes}, indent=1) + "\n")
        os.replace(part, self._file)
