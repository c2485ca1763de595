"""One worker process, seen from the thread that feeds it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

from r1jax.config import Workers

START_SECONDS = 120.0
"""A worker may take so long to start, to load one reward, or to import one library: a loaded machine is slow, not broken."""
GRACE = 0.5
"""Seconds between the worker's own alarm and its end from outside."""
DEATHS, KILLS = 2, 10
"""Workers that may end at the same request before that is to blame: what an earlier one left behind may have been it, and who
sends a SIGKILL or SIGTERM is mostly another process, or the kernel short of memory."""


class Late(Exception):
    """No reply in time."""


class Died(Exception):
    """The process ended; the message says how.

    Args:
      allowed: the death of so many workers at one request is that request's fault.
    """

    def __init__(self, how: str, allowed: int = DEATHS):
        super().__init__(how)
        self.allowed = allowed


class WorkerProcess:
    """A running ``r1jax.rewards.worker``, in a session of its own so that its children end with it."""

    def __init__(self, workers: Workers):
        self._limit = workers.timeout + GRACE
        requests, self._requests = os.pipe()
        self._replies, replies = os.pipe()
        os.set_blocking(self._requests, False)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "r1jax.rewards.worker"]
                + [str(v) for v in (requests, replies, workers.timeout, workers.memory_gib)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # the worker sends it where its stderr goes
                pass_fds=(requests, replies),
                start_new_session=True,
                env=_environment(),
            )
        except OSError:
            os.close(self._requests)
            os.close(self._replies)
            raise
        finally:
            os.close(requests)
            os.close(replies)
        self._out = b""
        self._in = b""
        self._lines: deque[bytes] = deque()

    def send(self, lines: bytes) -> None:
        """Queue requests; they are written while ``reply`` waits."""
        self._out += lines

    def load(self, name: str) -> str | None:
        """Loads a reward; returns why it cannot be loaded.

        Raises:
          Died, Late: the worker did not come up, or its import ended it.
        """
        self.send(json.dumps({"load": name}).encode() + b"\n")
        return self._next(START_SECONDS)

    def score(self) -> list:
        """The next ``[id, value, status, why]``.

        Raises:
          Died: the process ended. Late: the reward ran past its limit.
        """
        reply = self._next(self._limit)
        while reply in ("pause", "resume"):
            reply = self._next(START_SECONDS if reply == "pause" else self._limit)
        return reply

    def alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """Ends the process and what it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Ends the process and closes the pipes."""
        self.kill()
        os.close(self._requests)
        os.close(self._replies)

    def _next(self, seconds: float) -> Any:
        deadline = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self._replies, select.POLLIN)
        while not self._lines:
            if self._out:
                poll.register(self._requests, select.POLLOUT)
            # Polled at least once after the deadline: this thread may have slept while the reply came.
            events = dict(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
            if not events:
                raise Late
            if self._requests in events:
                self._write()
                if not self._out:
                    poll.unregister(self._requests)
            if self._replies in events:
                self._read()
        try:
            return json.loads(self._lines.popleft())
        except ValueError as e:
            raise Died("the worker's replies are broken; did the reward write to its pipe?") from e

    def _write(self) -> None:
        try:
            self._out = self._out[os.write(self._requests, self._out[: 1 << 16]) :]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self._out = b""  # the end of the replies will tell

    def _read(self) -> None:
        data = os.read(self._replies, 1 << 16)
        if not data:
            raise self._death()
        *lines, self._in = (self._in + data).split(b"\n")
        self._lines.extend(lines)

    def _death(self) -> Died:
        try:
            code = self._process.wait(timeout=GRACE)
        except subprocess.TimeoutExpired:
            return Died("the worker closed its pipe")
        if code >= 0:
            return Died(f"the worker exited with status {code}")
        how = f"the worker died of signal {-code} ({signal.strsignal(-code)})"
        return Died(how, KILLS if -code in (signal.SIGKILL, signal.SIGTERM) else DEATHS)


def _environment() -> dict[str, str]:
    environment = dict(os.environ)
    # This package must be found even where the parent's sys.path was edited; last, so that it hides nothing.
    root = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(p for p in (os.environ.get("PYTHONPATH"), root) if p)
    environment["JAX_PLATFORMS"] = "cpu"  # a reward that uses jax must not take the trainer's accelerator
    # Thread pools and malloc arenas reserve address space for every core, which RLIMIT_AS counts.
    for name, value in (("OMP_NUM_THREADS", "1"), ("OPENBLAS_NUM_THREADS", "1"), ("MALLOC_ARENA_MAX", "2")):
        environment.setdefault(name, value)
    return environment
