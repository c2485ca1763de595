"""A small parent beside each process of several: it loads no jax, knows what its workers do, and ends them if one is lost.

A worker that dies leaves the others in a collective, for ever or until an anonymous error of the network. Its parent sees the
death itself, and says it in one line: which process, where, in which phase, after which step, how, and which log tells more.
Parents on several machines hear of each other through small files in RUN/logs, where that is shared.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from r1jax import mirror
from r1jax.mirror import LOGS
from r1jax.place import Place

NEWS = "R1JAX_NEWS"
"""Set in a worker: the file descriptor on which it tells its parent what it does."""
PREEMPTED = 75  # an exit code
WARNING = "r1jax: warning: "  # before what a worker says that does not end it
JOIN = "join"  # the phase in which processes wait for each other at the start
BEAT = 0.2  # seconds between two looks at the workers
TELL = 2.0  # between two looks at what other parents say, and two words to them
SETTLE = 5.0  # after a death: who died of it says so too, and the parent of who died first may be elsewhere
GRACE = 5.0  # for the rest to end by themselves, which in a collective they cannot
INTERRUPTING = 30.0  # for all to end at Ctrl-C: a save may be under way
TAIL = 200  # lines of a worker's stderr in which jax may have named a lost peer

# What jax's coordination service says of a peer that is gone.
_PEER = re.compile(r"stopped sending heartbeats\):\s*(\d+)")
_FIRST = re.compile(r"error information from remote target coordination_service")  # which process 0 runs


# -- The worker's side


def tell(**what: str | int) -> None:
    """Tells the parent, if there is one, what this process does: its ``phase``, ``step``, ``rank``."""
    if (pipe := os.environ.get(NEWS)) is not None:
        with contextlib.suppress(OSError):  # a parent that is gone, or too busy to read
            os.write(int(pipe), json.dumps(what).encode() + b"\n")


def warn(line: str) -> None:
    """Says on stderr what does not end the process; the parent of one whose stderr is not shown says it too."""
    print(f"{WARNING}{line}", file=sys.stderr, flush=True)
    tell(warning=line)


def is_worker() -> bool:
    return NEWS in os.environ


def follow_parent() -> None:
    """This worker is told to end, as by SIGTERM, if its parent is killed. On Linux; elsewhere it goes on alone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


# -- The parent's side


class Worker:
    """A process of the group that runs on this machine."""

    def __init__(self, command: Sequence[str], place: Place, logs: Path):
        self.place, self.logs, self.host = place, logs, socket.gethostname()
        self.name = self.host if place.rank is None else f"rank-{place.rank}"
        self.log = logs / f"{self.name}.log"
        self.news: dict = {"phase": "start", "step": 0}
        self.tail: deque[str] = deque(maxlen=TAIL)
        self.died: float | None = None
        self.told = 0.0
        # The first shows its terminal: what it prints goes there, and to the log only what it prints as an error.
        self.shown = place.rank in (0, None)
        reads, writes = os.pipe()
        os.set_blocking(writes, False)
        environment = os.environ | place.variables() | {NEWS: str(writes), "PYTHONUNBUFFERED": "1"}
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=None if self.shown else log,
                stderr=subprocess.PIPE if self.shown else log,
                pass_fds=(writes,),
                start_new_session=True,  # Ctrl-C is for the parent; and the worker's own children end with its session
            )
        os.close(writes)
        self._threads = [threading.Thread(target=self._listen, args=(reads,), daemon=True)]
        if self.shown:
            self._threads.append(threading.Thread(target=self._repeat, daemon=True))
        for thread in self._threads:
            thread.start()

    def _listen(self, reads: int) -> None:
        with open(reads, "rb") as pipe:
            for line in pipe:
                news = json.loads(line)
                if (warning := news.pop("warning", None)) is not None and not self.shown:
                    print(f"{WARNING}rank {self.rank}: {warning}", file=sys.stderr, flush=True)
                self.news |= news

    def _repeat(self) -> None:
        """stderr, to ours and to the log."""
        with open(self.log, "ab", buffering=0) as log:
            for line in self.process.stderr:
                log.write(line)
                self.tail.append(line.decode(errors="replace"))
                sys.stderr.write(self.tail[-1])
                sys.stderr.flush()

    @property
    def rank(self) -> int | None:
        """None until jax has found it out, where only the cluster knows it."""
        return self.news.get("rank", self.place.rank)

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        code = self.process.poll()
        if code is not None and self.died is None:
            self.died = time.time()
            for thread in self._threads:
                thread.join(1.0)  # what it said last
        return code

    @property
    def failed(self) -> bool:
        return self.poll() not in (None, 0, PREEMPTED)

    def last_words(self) -> list[str]:
        if self.shown:
            return list(self.tail)
        with open(self.log, "rb") as log:
            log.seek(max(0, self.log.stat().st_size - (16 << 10)))
            return log.read().decode(errors="replace").splitlines()[-TAIL:]

    def state(self) -> dict:
        """What other parents may know."""
        about = {"rank": self.rank, "host": self.host, "pid": self.process.pid, "log": str(self.log), "time": time.time()}
        return about | {"phase": self.news["phase"], "step": self.news["step"]}

    def publish(self, **more: str | float) -> None:
        """Into a file beside the log, at once; a disk that is full or gone must not end the run."""
        self.told = time.monotonic()
        file = self.logs / f"{self.name}.json"
        with contextlib.suppress(OSError):
            part = file.with_suffix(".part")
            part.write_text(json.dumps(self.state() | more) + "\n")
            part.replace(file)

    def send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    def kill(self) -> None:
        """It and all that it started."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)


def supervise(command: Sequence[str], places: Sequence[Place], logs: Path, goes_on: Callable[[], str]) -> int:
    """Runs one worker for each place and returns the exit code: 0 if all did what was asked, 75 if they were told to end and
    saved, that of the worker that ended otherwise, 1 if it was a signal.

    Args:
      command: of every worker; each finds its place in its environment.
      logs: a folder that it may fill. Shared by all machines of the group if it can be.
      goes_on: what to add to the line about a death: how the run goes on.

    Raises:
      KeyboardInterrupt: Ctrl-C; the workers have ended.
      OSError: the folder cannot be made.
    """
    logs.mkdir(parents=True, exist_ok=True)
    began = time.time()
    asked: list[int] = []
    taken = [s for s in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT) if signal.getsignal(s) is not signal.SIG_IGN]
    before = {s: signal.signal(s, lambda number, _: asked.append(number)) for s in taken}
    workers: list[Worker] = []
    try:
        for place in places:
            workers.append(Worker(command, place, logs))
        elsewhere = any(place.count != len(places) for place in places)
        return _watch(workers, asked, _Peers(logs, began, {w.name for w in workers}) if elsewhere else None, goes_on)
    finally:
        for worker in workers:
            worker.kill()  # what is left of its session too
            worker.process.wait()
        for s, handler in before.items():
            signal.signal(s, handler)


def logs_of(run_dir: str) -> Path:
    """The logs of a run; those of one in a bucket are in its copy on this machine, and nobody elsewhere reads them."""
    return (mirror.here(run_dir) if mirror.is_remote(run_dir) else Path(run_dir)) / LOGS


class _Peers:
    """What the parents of processes elsewhere have written."""

    def __init__(self, logs: Path, began: float, ours: set[str]):
        self._logs, self._began, self._ours = logs, began, ours
        self._looked = 0.0

    def states(self) -> list[dict]:
        found = []
        for file in self._logs.glob("*.json"):
            with contextlib.suppress(OSError, ValueError):  # gone, or half of it: the next look finds more
                if file.stem not in self._ours:
                    found.append(json.loads(file.read_text()))
        return found

    def came(self) -> set[int]:
        """Ranks whose parents have been there since we began."""
        return {s["rank"] for s in self.states() if s["time"] > self._began}

    def lost(self) -> dict | None:
        """The one that died first since we began; what an earlier attempt left is older."""
        dead = [s for s in self.states() if "ended" in s and s["ended_at"] > self._began]
        return min(dead, key=lambda s: s["ended_at"], default=None)

    def look(self) -> dict | None:
        """``lost``, now and then."""
        if time.monotonic() - self._looked < TELL:
            return None
        self._looked = time.monotonic()
        return self.lost()


def _watch(workers: list[Worker], asked: list[int], peers: _Peers | None, goes_on: Callable[[], str]) -> int:
    forwarded, known = 0, None
    while any(worker.poll() is None for worker in workers):
        for number in asked[forwarded:]:
            forwarded += 1
            if number == signal.SIGINT:
                _end(workers, signal.SIGINT, INTERRUPTING)
                raise KeyboardInterrupt
            for worker in workers:
                worker.send(number)
        for worker in workers:
            if time.monotonic() - worker.told > TELL and worker.poll() is None:
                worker.publish()
        known = peers and peers.look()
        if known is not None or any(worker.failed for worker in workers):
            break
        time.sleep(BEAT)
    if known is None and not any(worker.failed for worker in workers):
        return max(worker.poll() for worker in workers)
    line, code = _judge(workers, bool(asked), peers, known)
    _end(workers, signal.SIGTERM, GRACE)
    if line:
        print(f"r1jax: error: {line}{goes_on()}", file=sys.stderr, flush=True)
    return code


def _judge(workers: list[Worker], asked: bool, peers: _Peers | None, known: dict | None) -> tuple[str, int]:
    """Somebody was lost: the line that says who, empty if that was said already, and the exit code.

    Args:
      asked: whether the group was told to end.
      known: what the parent of one that was lost elsewhere has written.
    """
    deadline = time.monotonic() + SETTLE
    failed = [w for w in workers if w.failed]
    if known is None and all(w.poll() > 0 for w in failed):  # of a mistake that all find out, or of another's death
        while time.monotonic() < deadline and any(w.poll() is None for w in workers):
            time.sleep(BEAT)
        failed = [w for w in workers if w.failed]
    first = min(failed, key=_blame, default=None)
    while peers is not None and known is None and _blame(first)[0] and time.monotonic() < deadline:
        known = peers.lost()
        time.sleep(BEAT)
    if known is not None:
        return _line(known, known["ended"]), 1
    code = first.poll()
    if asked and code == -signal.SIGTERM:
        return f"rank {first.rank} was told to end before it could save", 128 + signal.SIGTERM
    words = [word for word in first.last_words() if word.startswith("r1jax: ") and not word.startswith(WARNING)]
    said = [word.removeprefix("r1jax: ").strip() for word in words]
    if code > 0 and said:  # a mistake of the user's, or a barrier where others did not come: in one line already
        first.publish(ended=said[-1], ended_at=first.died)
        shown = any(w.shown and w.poll() == code for w in failed)
        return "" if shown else f"rank {first.rank} on {first.host}: {said[-1]}", code
    if peers is not None and (named := _named(first)) is not None:
        state = next((s for s in peers.states() if s["rank"] == named), {"rank": named})
        return _line(state, f"rank {first.rank} heard of it no more and ended too"), 1
    how, count = _how(code), first.place.count
    if peers is not None and count and first.news["phase"] == JOIN and code == -signal.SIGABRT:  # so jax stops waiting
        silent = sorted(set(range(count)) - {w.rank for w in workers} - peers.came())
        how = f"not all {count} processes came in time, and of rank {', '.join(map(str, silent))} nothing was heard"
    first.publish(ended=how, ended_at=first.died)
    return _line(first.state(), how), max(code, 1)


def _blame(worker: Worker) -> tuple[bool, float]:
    """Sorts who died first before who died of it: a worker that lost a peer raises an error or aborts."""
    return worker.poll() in (1, -signal.SIGABRT, 128 + signal.SIGABRT), worker.died


def _named(worker: Worker | None) -> int | None:
    """The peer that jax named in what a worker said last."""
    if worker is None:
        return None
    words = "\n".join(worker.last_words())
    if (found := _PEER.search(words)) is not None:
        return int(found[1])
    return 0 if worker.rank != 0 and _FIRST.search(words) else None


def _how(code: int) -> str:
    return f"exit code {code}" if code > 0 else f"signal {-code} ({signal.Signals(-code).name})"


def _line(state: dict, how: str) -> str:
    where = f" on {state['host']} in phase {state['phase']} after step {state['step']}" if "host" in state else ""
    log = f"; log {state['log']}" if "log" in state else ""
    return f"rank {state['rank']}{where} was lost: {how}{log}; all others were ended"


def _end(workers: list[Worker], number: int, seconds: float) -> None:
    for worker in workers:
        if worker.poll() is None:
            worker.send(number)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(worker.poll() is None for worker in workers):
        time.sleep(BEAT)
    for worker in workers:
        worker.kill()
