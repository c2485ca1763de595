"""What is free on devices and on their hosts, in bytes."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

from r1jax import processes


def available(mesh: jax.sharding.Mesh) -> int | None:
    """Bytes that are free on the fullest device of any process; on the CPU a device has its share of the machine's free memory.
    Every process must ask."""
    stats = [d.memory_stats() or {} for d in _local(mesh)]
    free = [s["bytes_limit"] - s.get("bytes_in_use", 0) for s in stats if "bytes_limit" in s]
    return _least(min(free)) if free else available_on_host(mesh)


def available_on_host(mesh: jax.sharding.Mesh) -> int | None:
    """Bytes of the host's free memory for each of its devices, where there is least. Every process must ask."""
    host = host_available()
    return _least(None if host is None else host // max(1, processes.beside() * len(_local(mesh))))


def _local(mesh: jax.sharding.Mesh) -> list[jax.Device]:
    return [d for d in mesh.devices.flat if d.process_index == jax.process_index()]


def _least(size: int | None) -> int | None:
    """Over all processes, None where one does not know."""
    if jax.process_count() == 1:
        return size
    mine = np.int32(-1 if size is None else size >> 20)  # MiB: 32 bits suffice
    least = int(processes.gather("free memory", mine).min())
    return None if least < 0 else least << 20


def host_available(root: Path = Path("/")) -> int | None:
    """Bytes that this machine, or the container we are in, can still give; None where Linux's files do not tell."""
    meminfo = root / "proc/meminfo"
    if not meminfo.exists():
        return None
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    limit, used = root / "sys/fs/cgroup/memory.max", root / "sys/fs/cgroup/memory.current"
    if limit.exists() and used.exists() and limit.read_text().strip().isdecimal():
        free = min(free, max(0, int(limit.read_text()) - int(used.read_text())))
    return free


def human(size: int | None) -> str:
    """Bytes in the largest unit of which there is one."""
    if size is None:
        return "an unknown capacity"
    value, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.3g} {unit}" if value < 1000 else f"{value:.0f} {unit}"
