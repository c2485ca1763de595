"""Programs that want to do harm, in the box: as root and as a user. Each is safe to run where the box leaks: it tries once,
says how that went, and stops; what could flood the machine is bounded in itself and comes after a harmless count."""

import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from r1jax.rewards import code_seccomp, sandbox
from r1jax.rewards.code_blocker import blocker, remedy
from r1jax.rewards.sandbox import Limits, Outcome

ROOT = Path(__file__).parent.parent
OTHER_USER = 65533

PRELUDE = """
import ctypes, errno, os, resource, signal, socket, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def attempt(f, *args):
    try:
        f(*args)
    except OSError as e:
        return errno.errorcode.get(e.errno, e.errno)
    return "done"
def call(name, *args):
    ctypes.set_errno(0)
    return "done" if getattr(libc, name)(*args) >= 0 else errno.errorcode[ctypes.get_errno()]
def write(path, size=1):
    with open(path, "wb") as f: f.write(b"x" * size)
given = sys.stdin.readline().strip()
"""

AS_USER = """
import dataclasses, json, sys
sys.path.insert(0, sys.argv[1])
from r1jax.rewards import sandbox
for line in sys.stdin:
    source, stdin, limits = json.loads(line)
    argv, files = [sandbox.PYTHON, "-I", "-S", "answer.py"], {"answer.py": source.encode()}
    try:
        o = sandbox.run(argv, files, stdin.encode(), sandbox.Limits(**limits))
        print(json.dumps({**dataclasses.asdict(o), "stdout": o.stdout.hex(), "stderr": o.stderr.hex()}), flush=True)
    except sandbox.SandboxError as e:
        print(json.dumps(str(e)), flush=True)
"""


class OtherUser:
    """Runs boxes as a user of a root's machine."""

    def __init__(self):
        for python in (sandbox.PYTHON, "/usr/bin/python3"):
            test = f"import os, sys; assert sys.version_info >= (3, 11); os.stat({str(ROOT / 'r1jax' / 'rewards')!r})"
            try:
                subprocess.run(
                    [python, "-I", "-c", test],
                    user=OTHER_USER,
                    group=OTHER_USER,
                    extra_groups=[],
                    check=True,
                    capture_output=True,
                )
            except (OSError, subprocess.CalledProcessError):
                continue
            command = [python, "-I", "-B", "-c", AS_USER, str(ROOT)]
            self.process = subprocess.Popen(
                command, stdin=-1, stdout=-1, text=True, user=OTHER_USER, group=OTHER_USER, extra_groups=[], cwd="/"
            )
            return
        pytest.skip(f"user mode: no Python 3.11 that user {OTHER_USER} may run, or {ROOT} is not readable to that user")

    def __call__(self, source, stdin="", **limits):
        self.process.stdin.write(json.dumps([source, stdin, limits]) + "\n")
        self.process.stdin.flush()
        reply = json.loads(self.process.stdout.readline())
        if isinstance(reply, str):
            raise sandbox.SandboxError(reply)
        return Outcome(**{**reply, "stdout": bytes.fromhex(reply["stdout"]), "stderr": bytes.fromhex(reply["stderr"])})


def here(source, stdin="", **limits):
    argv = [sandbox.PYTHON, "-I", "-S", "answer.py"]
    return sandbox.run(argv, {"answer.py": source.encode()}, stdin.encode(), Limits(**limits))


@pytest.fixture(scope="module", params=["root", "user"])
def box(request):
    """``box(source, stdin, **limits)`` -> Outcome, in that mode."""
    if sandbox.mode() == "unsafe":
        pytest.skip(f"{sandbox.UNSAFE} is set")
    if not shutil.which("bwrap"):
        pytest.skip(f"{request.param} mode: {blocker()}")
    if sandbox.mode() == request.param:
        if why := blocker():
            pytest.skip(f"{request.param} mode: {why}")
        yield here
        return
    if request.param == "root":
        pytest.skip("root mode: the tests do not run as root")
    other = OtherUser()
    try:
        if other("print('contained')").stdout != b"contained\n":
            pytest.skip(f"user mode: {other('print()')}")
        yield other
    except sandbox.SandboxError as e:
        pytest.skip(f"user mode: {e}")
    finally:
        other.process.kill()
        other.process.wait()


def run(box, source, stdin="", **limits):
    """The program's words; it must come to its end."""
    outcome = box(PRELUDE + source, stdin + "\n", **limits)
    assert (outcome.ended, outcome.code, outcome.stderr) == ("exit", 0, b""), outcome
    return outcome.stdout.decode().split()


COUNT_PROCESSES = """
n = 1
for _ in range(40):
    try:
        if os.fork() == 0:
            time.sleep(20); os._exit(0)
    except OSError: break
    n += 1
print(n, flush=True)
os._exit(0)
"""
COUNT_THREADS = """
n = 1
for _ in range(40):
    try: threading.Thread(target=time.sleep, args=(20,), daemon=True).start()
    except RuntimeError: break
    n += 1
print(n, flush=True)
os._exit(0)
"""
BOMB = """
for _ in range(7):  # 128 processes if nothing stops it
    try: os.fork()
    except OSError: pass
os.write(1, b"%d\\n" % os.getpid())
time.sleep(0.5)
"""


def test_processes_are_counted_then_a_fork_bomb_goes_off(box):
    for count in (COUNT_PROCESSES, COUNT_THREADS):
        assert run(box, count, processes=4) == ["4"]
        assert run(box, count, processes=7) == ["7"]
    outcome = box(PRELUDE + BOMB, processes=4)
    assert 2 <= len(set(outcome.stdout.split())) <= 4


def test_boxes_beside_each_other_count_alone():
    if why := blocker():
        pytest.skip(why)
    with ThreadPoolExecutor(3) as threads:
        counts = threads.map(lambda _: run(here, COUNT_PROCESSES, processes=4), range(3))
        assert list(counts) == [["4"]] * 3


REFUSED = {  # what it tries, and what the kernel says; EPERM where the filter, not the lack of a capability, must speak
    "a user namespace": ("print(call('unshare', 0x10000000))", "EPERM"),
    "a mount namespace": ("print(call('unshare', 0x00020000))", "EPERM"),
    "clone into a user namespace": ("print(call('syscall', {clone}, 0x10000000 | 17, 0, 0, 0, 0))", "EPERM"),
    "clone3": ("print(call('syscall', 435, 0, 0))", "ENOSYS"),
    "joining a namespace": ("print(call('setns', os.open('/proc/self/ns/net', os.O_RDONLY), 0))", "EPERM"),
    "mount": ("print(call('mount', b'tmpfs', b'/tmp', b'tmpfs', 0, None))", "EPERM"),
    "umount": ("print(call('umount2', b'/usr', 2))", "EPERM"),
    "new mount calls": ("print(call('syscall', 430, b'tmpfs', 0))", "EPERM"),
    "chroot": ("print(attempt(os.chroot, '/tmp'))", "EPERM"),
    "pivot_root": ("print(call('syscall', {pivot_root}, b'/tmp', b'/tmp'))", "EPERM"),
    "a device": ("print(attempt(os.mknod, '/tmp/disk', 0o60666, os.makedev(8, 0)))", "EPERM"),
    "ptrace of itself by init": ("print(call('ptrace', 0, 0, 0, 0))", "EPERM"),
    "ptrace of init": ("print(call('ptrace', 16, 1, 0, 0))", "EPERM"),
    "memory of init": ("print(call('process_vm_readv', 1, 0, 0, 0, 0, 0))", "EPERM"),
    "System V memory, which no limit counts": ("print(call('shmget', 0, 1 << 20, 0o1600))", "EPERM"),
    "System V messages": ("print(call('msgget', 0, 0o1600))", "EPERM"),
    "memfd, which no limit counts": ("print(attempt(os.memfd_create, 'x'))", "EPERM"),
    "message queues": ("print(attempt(lambda: os.stat('/dev/mqueue')))", "ENOENT"),
    "keys": ("print(call('syscall', {add_key}, b'user', b'x', b'y', 1, -3))", "EPERM"),
    "io_uring": ("print(call('syscall', 425, 1, bytes(120)))", "EPERM"),
    "bpf": ("print(call('syscall', {bpf}, 0, bytes(72), 72))", "EPERM"),
    "perf": ("print(call('syscall', {perf_event_open}, bytes(112), 0, -1, -1, 0))", "EPERM"),
    "the kernel's log": ("print(call('klogctl', 3, bytes(100), 100))", "EPERM"),
    "root's user id": ("print(attempt(os.setuid, 0) in ('EPERM', 'EINVAL') and os.getuid() > 0)", "True"),
    "root's group id": ("print(attempt(os.setgid, 0) in ('EPERM', 'EINVAL') and os.getgid() > 0)", "True"),
    "groups": ("print(attempt(os.setgroups, [0]), os.getgroups() in ([], [os.getgid()]))", "EPERM True"),
    "priority": ("print(attempt(os.nice, -5))", "EPERM"),
    "the clock": ("print(attempt(time.clock_settime, 0, 0))", "EPERM"),
    "another host name": ("print(attempt(socket.sethostname, 'x'))", "EPERM"),
    "a kernel setting": ("print(attempt(write, '/proc/sys/kernel/hostname') in ('EACCES', 'EROFS', 'EPERM'))", "True"),
    "sysrq": ("print(attempt(write, '/proc/sysrq-trigger') in ('EACCES', 'EROFS', 'EPERM', 'ENOENT'))", "True"),
    "a terminal": ("print(attempt(lambda: open('/dev/tty')) in ('ENXIO', 'ENOENT', 'EACCES'))", "True"),
    "internet sockets": ("print(attempt(socket.socket), attempt(socket.socket, socket.AF_INET6))", "EAFNOSUPPORT EAFNOSUPPORT"),
    "netlink, packet and vsock": ("print(*{attempt(socket.socket, f, 3) for f in (16, 17, 40)})", "EAFNOSUPPORT"),
    "its own file": (
        "print(attempt(os.unlink, '/tmp/answer.py') in ('EBUSY', 'EPERM', 'EACCES'), attempt(write, '/tmp/answer.py'))",
        "True",
    ),
    "raising limits": (
        """
for name in ("AS", "NPROC", "FSIZE", "CPU", "STACK", "NOFILE", "CORE"):
    which = getattr(resource, "RLIMIT_" + name)
    try: resource.setrlimit(which, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (ValueError, OSError): continue
    print("raised", name)
print("refused")""",
        "refused",
    ),
    "capabilities and set-user-id programs": (
        """
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(*{int(status[k], 16) for k in ("CapEff", "CapPrm", "CapAmb")}, status["NoNewPrivs"], status["Seccomp"])""",
        "0 1 2",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_it_may_not_have(box, what):
    source, said = REFUSED[what]
    if platform.machine() not in code_seccomp.AUDIT_ARCH:
        pytest.skip("other system calls")
    column = list(code_seccomp.AUDIT_ARCH).index(platform.machine())
    numbers = {
        "clone": (56, 220),
        "pivot_root": (155, 41),
        "add_key": (248, 217),
        "bpf": (321, 280),
        "perf_event_open": (298, 241),
    }
    for name, of_machine in numbers.items():
        source = source.replace("{" + name + "}", str(of_machine[column]))
    assert run(box, source)[: len(said.split())] == said.split()


def test_memory(box):
    hog = """
blocks = []
try:
    while len(blocks) < 64: blocks.append(bytearray(8 << 20))
except MemoryError: pass
print(len(blocks))
"""
    assert 2 <= int(run(box, hog, memory_mib=128)[0]) < 16
    assert b"MemoryError" in box("x = bytearray(3 << 30)").stderr


@pytest.mark.parametrize("fd", [1, 2])
def test_output_flood(box, fd):
    outcome = box(f"import os\nfor _ in range(1 << 8): os.write({fd}, b'x' * 65536)", output=1 << 20)
    assert outcome.ended == "output" and len(outcome.stdout + outcome.stderr) < (1 << 20) + (1 << 18)


def test_files_have_an_end(box):
    fill = """
for place in ("/tmp", "/dev/shm"):
    n = 0
    while n < 64 and attempt(write, f"{place}/{n}", 1 << 20) == "done": n += 1
    print(n)
f = open("/dev/shm/0", "wb")
print(attempt(f.truncate, 1 << 40))
for place in ("", "/dev", "/usr", "/usr/lib", "/etc", "/proc"): print(attempt(write, place + "/x"))
"""
    counts = run(box, fill, files_mib=4)
    assert all(2 <= int(n) <= 4 for n in counts[:2]) and counts[2] == "EFBIG"
    assert len(counts) == 9 and set(counts[3:]) <= {"EROFS", "EACCES", "EPERM", "ENOENT"}


def test_nothing_is_left_to_the_next_box(box):
    leave = "for p in ('/tmp/left', '/dev/shm/left'): print(os.path.exists(p), attempt(write, p))"
    assert run(box, leave) == run(box, leave) == ["False", "done"] * 2


def test_host_files_are_not_there(box, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("untouched")
    tmp_path.chmod(0o777), secret.chmod(0o666)
    hidden = ["/etc/shadow", "/etc/passwd", "/home", "/var", "/sys", "/run", str(ROOT), str(Path.home() / ".ssh")]
    source = f"""
for path in (given, *{hidden}): print(attempt(os.stat, path))
print(attempt(write, given), attempt(write, given + "2"))
os.symlink(given, "/tmp/link")
print(attempt(write, "/tmp/link"), attempt(os.stat, "/proc/1/root" + given), attempt(os.stat, "/tmp/" + "../" * 9 + given))
print(attempt(os.link, "/usr/bin/env", "/tmp/env"), os.listdir("/etc") in ([], ["ld.so.cache"]), *os.listdir("/"))
"""
    said = run(box, source, str(secret))
    assert said[: 1 + len(hidden)] == ["ENOENT"] * (1 + len(hidden))
    tried, (link, etc, *top) = said[1 + len(hidden) :][:5], said[1 + len(hidden) :][5:]
    assert "done" not in tried and (link, etc) == ("EXDEV", "True"), said
    known = {"bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr", "etc", "tmp", "dev", "proc"}
    assert set(top) <= known | {Path(sys.base_prefix).parts[1]}
    assert secret.read_text() == "untouched" and os.listdir(tmp_path) == ["secret"]


def test_host_services_are_not_reached(box):
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as abstract:
        name = f"\0r1jax test {os.getpid()}"
        abstract.bind(name)
        abstract.listen()
        source = f"""
s = socket.socket(socket.AF_UNIX)
print(attempt(s.connect, {name!r}), attempt(socket.create_connection, ("127.0.0.1", {tcp.getsockname()[1]}), 0.2))
print(sorted(n for _, n in socket.if_nameindex()) if attempt(socket.if_nameindex) == "done" else "none")
a, b = socket.socketpair()
a.send(b"own")
print(b.recv(3).decode())
"""
        said = run(box, source)
        assert said[:2] == ["ECONNREFUSED", "EAFNOSUPPORT"] and said[-1] == "own"


def test_signals_stay_inside(box):
    with subprocess.Popen(["sleep", "30"], user=OTHER_USER if os.geteuid() == 0 else None) as outside:
        source = f"""
print(os.getpid() < 10)
if os.getpid() < 10:  # a process namespace: nothing else can be hit
    print(attempt(os.kill, {outside.pid}, 9), attempt(os.kill, {os.getpid()}, 9))
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print(attempt(os.kill, -1, signal.SIGTERM) in ("done", "EPERM", "ESRCH"))
    print(attempt(os.kill, os.getppid(), 9) in ("done", "EPERM"))
    print("still", "here")
"""
        assert run(box, source) == ["True", "ESRCH", "ESRCH", "True", "True", "still", "here"]
        assert outside.poll() is None
        outside.kill()


def test_processes_of_the_host_are_not_seen(box):
    source = f"""
pids = [int(p) for p in os.listdir("/proc") if p.isdigit()]
print(max(pids) < 10, os.path.exists("/proc/{os.getpid()}/cmdline") and {os.getpid()} > 10, os.getppid())
print(open("/proc/sys/kernel/hostname").read().strip())
print(len(os.listdir("/proc/self/fd")))
"""
    said = run(box, source)
    assert said[:2] == ["True", "False"] and said[3:] == ["box", "4"], said  # 0, 1, 2, and the one that lists


def test_the_environment_stays_outside(box, monkeypatch):
    monkeypatch.setenv("R1JAX_SECRET", "x")
    assert run(box, "print(*sorted(os.environ))")[0] == "HOME"
    names = run(
        box, "print(*sorted(set(os.environ) - {'PWD', 'LC_CTYPE'}))\nprint(open('/proc/self/environ').read().count('SECRET'))"
    )
    assert names == [*sorted(sandbox.ENVIRONMENT), "0"]


def test_devices_are_harmless(box):
    said = run(box, "print(*sorted(os.listdir('/dev')))")
    own = {"core", "fd", "stdin", "stdout", "stderr", "shm", "pts", "ptmx", "tty"}
    assert set(said) <= own | {"console", "full", "null", "random", "urandom", "zero"}


def processes_with(mark: str, start: str = "") -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().decode(errors="replace")
            if mark in command and command.startswith(start):
                found.append(path.parent.name)
        except OSError:  # it ended meanwhile
            continue
    return found


def wait_until_gone(mark: str) -> list[str]:
    end = time.monotonic() + 5
    while (found := processes_with(mark)) and time.monotonic() < end:
        time.sleep(0.02)
    return found


@pytest.mark.parametrize("closes", [True, False])
def test_daemons_end_with_the_program(box, closes):
    mark = f"r1jax-daemon-{os.getpid()}-{closes}"
    source = f"""
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        {"os.closerange(0, 64)" if closes else "pass"}
        os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", "import time; time.sleep(30)", {mark!r}])
    os._exit(0)
os.wait()
time.sleep(0.3)
print("started")
"""
    began = time.monotonic()
    outcome = box(PRELUDE + source)
    assert outcome.stdout == b"started\n" and time.monotonic() - began < 10
    assert wait_until_gone(mark) == []


TIMELESS = {
    "loop": "while True: pass",
    "deaf loop": "import signal\nfor s in set(signal.Signals) - {9, 19}: signal.signal(s, signal.SIG_IGN)\nwhile True: pass",
    "sleep of children without files": "import os, time\nos.fork()\nos.fork()\nos.closerange(0, 64)\ntime.sleep(60)",
    "stop": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
}


@pytest.mark.parametrize("what", TIMELESS)
def test_time_ends(box, what):
    began = time.monotonic()
    outcome = box(TIMELESS[what], seconds=0.01)  # 1 s of processor time, about as much in all
    assert outcome.ended == "time" or outcome.code in (128 + signal.SIGXCPU, 128 + signal.SIGKILL)
    assert time.monotonic() - began < 15


def test_input_and_output_pass_unchanged(box):
    assert box("import sys\nsys.stdout.buffer.write(bytes(range(256)))").stdout == bytes(range(256))
    assert box("print(len(open('/dev/stdin').read()), len(input()))", "x" * 1000).stdout == b"1000 1000\n"
    big = "x" * (24 << 20)
    assert box("print(input()[:3])", big, memory_mib=512).stdout == b"xxx\n"
    assert box("print(1)", big).stdout == b"1\n"  # it does not read
    assert box("import sys\nsys.exit(3)").code == 3
    assert box("import os\nos.kill(os.getpid(), 9)").code == 128 + signal.SIGKILL


def test_a_box_ends_with_its_caller():
    if why := blocker():
        pytest.skip(why)
    mark = f"r1jax-orphan-{os.getpid()}"
    command = [sandbox.PYTHON, "-I", "-S", "-c", "import time; time.sleep(30)", mark]
    caller = f"from r1jax.rewards import sandbox\nsandbox.run({command!r}, {{}}, limits=sandbox.Limits(seconds=30))"
    with subprocess.Popen([sys.executable, "-c", caller], cwd=ROOT) as process:
        end = time.monotonic() + 20
        while not (running := processes_with(mark, "\0".join(command))) and time.monotonic() < end:
            time.sleep(0.02)
        process.kill()
    assert running and wait_until_gone(mark) == []


def test_a_program_that_cannot_start_is_no_verdict(monkeypatch):
    if why := blocker():
        pytest.skip(why)
    monkeypatch.setattr(sandbox, "PYTHON", "/nowhere/python")
    with pytest.raises(sandbox.SandboxError, match="/nowhere/python"):
        here("print(1)")


def test_without_a_box_only_by_an_explicit_word(monkeypatch, tmp_path):
    monkeypatch.setenv(sandbox.UNSAFE, "1")
    monkeypatch.setenv("PATH", str(tmp_path))  # where there is no bwrap
    assert here("import os\nprint(input(), os.getcwd() != '/tmp')", "in").stdout == b"in True\n"
    assert here("import time\ntime.sleep(60)", seconds=0.1).ended == "time"
    assert b"MemoryError" in here("x = bytearray(3 << 30)").stderr
    monkeypatch.delenv(sandbox.UNSAFE)
    blocker.cache_clear()
    try:
        assert blocker().startswith("bubblewrap is not installed; apt install bubblewrap") and sandbox.UNSAFE in blocker()
    finally:
        blocker.cache_clear()


def test_the_remedy_fits_the_blocker(tmp_path):
    def setting(name, value):
        path = tmp_path / "sys" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")

    denied = "bwrap: setting up uid map: Permission denied"
    assert "--security-opt seccomp=unconfined" in remedy(denied, root=False, proc=tmp_path, container=True)
    assert "SYS_ADMIN" in remedy("bwrap: Creating new namespace failed", root=True, proc=tmp_path, container=True)
    assert "CAP_SYS_ADMIN" in remedy("bwrap: Creating new namespace failed", root=True, proc=tmp_path, container=False)
    setting("user/max_user_namespaces", 0)
    assert "user.max_user_namespaces=" in remedy(denied, root=False, proc=tmp_path, container=True)
    setting("kernel/unprivileged_userns_clone", 0)
    assert "unprivileged_userns_clone=1" in remedy(denied, root=False, proc=tmp_path, container=False)
    setting("kernel/apparmor_restrict_unprivileged_userns", 1)
    assert "apparmor_restrict_unprivileged_userns=0" in remedy(denied, root=False, proc=tmp_path, container=False)
    assert "AppArmor" not in remedy(denied, root=True, proc=tmp_path, container=False)


def test_a_machine_that_forbids_namespaces_is_told_so():
    """A root without capabilities, as in a default container."""
    if os.geteuid() != 0 or not shutil.which("setpriv") or not shutil.which("bwrap"):
        pytest.skip("needs root, setpriv and bwrap, to give up capabilities")
    source = "from r1jax.rewards import load\ntry: load('code')\nexcept ValueError as e: print(e)"
    command = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-all", sys.executable, "-c", source]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert said.stdout.startswith("reward 'code': bubblewrap does not start: bwrap:"), said
    assert "CAP_SYS_ADMIN" in said.stdout or "--cap-add SYS_ADMIN" in said.stdout


def test_numbers_of_system_calls():
    if not shutil.which("cc"):
        pytest.skip("no C compiler to ask for the numbers")
    names = [*code_seccomp.DENIED, "clone", "socket", "clone3"]
    columns = [*code_seccomp.DENIED.values(), code_seccomp.CLONE, code_seccomp.SOCKET, code_seccomp.CLONE3]
    headers = {"x86_64": "asm/unistd_64.h", "aarch64": "asm-generic/unistd.h"}
    for column, header in enumerate(headers.values()):
        source = f"#include <{header}>\n" + "\n".join(f"number {name} __NR_{name}" for name in names)
        said = subprocess.run(["cc", "-E", "-P", "-"], input=source, capture_output=True, text=True, timeout=60)
        numbers = dict(re.findall(r"^number (\w+) (\d+)$", said.stdout, re.MULTILINE))
        if len(numbers) < 20:
            continue  # that header is not here
        for name, of_machine in zip(names, columns, strict=True):
            assert numbers.get(name, str(of_machine[column])) == str(of_machine[column]), name
