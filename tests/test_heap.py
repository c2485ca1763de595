"""Memory that a process keeps."""

import subprocess
import sys

import pytest

FAULTS = """
import ctypes, resource, sys
from r1jax.train import heap
{before}
kept = heap.keep()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def used():
    began = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(1 << 26)
    ctypes.memset(block, 1, 1 << 26)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - began
used()
print(kept, used())
"""


def second_use(before="", **env):
    """Whether memory is kept, and the pages that the system clears for the second of two equal blocks."""
    done = subprocess.run(
        [sys.executable, "-c", FAULTS.format(before=before)], env={**env}, capture_output=True, text=True, check=True
    )
    kept, faults = done.stdout.split()
    return kept == "True", int(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_memory_given_back_is_kept_where_a_cpu_computes():
    path = {"PYTHONPATH": ":".join(sys.path)}
    kept, faults = second_use(JAX_PLATFORMS="cpu", **path)
    assert kept and faults < 100
    for before, platforms in (("", "cuda"), ("sys.modules['jax'] = None", "cpu")):
        kept, faults = second_use(before, JAX_PLATFORMS=platforms, **path)
        assert not kept and faults > 1000, (before, platforms)
