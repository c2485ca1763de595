"""Who trains in a run directory on ``gs://``: an object in it, which one process holds and others find.

The kernel's lock (``rundir``) tells processes of one machine apart; machines have the bucket alone in common. A holder renews
its lease every minute and before each upload. That of a machine that vanished grows old, and is then taken. Each write names
the generation of the object that it replaces, and of two writers the bucket refuses one.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from r1jax import config, hub, mirror

RENEWED, LIMIT = 60.0, 300.0
"""Seconds: between two renewals, and after which a lease that was not renewed may be taken. Clocks may differ by less."""
MARK = ".lease"
"""File of a copy of a run that holds the last token of this machine: what a process that was killed here has left is taken at
once."""


@dataclass(frozen=True)
class Holder:
    """What the object says."""

    host: str
    pid: int
    since: str
    renewed: float
    """Seconds since 1970."""
    token: str

    @property
    def age(self) -> float:
        return time.time() - self.renewed


class Lease:
    """Held from the beginning to ``release``.

    Args:
      path: this machine's copy of the run directory, see ``mirror.here``.

    Raises:
      config.ConfigError: another process holds it.
      ValueError: the bucket cannot be read or written.
    """

    def __init__(self, path: Path):
        self._place, self._mark = str(mirror.there(path)), path / MARK
        self._object = f"{self._place}/{mirror.LEASE}"
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        self._about = {"host": socket.gethostname(), "pid": os.getpid(), "since": now, "token": secrets.token_hex(8)}
        self._generation, self._lost = 0, ""
        self._alone, self._over = threading.Lock(), threading.Event()
        self._take()
        self._mark.write_text(self._about["token"])
        self._renewing = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._renewing.start()

    def renew(self) -> None:
        """Says that it is still held.

        Raises:
          config.ConfigError: it is no longer; nothing may be written to the run directory.
          ValueError: the bucket cannot be written.
        """
        with self._alone, hub.bucket_errors(self._place):
            if not self._lost and not self._write():
                holder, _ = _read(self._object)
                self._lost = "it was removed" if holder is None else f"{holder.host} (pid {holder.pid}) took it {_ago(holder)}"
        if self._lost:
            raise config.ConfigError(
                f"{self._place}: this process no longer holds its lease ({self._lost}), so it stops before it writes there; "
                "what was saved until now is whole"
            )

    def release(self) -> None:
        """Lets others train there."""
        self._over.set()
        self._renewing.join()
        with self._alone, contextlib.suppress(ValueError):  # what stays grows old
            with hub.bucket_errors(self._place):
                hub.delete_object(self._object, self._generation)
            self._mark.unlink(missing_ok=True)

    def _take(self) -> None:
        while True:
            with hub.bucket_errors(self._place):
                holder, self._generation = _read(self._object)
                if (holder is None or holder.age > LIMIT or self._is_left_behind(holder)) and self._write():
                    return
            if holder is None or self._is_left_behind(holder) or holder.age > LIMIT:
                continue  # somebody was faster: who?
            who = f"{holder.host} (pid {holder.pid}) trains in {self._place} since {holder.since}, last heard of {_ago(holder)}"
            if holder.age < 2 * RENEWED:
                raise config.ConfigError(
                    f"{who}; stop it, or name another directory. If that machine is gone, its lease may be taken "
                    f"{LIMIT / 60:.0f} minutes after it was last heard of, or at once if you remove {self._object}"
                )
            print(f"{who}: waiting {LIMIT - holder.age:.0f} s whether it still lives", flush=True)
            time.sleep(max(1.0, LIMIT - holder.age))

    def _is_left_behind(self, holder: Holder) -> bool:
        """By a process of this machine that is no more."""
        if not self._mark.exists() or self._mark.read_text() != holder.token:
            return False
        return holder.pid == os.getpid() or not _lives(holder.pid)

    def _write(self) -> bool:
        """Replaces the object of ``_generation``; False if that is no more."""
        body = json.dumps({**self._about, "renewed": time.time()}).encode()
        try:
            self._generation = hub.write_object(self._object, body, self._generation)
        except FileExistsError:
            # Of a write whose answer was lost the second try is refused.
            holder, generation = _read(self._object)
            if holder is None or holder.token != self._about["token"]:
                return False
            self._generation = generation
        return True

    def _keep(self) -> None:
        while not self._over.wait(RENEWED):
            try:
                self.renew()
            except config.ConfigError:
                return  # whoever uploads next is told
            except ValueError:
                continue  # the bucket is away: the next time


def is_held(path: Path) -> bool:
    """Whether a process on some machine trains in the run on ``gs://`` that ``path`` is a copy of; False of other directories.

    Raises:
      config.ConfigError, ValueError: as ``Lease``.
    """
    if not mirror.is_remote(place := mirror.there(path)):
        return False
    with hub.bucket_errors(str(place)):
        holder, _ = _read(f"{place}/{mirror.LEASE}")
    return holder is not None and holder.age <= LIMIT


@contextlib.contextmanager
def held(name: str | None, process: int = 0) -> Iterator[Lease | None]:
    """The lease of a run on ``gs://`` while the block runs; None of another run, and in processes after the first.

    Raises:
      config.ConfigError, ValueError: as ``Lease``.
    """
    if name is None or not mirror.is_remote(name) or process:
        yield None
        return
    mirror.check()
    path = mirror.here(name)
    path.mkdir(parents=True, exist_ok=True)
    lease = Lease(path)
    try:
        yield lease
    finally:
        lease.release()


def _read(name: str) -> tuple[Holder | None, int]:
    """Who holds the lease that is this object, and the object's generation; None and 0 if there is none."""
    found = hub.read_object(name)
    if found is None:
        return None, 0
    try:
        return Holder(**json.loads(found[0])), found[1]
    except (ValueError, TypeError) as error:
        raise config.ConfigError(f"{name} is no lease ({error}); remove it") from error


def _ago(holder: Holder) -> str:
    return f"{max(0.0, holder.age):.0f} s ago"


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
