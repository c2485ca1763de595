"""Whether boxes start on this machine; if not, what forbids it and what to do."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

from r1jax.rewards import code_seccomp, sandbox

NEEDED = (0, 8)
"""bubblewrap's version, for --size and --disable-userns."""
SELF_TEST = b"import os\nif os.fork():\n    os.wait()\n    print('contained')\n"
ANYWAY = f"or, on a machine that has nothing to lose, set {sandbox.UNSAFE}=1 to run programs without a sandbox"


@functools.cache
def blocker() -> str:
    """Why programs cannot be run in a sandbox here, with the remedy; '' if they can. One line."""
    if sandbox.mode() == "unsafe":
        return ""
    if why := _missing():
        return f"{why}, {ANYWAY}"
    try:
        outcome = sandbox.run([sandbox.PYTHON, "-I", "-S", "test.py"], {"test.py": SELF_TEST})
    except sandbox.SandboxError as e:
        return f"bubblewrap does not start: {e}; {remedy(str(e), os.geteuid() == 0)}, {ANYWAY}"
    if outcome.stdout == b"contained\n":
        return ""
    said = " ".join(outcome.stderr.decode(errors="replace").split())[-200:] or f"exit code {outcome.code}"
    fix = f"use a Python that lies below /usr or whole below {sys.base_prefix}"
    return f"{sandbox.PYTHON} does not run in the sandbox: {said}; {fix}, {ANYWAY}"


def remedy(said: str, root: bool, proc: Path = Path("/proc"), container: bool | None = None) -> str:
    """What to do where bubblewrap ended with ``said``."""
    if not root and _value(proc / "sys/kernel/apparmor_restrict_unprivileged_userns") == "1":
        rule = "Ubuntu's AppArmor rule forbids user namespaces; 'sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0'"
        return f"{rule}, or give bwrap an AppArmor profile with 'userns,', or run as root"
    if not root and _value(proc / "sys/kernel/unprivileged_userns_clone") == "0":
        return "this kernel forbids user namespaces; 'sudo sysctl kernel.unprivileged_userns_clone=1', or run as root"
    if _value(proc / "sys/user/max_user_namespaces") == "0" and not root:
        return "this kernel forbids user namespaces; 'sudo sysctl user.max_user_namespaces=10000', or run as root"
    if _in_container() if container is None else container:
        options = "--cap-add SYS_ADMIN --cap-add NET_ADMIN " if root else ""
        options += "--security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined"
        return f"the container forbids namespaces or mounts; start it with '{options}' (Kubernetes: privileged: true)"
    if root:
        return "this process lacks CAP_SYS_ADMIN, or its seccomp filter forbids namespaces; start it without these restrictions"
    return "run as root, or allow user namespaces"


def _missing() -> str:
    if sys.platform != "linux":
        return f"the sandbox needs Linux, this is {sys.platform}; run rewards of code on Linux"
    if code_seccomp.program() is None:
        return f"the sandbox knows the system calls of {' and '.join(code_seccomp.AUDIT_ARCH)} only"
    if not shutil.which("bwrap"):
        return "bubblewrap is not installed; apt install bubblewrap (0.8 or newer)"
    said = subprocess.run(["bwrap", "--version"], capture_output=True, text=True, timeout=30).stdout.strip()
    version = said.rpartition(" ")[2].split(".")
    if [int(part) for part in version[:2] if part.isdigit()] < list(NEEDED):
        return f"{said} is too old; install bubblewrap {'.'.join(map(str, NEEDED))} or newer"
    linux = os.uname().release
    if os.geteuid() != 0 and tuple(map(int, linux.split(".")[:2])) < (5, 14):
        return f"Linux {linux} counts all processes of a user as the sandbox's, 5.14 and newer do not; run as root"
    return ""


def _value(path: Path) -> str:
    return path.read_text().strip() if path.exists() else ""


def _in_container() -> bool:
    marks = ("/.dockerenv", "/run/.containerenv")
    return any(map(os.path.exists, marks)) or "KUBERNETES_SERVICE_HOST" in os.environ
