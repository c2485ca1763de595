"""Imports that a reward makes at its first call, without counting against its time limit."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType

_stopped_clock: Callable[[], AbstractContextManager] = nullcontext


def stop_clock_with(context: Callable[[], AbstractContextManager]) -> None:
    """Set what surrounds a slow import. A worker gives a context that suspends its time limit; elsewhere there is none."""
    global _stopped_clock
    _stopped_clock = context


def slow_import(module: str) -> ModuleType:
    """The module of that dotted name, imported at its first use."""
    if (found := sys.modules.get(module)) is not None:
        return found
    with _stopped_clock():
        return importlib.import_module(module)
