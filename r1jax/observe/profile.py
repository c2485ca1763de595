"""A trace of some steps, which XProf and TensorBoard open: where devices and host spent their time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax

Steps = tuple[int, int]
"""The first and the last, from 1."""


class Profile:
    """Traces the rounds in which ``steps`` are made, into ``path``: whole rounds, since all updates of one are made together.

    The phases of a run are named in it (``rollout``, ``update``, ...), and each round is a step ``round``. Several stretches,
    of several attempts for instance, lie beside each other.

    Args:
      path: a folder; None traces nothing.
    """

    def __init__(self, path: Path | None = None, steps: Steps = (0, 0)):
        self._path, (self._first, self._last) = path, steps
        self._on = False

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, *_) -> None:
        self._stop()

    @contextlib.contextmanager
    def round(self, first: int, last: int) -> Iterator[None]:
        """The block makes the steps from ``first`` to ``last``."""
        if self._path is not None and not self._on and first <= self._last and last >= self._first:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # every call of Python would bury the phases
            jax.profiler.start_trace(str(self._path), profiler_options=options)
            self._on = True
        with jax.profiler.StepTraceAnnotation("round", step_num=first):
            yield
        if last >= self._last:
            self._stop()

    def _stop(self) -> None:
        if self._on:
            self._on = False
            jax.profiler.stop_trace()
