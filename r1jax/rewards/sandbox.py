"""Runs a program that may want to do harm: in bubblewrap, one box for one run.

A box has process, network, IPC, host name and mount namespaces of its own. Of the host's files it shows /usr and the
interpreter's directory, read-only; it can write to /tmp and /dev/shm, of a limited size. Its memory is bounded by
``Limits.processes`` x ``Limits.memory_mib`` plus those two. Every process in it ends with the program, with the time limit and
with whoever called.

Called by root, a box has no user namespace, and the program runs under a user id of its own: the kernel exempts root from
RLIMIT_NPROC, also root of a namespace. Otherwise a box is a user namespace in which no other can be made, and the limits are
set inside, where they count its processes alone. Both get the filter of ``code_seccomp``.

Not bounded: the number of empty files in /tmp (the kernel's own bound is one for two pages of memory, which is an eighth of
the memory), use of the processors within the time limit, and what is learned by measuring time.

With ``R1JAX_UNSAFE_CODE=1`` in the environment there is no box: a process of the caller, with limits on time and memory only.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from r1jax.rewards import code_seccomp

START_SECONDS = 20.0
"""A box may take so long until its program starts."""
UNSAFE = "R1JAX_UNSAFE_CODE"
PYTHON = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)  # a virtual environment's is but a link
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", "MALLOC_ARENA_MAX": "2"}
STACK = 64 << 20
"""Bytes: programs that recurse need more than the usual 8 MiB."""

LAUNCHER = """
import os, resource, sys
limits, *numbers = sys.argv[1].split(",")
for limit in limits.split():
    name, _, values = limit.partition("=")
    try:
        most = resource.getrlimit(getattr(resource, name))[1]
        soft, hard = (int(v) if most == resource.RLIM_INFINITY else min(int(v), most) for v in values.split(":"))
        resource.setrlimit(getattr(resource, name), (soft, hard))
    except (AttributeError, ValueError, OSError):
        if sys.platform == "linux":  # others refuse some
            raise
ready, uid = map(int, numbers)
if uid:
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
os.closerange(3, ready)
os.closerange(ready + 1, 1024)
os.set_inheritable(ready, False)
os.write(ready, b"1")
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Runs inside, before the program. It does not start the program if the caller is gone: then the write fails."""


class SandboxError(Exception):
    """A box did not start: the program was not run."""


@dataclass(frozen=True)
class Limits:
    """What one run may use."""

    seconds: float = 5.0
    """Processor time of each process, rounded up to whole seconds. The run as a whole ends after ``wall_seconds``."""
    memory_mib: int = 1024
    """Address space of each process."""
    processes: int = 4
    """Processes and threads at a time."""
    files_mib: int = 64
    """Size of /tmp, and of each file."""
    output: int = 4 << 20
    """Bytes of stdout and of stderr together."""

    @property
    def wall_seconds(self) -> float:
        return 2 * self.seconds + 1


@dataclass(frozen=True)
class Outcome:
    """How a run went. But for ``ended``, it is what the program chose to say."""

    stdout: bytes
    stderr: bytes
    ended: Literal["exit", "time", "output"]
    """By itself; by the limit on time; by that on output."""
    code: int
    """Exit status; 128 + n after signal n, of which 152 is the limit on processor time."""


def mode() -> Literal["root", "user", "unsafe"]:
    """How a box would be made for this process."""
    if os.environ.get(UNSAFE) == "1":
        return "unsafe"
    return "root" if os.geteuid() == 0 else "user"


def run(argv: Sequence[str], files: Mapping[str, bytes], stdin: bytes = b"", limits: Limits = Limits()) -> Outcome:
    """Runs ``argv`` in a box that has ``files``, by name, in its working directory.

    Raises:
      SandboxError: the box did not start.
    """
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(_memory_file(stdin))
        out, err = stack.enter_context(Pipe()), stack.enter_context(Pipe())
        box = stack.enter_context(Box(argv, files, limits, source, out.write_end, err.write_end))
        out.close_write_end()
        err.close_write_end()
        return box.collect(out.read_end, err.read_end)


class Pipe:
    """Both ends of a pipe, closed when its context is left."""

    def __init__(self):
        self.read_end, self.write_end = os.pipe()
        self._open = {self.read_end, self.write_end}

    def __enter__(self) -> Pipe:
        return self

    def __exit__(self, *_) -> None:
        for fd in self._open:
            os.close(fd)
        self._open = set()

    def close_write_end(self) -> None:
        os.close(self.write_end)
        self._open.remove(self.write_end)


class Box:
    """A program in a box, started at once, with these file descriptors. Leaving the context ends all of its processes."""

    def __init__(self, argv: Sequence[str], files: Mapping[str, bytes], limits: Limits, stdin: int, stdout: int, stderr: int):
        self._limits = limits
        self._stack = contextlib.ExitStack()
        self._ready = self._stack.enter_context(Pipe())
        try:
            with contextlib.ExitStack() as handed_over:
                self._process = self._start(argv, files, handed_over, stdin, stdout, stderr)
        except BaseException:
            self._stack.close()
            raise
        self._stack.callback(self.kill)
        self._ready.close_write_end()

    def __enter__(self) -> Box:
        return self

    def __exit__(self, *_) -> None:
        self._stack.close()

    def kill(self) -> int:
        """Ends whatever still runs; returns the program's exit status, or that of SIGKILL."""
        if self._process.returncode is None:
            os.killpg(self._process.pid, signal.SIGKILL)  # its group: bubblewrap, also while it prepares, and the box's init
            self._process.wait()
        code = self._process.returncode
        return 128 - code if code < 0 else code

    def end(self) -> Outcome:
        """How it went, for a program whose output others read and that has closed it."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        return Outcome(b"", b"", "exit", self.kill())

    def wait_started(self, err: int) -> None:
        """Waits until the program runs; ``err`` is the other end of its stderr.

        Raises:
          SandboxError: it does not come to run.
        """
        ready = self._ready.read_end
        late = not _readable({ready}, START_SECONDS)
        if late or not os.read(ready, 1):
            self.kill()
            said = os.read(err, 1 << 16).decode(errors="replace") if _readable({err}, 0) else ""
            raise SandboxError(" ".join(said.split())[-300:] or f"it did not start within {START_SECONDS:g} s")

    def collect(self, out: int, err: int) -> Outcome:
        """Reads both pipes until every process of the box has ended or a limit is reached.

        Raises:
          SandboxError: the program did not start.
        """
        self.wait_started(err)
        deadline = time.monotonic() + self._limits.wall_seconds
        data = {out: bytearray(), err: bytearray()}
        reading, ended = {out, err}, "exit"
        while reading and ended == "exit":
            readable = _readable(reading, deadline - time.monotonic())
            if not readable:
                ended = "time"
            for fd in readable:
                chunk = os.read(fd, 1 << 16)
                data[fd] += chunk
                if not chunk:
                    reading.remove(fd)
            if sum(map(len, data.values())) > self._limits.output:
                ended = "output"
        return Outcome(bytes(data[out]), bytes(data[err]), ended, self.kill())

    def _start(self, argv, files, handed_over, stdin, stdout, stderr) -> subprocess.Popen:
        kind, ready = mode(), self._ready.write_end
        uid = _private_uid() if kind == "root" else 0
        launch = [PYTHON, "-I", "-S", "-c", LAUNCHER, f"{_rlimits(self._limits, kind)},{ready},{uid}", *argv]
        place = None
        if kind == "unsafe":
            place = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="r1jax"))
            for name, content in files.items():
                Path(place, name).write_bytes(content)
                Path(place, name).chmod(0o755)
            fds = []
        else:
            fds = {name: handed_over.enter_context(_memory_file(content)) for name, content in files.items()}
            seccomp = handed_over.enter_context(_memory_file(code_seccomp.program()))
            launch = [*_bubblewrap(kind, self._limits, fds), "--seccomp", str(seccomp), "--", *launch]
            fds = [*fds.values(), seccomp]
        return subprocess.Popen(
            launch,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=(ready, *fds),
            process_group=0,
            cwd=place,
            env=ENVIRONMENT if kind == "unsafe" else None,
        )


def _bubblewrap(kind: str, limits: Limits, files: Mapping[str, int]) -> list[str]:
    command = [shutil.which("bwrap") or "bwrap", "--die-with-parent", "--new-session", "--clearenv"]
    command += ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try", "--hostname", "box"]
    if kind == "root":  # which would keep all others; the launcher loses these two when it changes its user id
        command += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        command += ["--unshare-user", "--disable-userns"]
    for name, value in ENVIRONMENT.items():
        command += ["--setenv", name, value]
    command += ["--ro-bind", "/usr", "/usr"]
    command += [*_directories(Path("/etc")), "--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    for path in ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"):
        command += ["--symlink", os.readlink(path), path] if os.path.islink(path) else ["--ro-bind-try", path, path]
    command += ["--proc", "/proc", "--dev", "/dev"]
    command += ["--perms", "1777", "--size", str(limits.files_mib << 20), "--tmpfs", "/tmp"]
    command += ["--perms", "1777", "--size", str(limits.files_mib << 20), "--tmpfs", "/dev/shm"]
    if not PYTHON.startswith("/usr/"):
        command += [*_directories(Path(sys.base_prefix).parent), "--ro-bind", sys.base_prefix, sys.base_prefix]
    for name, fd in files.items():
        command += ["--perms", "0555", "--ro-bind-data", str(fd), f"/tmp/{name}"]
    # Last: both are file systems in memory without a limit of their own.
    return [*command, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp"]


def _directories(path: Path) -> list[str]:
    """Makes ``path`` for every user; what bubblewrap makes by itself is for root alone."""
    return [word for place in reversed([path, *path.parents][:-1]) for word in ("--perms", "0755", "--dir", str(place))]


def _rlimits(limits: Limits, kind: str) -> str:
    values = {
        "RLIMIT_AS": limits.memory_mib << 20,
        "RLIMIT_FSIZE": limits.files_mib << 20,
        "RLIMIT_STACK": STACK,
        "RLIMIT_NOFILE": 64,
        "RLIMIT_CORE": 0,
        "RLIMIT_MEMLOCK": 0,
    }
    if kind != "unsafe":  # there it counts all of the user's processes; in a user namespace, bubblewrap's init too
        values["RLIMIT_NPROC"] = limits.processes + (kind == "user")
    seconds = math.ceil(limits.seconds)
    cpu = f"RLIMIT_CPU={seconds}:{seconds + 1}"  # first SIGXCPU, which says why; then SIGKILL
    return " ".join([cpu, *(f"{name}={value}:{value}" for name, value in values.items())])


def _private_uid() -> int:
    """A user id that nothing else has: by chance, from the upper half of those that this process's user namespace knows."""
    maps = [tuple(map(int, line.split())) for line in Path("/proc/self/uid_map").read_text().splitlines()]
    first, _, count = max(maps, key=lambda ids: ids[2])
    return random.SystemRandom().randrange(first + count // 2, first + count - 1)


@contextlib.contextmanager
def _memory_file(data: bytes) -> Iterator[int]:
    """A file in memory that nobody can change, readable by every user."""
    if not hasattr(os, "memfd_create"):
        with tempfile.TemporaryFile() as file:
            file.write(data)
            file.seek(0)
            yield file.fileno()
        return
    fd = os.memfd_create("r1jax", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(data)
        os.lseek(fd, 0, os.SEEK_SET)
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        yield fd
    finally:
        os.close(fd)


def _readable(fds: set[int], seconds: float) -> list[int]:
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return [fd for fd, _ in poll.poll(max(0.0, seconds) * 1000)]
