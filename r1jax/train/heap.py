"""Memory of a process that computes on a CPU."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # malloc.h


def keep() -> bool:
    """Has the C library keep the memory that it is given back, for what asks next. Returns whether it does.

    XLA:CPU asks for an update's buffers anew each time, and the system clears every page of them at its first use: a sixth of
    an update's time. What the process holds then stays at its highest. Nothing is done where an accelerator may compute, and in
    a process that uses jax already: its threads have heaps of their own.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's
    if mallopt is None or "jax" in sys.modules or not on_cpu():
        return False
    return all([mallopt(M_ARENA_MAX, 1), mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, -1)])


def on_cpu() -> bool:
    """Whether jax will compute on a CPU, for it was told to or has no plugin for anything else."""
    if told := os.environ.get("JAX_PLATFORMS"):
        return told == "cpu"
    return not importlib.metadata.entry_points(group="jax_plugins") and importlib.util.find_spec("libtpu") is None
