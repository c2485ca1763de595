"""The process that runs rewards: ``python -m r1jax.rewards.worker IN OUT SECONDS GIB``.

It reads requests from file descriptor IN and answers on OUT, one JSON value a line, in order; it ends when IN does.

    {"load": "accuracy"}                                    ->  null, or why it cannot be loaded
    {"id": 7, "rewards": ["accuracy", ...], "prompt": ..., "completion": ..., "row": {...}}
                                                            ->  [7, value, status, why] for each reward
    "pause" and "resume" may come between: the reward imports a library or runs a program in a sandbox; its clock stands still.

What rewards print goes to stderr. SECONDS limit one reward of one answer, from inside by an alarm; the parent kills what the
alarm cannot reach. GIB limits the address space.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import math
import numbers
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from r1jax.rewards.load import load
from r1jax.rewards.score import Score
from r1jax.rewards.slow_import import stop_clock_with

ORPHAN_GRACE = 5.0
"""Seconds past the limit after which a stuck worker ends itself: the parent, which kills sooner, must be gone."""
MAX_WHY = 300
"""Characters."""


class OutOfTime(BaseException):
    """The alarm. Not an Exception, so that a reward's ``except Exception`` lets it pass."""


class Clock:
    """The time limit of the reward that is running."""

    def __init__(self, seconds: float, send: Callable[[Any], None]):
        self._seconds, self._send = seconds, send
        self._null = open(os.devnull, "w")  # noqa: SIM115 (faulthandler keeps it as long as the process lives)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        self._start()
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Stands still, then starts anew."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        self._send("pause")
        try:
            yield
        finally:
            self._send("resume")
            self._start()

    def _start(self) -> None:
        # faulthandler's watchdog is a C thread: it ends an orphan even if a library holds the interpreter's lock.
        faulthandler.dump_traceback_later(self._seconds + ORPHAN_GRACE, exit=True, file=self._null)
        signal.signal(signal.SIGALRM, _ring)  # each time: rewards use SIGALRM too
        signal.setitimer(signal.ITIMER_REAL, self._seconds)


def _ring(signum, frame):
    raise OutOfTime


class Coroutines:
    """Runs what async rewards return, on one event loop."""

    def __init__(self):
        self._runner = None

    def __call__(self, awaitable: Any) -> Any:
        import asyncio  # 50 ms that a worker without async rewards need not spend

        async def wait():
            return await awaitable

        self._runner = self._runner or asyncio.Runner()
        try:
            return self._runner.run(wait())
        except OutOfTime:
            self._runner = None  # its loop still holds the task that was cut off
            raise


def score_one(reward: Callable, item: dict, clock: Clock, run: Coroutines) -> Score:
    """One reward of one answer; whatever the reward does short of ending the process becomes a status."""
    try:
        with clock.running():
            value = reward(item["prompt"], item["completion"], item["row"])
            if hasattr(value, "__await__"):
                value = run(value)
            return _judge(value)
    except OutOfTime:
        return Score(0.0, "timeout", f"took longer than {clock._seconds:g} s")
    except BaseException as e:  # SystemExit too: a reward must not end its worker
        return Score(0.0, "error", _describe(e))


def _judge(value: Any) -> Score:
    score = value if isinstance(value, Score) else Score(value)
    if not isinstance(score.value, numbers.Real):
        return Score(0.0, "invalid", f"returned {type(score.value).__name__} {_line(repr(score.value))}, not a number")
    if not math.isfinite(score.value):
        return Score(0.0, "invalid", f"returned {float(score.value)}")
    return Score(float(score.value) if score.status == "ok" else 0.0, score.status, _line(score.why))


def _describe(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__, limit=-1)
    where = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
    return _line(f"{type(error).__name__}: {error}"[: MAX_WHY - 60]) + where


def _line(text: Any) -> str:
    return " ".join(str(text).split())[:MAX_WHY]


def _limit_memory(gib: float) -> None:
    size = int(gib * 2**30)
    # macOS refuses RLIMIT_AS; the time limits still hold there.
    with contextlib.suppress(ValueError, OSError):
        # The hard limit stays: a compiler that a reward starts may need more than the reward.
        resource.setrlimit(resource.RLIMIT_AS, (size, resource.getrlimit(resource.RLIMIT_AS)[1]))
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Where memory runs out, Linux ends a worker, which costs a start, before the trainer, which costs the run.
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


def main(requests: int, replies: int, seconds: float, gib: float) -> None:
    os.dup2(2, 1)
    os.set_inheritable(requests, False)
    os.set_inheritable(replies, False)
    _limit_memory(gib)

    def send(value: Any) -> None:
        data = (json.dumps(value) + "\n").encode()
        while data:
            data = data[os.write(replies, data) :]

    clock, run, rewards = Clock(seconds, send), Coroutines(), {}
    stop_clock_with(clock.stopped)
    with os.fdopen(requests, "rb") as lines:
        for line in lines:
            request = json.loads(line)
            if "load" in request:
                send(_load_into(rewards, request["load"]))
                continue
            for name in request["rewards"]:
                score = score_one(rewards[name], request, clock, run)
                send([request["id"], score.value, score.status, score.why])
            faulthandler.cancel_dump_traceback_later()


def _load_into(rewards: dict[str, Callable], name: str) -> str | None:
    try:
        rewards[name] = load(name)
    except ValueError as e:
        return _line(e)
    except BaseException as e:  # a module that calls sys.exit
        return f"reward {name!r}: importing it failed with {_describe(e)}"
    return None


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):  # the parent has gone
        main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]))
