"""Names a phase that does not end: a run that hangs says where, and what every thread is doing."""

from __future__ import annotations

import datetime
import faulthandler
import os
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from r1jax import supervise
from r1jax.config.guards import Watchdog
from r1jax.observe.phases import Phases

COMPILING = "compile"
STOPPED = 3  # an exit code


class Watching:
    """Looks at the phases of a run from a thread of its own, from ``with Watching(...)`` to the end of the block.

    A stall is named once; then not before there was progress. A process that stalls in a phase makes its peers stall in a
    collective, so with several each names its own.

    Args:
      step: called for the last step that was made.
      logs: the folder for the stacks, ``RUN/logs``; made if absent.
      process: of several, which this is.
      leave: ends the process with an exit code, whatever its threads do.
    """

    def __init__(
        self,
        settings: Watchdog,
        phases: Phases,
        step: Callable[[], int],
        logs: Path,
        *,
        process: int = 0,
        leave: Callable[[int], None] = os._exit,
    ):
        self.stacks = logs / f"stalled-{process}.txt"
        self._settings, self._phases, self._step, self._leave = settings, phases, step, leave
        self._told: float | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def __enter__(self) -> Watching:
        if self._settings.stall_seconds:
            self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()

    def look(self) -> str | None:
        """The line about a stall that was not named yet; None if there is none."""
        name, since = self._phases.news
        limit = self._settings.compile_seconds if name == COMPILING else self._settings.stall_seconds
        silent = self._phases.clock() - since
        if not limit or silent < limit or self._told == since:
            return None
        self._told = since
        where = f"phase {name}" if name else "between two phases"
        setting = "compile_seconds" if name == COMPILING else "stall_seconds"
        return (
            f"no progress for {silent:.0f} s (watchdog.{setting} is {limit:g}) in {where} after step {self._step()} on "
            f"{socket.gethostname()}, process {os.getpid()}; {self._write_stacks(where, silent)}"
        )

    def _write_stacks(self, where: str, silent: float) -> str:
        """Where they are, in words: a run that stalls because its disk is gone is named all the same."""
        try:
            self.stacks.parent.mkdir(parents=True, exist_ok=True)
            with open(self.stacks, "a") as file:
                now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
                file.write(f"== {now}: {where} after step {self._step()}, {silent:.0f} s without progress\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError as error:
            return f"the stacks of its threads could not be written to {self.stacks}: {error.strerror}"
        return f"{self.stacks} says what each thread does"

    def _run(self) -> None:
        settings = self._settings
        every = min(10.0, min(s for s in (settings.stall_seconds, settings.compile_seconds) if s) / 4)
        while not self._ended.wait(every):
            if (line := self.look()) is None:
                continue
            if not settings.stop:
                supervise.warn(f"{line}; it goes on waiting")
                continue
            print(f"r1jax: stopped: {line}; given again, the command goes on from what was saved", file=sys.stderr, flush=True)
            self._leave(STOPPED)
