"""Several processes that act as one: they meet under a name, or one line says who did not come in time.

A collective on the devices waits for as long as its peers live. So where one process may be long after another (it writes a
file, waits for a grader, reads a disk), they meet here first.
"""

from __future__ import annotations

import re
import socket
import threading
import zlib
from collections import Counter

import jax
import numpy as np
from jax._src import distributed  # the one barrier with a time limit that jax has; Orbax takes it from here too
from jax.experimental import multihost_utils

from r1jax.config.base import ProcessLost

PATIENCE = 30 * 60.0
"""Seconds: process 0 may write a model of hundreds of gigabytes while the others wait."""

_HOSTS = "r1jax/host/"
_lock = threading.Lock()
_met: Counter[str] = Counter()


def meet(name: str, seconds: float = PATIENCE) -> None:
    """Returns once every process is here. All must call it with the same names in the same order, those of one thread at least.

    Raises:
      ProcessLost: not all came in this time; the message names who is missing.
    """
    if jax.process_count() == 1:
        return
    client = distributed.global_state.client
    with _lock:
        if not _met:
            client.key_value_set(f"{_HOSTS}{jax.process_index()}", socket.gethostname())
        _met[name] += 1
        key = f"r1jax/{name}/{_met[name]}"
    try:
        client.wait_at_barrier(key, int(seconds * 1000))
    except jax.errors.JaxRuntimeError as error:
        raise ProcessLost(_missing(name, seconds, str(error))) from error


def gather(name: str, value: np.ndarray, seconds: float = PATIENCE) -> np.ndarray:
    """[P, ...]: what each of P processes gives, in their order. Shapes must agree.

    Raises:
      ProcessLost: as ``meet``.
    """
    if jax.process_count() == 1:
        return np.asarray(value)[None]
    meet(name, seconds)
    return np.asarray(multihost_utils.process_allgather(np.asarray(value)))


def any_of(name: str, flag: bool) -> bool:
    """Whether any process says so, known to all."""
    return bool(gather(name, np.array(flag)).any())


def first_says(name: str, flag: bool) -> bool:
    """What process 0 says, known to all: on a network disk others may see a file later, and what follows takes them all."""
    return bool(gather(name, np.array(flag))[0])


def beside() -> int:
    """How many of the processes, this one included, run on this machine."""
    hosts = gather("hosts", np.uint32(zlib.crc32(socket.gethostname().encode())))
    return int((hosts == hosts[jax.process_index()]).sum())


def _missing(name: str, seconds: float, why: str) -> str:
    here = f"process {jax.process_index()} of {jax.process_count()} waited at {name!r}"
    absent = re.search(r"timed out task names:\s*((?:\d+\s*)+)", why)
    if absent is None:
        return f"{here} and lost the others: {' '.join(why.split())[:300]}"
    hosts = dict(distributed.global_state.client.key_value_dir_get(_HOSTS))
    names = [f"{n} on {hosts.get(f'{_HOSTS}{n}', 'an unknown host')}" for n in absent[1].split()]
    return f"{here} for {seconds:g} s, and process {', '.join(names)} did not come; its log says what it did instead"
