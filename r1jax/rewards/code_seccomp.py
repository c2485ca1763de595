"""The system calls that a program in the sandbox may not make, as a filter for the kernel.

Denied are new namespaces and mounts (by which a program could become root of its own, beyond RLIMIT_NPROC), memory that no
RLIMIT counts (System V shared memory, memfd), processes' memory, keys, BPF, io_uring, and sockets other than AF_UNIX: some
families, as AF_VSOCK, belong to no network namespace.
"""

from __future__ import annotations

import errno
import platform
import struct

# Numbers of linux/audit.h, linux/seccomp.h, linux/bpf_common.h and the kernel's system call tables.
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
KILL, ERRNO, ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER, ARCH, FIRST_ARGUMENT = 0, 4, 16
"""Offsets in the kernel's ``seccomp_data``; of the argument, its low half."""
NEW_NAMESPACES = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET."""
AF_UNIX = 1
X32 = 0x40000000
"""x86-64's numbers of a second table begin here."""

DENIED = {  # name: number on x86_64, on aarch64
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "fanotify_init": (300, 262),
    "syslog": (103, 116),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "kexec_load": (246, 104),
    "reboot": (169, 142),
    "swapon": (167, 224),
}
CLONE, SOCKET, CLONE3 = (56, 220), (41, 198), (435, 435)


def program() -> bytes | None:
    """The filter, as bubblewrap's ``--seccomp`` reads it. None on a machine whose system calls are not known here."""
    machine = platform.machine()
    if machine not in AUDIT_ARCH:
        return None
    column = list(AUDIT_ARCH).index(machine)
    code = [
        _step(LOAD, ARCH),
        _step(EQUAL, AUDIT_ARCH[machine], yes=1),
        _step(RETURN, KILL),
        _step(LOAD, NUMBER),
    ]
    if machine == "x86_64":
        code += [_step(AT_LEAST, X32, no=1), _refuse(errno.ENOSYS)]
    for numbers in DENIED.values():
        code += [_step(EQUAL, numbers[column], no=1), _refuse(errno.EPERM)]
    # Its flags lie in memory, which a filter cannot read; on this error C libraries call clone.
    code += [_step(EQUAL, CLONE3[column], no=1), _refuse(errno.ENOSYS)]
    code += [
        _step(EQUAL, CLONE[column], no=4),
        _step(LOAD, FIRST_ARGUMENT),
        _step(ANY_BIT, NEW_NAMESPACES, no=1),
        _refuse(errno.EPERM),
        _step(RETURN, ALLOW),
    ]
    code += [
        _step(EQUAL, SOCKET[column], no=4),
        _step(LOAD, FIRST_ARGUMENT),
        _step(EQUAL, AF_UNIX, yes=1),
        _refuse(errno.EAFNOSUPPORT),
        _step(RETURN, ALLOW),
    ]
    return b"".join([*code, _step(RETURN, ALLOW)])


def _step(operation: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    """One instruction; ``yes`` and ``no`` are how many a comparison skips."""
    return struct.pack("=HBBI", operation, yes, no, value)


def _refuse(error: int) -> bytes:
    return _step(RETURN, ERRNO | error)
