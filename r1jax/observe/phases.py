"""What a run is doing now: nested phases with counts, tokens and time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

Clock = Callable[[], float]


class Phase:
    """One phase of a run, from ``Phases.open`` until it is left or replaced. As a context manager it ends with its block.

    Its ``seconds`` and ``tokens`` can be read during the phase and after it. Seconds do not include phases opened within it
    (compiling within a rollout), so the phases of a run add up to its time.
    """

    def __init__(self, phases: Phases, name: str, total: int | None, unit: str):
        self.name, self.total, self.unit = name, total, unit
        self.done = 0
        self.tokens = 0
        self.is_block = False
        self._phases = phases
        self._seconds = 0.0
        self._running_since: float | None = None
        self.opened = self.last_news = phases.clock()

    def __enter__(self) -> Phase:
        self.is_block = True
        return self

    def __exit__(self, error_type, *_) -> None:
        self._phases.leave(self, failed=error_type is not None)

    @property
    def seconds(self) -> float:
        running = self._running_since
        return self._seconds + (0.0 if running is None else self._phases.clock() - running)

    @property
    def tokens_per_s(self) -> float:
        """0 before any time has passed."""
        seconds = self.seconds
        return self.tokens / seconds if seconds > 0 else 0.0

    def run(self) -> None:
        if self._running_since is None:
            self._running_since = self._phases.clock()

    def pause(self) -> None:
        self._seconds, self._running_since = self.seconds, None


class Phases:
    """The open phases, innermost last. Safe to use from several threads.

    Args:
      told: called with the name of the innermost phase whenever it is another one.
    """

    def __init__(self, clock: Clock = time.monotonic, told: Callable[[str], None] = lambda name: None):
        self.clock, self._told = clock, told
        self.lock = threading.RLock()
        self.stopped_in: str | None = None
        """What an exception left: the phase of the innermost block, then what ran within it, as in ``rollout, compile``."""
        self._open: list[Phase] = []
        self._last_news = clock()

    @property
    def current(self) -> Phase | None:
        with self.lock:
            return self._open[-1] if self._open else None

    @property
    def news(self) -> tuple[str, float]:
        """The innermost phase, '' between two, and when a phase last began, ended or advanced."""
        with self.lock:
            return self._open[-1].name if self._open else "", self._last_news

    def open(self, name: str, total: int | None, unit: str) -> Phase:
        """The new innermost phase. It replaces phases that were opened by a call; those opened by ``with`` wait for it."""
        with self.lock:
            while self._open and not self._open[-1].is_block:
                self._open.pop().pause()
            if self._open:
                self._open[-1].pause()
            phase = Phase(self, name, total, unit)
            self._last_news = phase.opened
            phase.run()
            self._open.append(phase)
            self._told(name)
            return phase

    def leave(self, phase: Phase, failed: bool = False) -> None:
        """Ends ``phase`` and all within it; the one around it goes on. Does nothing if it has ended."""
        with self.lock:
            if phase not in self._open:
                return
            if failed and self.stopped_in is None:
                self.stopped_in = ", ".join(p.name for p in self._open[self._open.index(phase) :])
            while self._open[-1] is not phase:
                self._open.pop().pause()
            self._open.pop().pause()
            self._last_news = self.clock()
            if self._open:
                self._open[-1].run()
                self._open[-1].last_news = self._last_news
                self._told(self._open[-1].name)

    def advance(self, n: int, tokens: int) -> None:
        with self.lock:
            if self._open:
                phase = self._open[-1]
                phase.done += n
                phase.tokens += tokens
                phase.last_news = self._last_news = self.clock()
