"""Compilation as a phase of its own, told by JAX's own events: whatever compiles, and wherever it is called from."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import jax.monitoring

from r1jax.observe.phases import Phase

LOWERED = "/jax/core/compile/jaxpr_to_mlir_module_duration"  # the last thing before the compiler starts
COMPILED = "/jax/core/compile/backend_compile_duration"


@contextlib.contextmanager
def watch(begin: Callable[[], Phase], ended: Callable[[Phase], None]) -> Iterator[None]:
    """While the block runs, each compilation by this thread is a phase: opened by ``begin``, told to ``ended`` when over.

    A program that does not compile leaves its phase open, for the phase around it to end.
    """
    thread = threading.get_ident()
    running: list[Phase] = []

    def heard(event: str, seconds: float, **_) -> None:
        if threading.get_ident() != thread:
            return
        if event == LOWERED and not running:
            running.append(begin().__enter__())
        elif event == COMPILED and running:
            phase = running.pop()
            phase.__exit__(None)
            ended(phase)

    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        yield
    finally:
        jax.monitoring.unregister_event_duration_listener(heard)
