"""Work that does not count against a reward's time limit: imports at its first call, and what keeps a limit of its own."""

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


def stopped_clock() -> AbstractContextManager:
    """Surrounds work that ends by a limit of its own, below ``process.START_SECONDS``; the reward's clock then starts anew."""
    return _stopped_clock()


def slow_import(module: str) -> ModuleType:
    """The module of that dotted name, imported at its first use."""
    if (found := sys.modules.get(module)) is not None:
        return found
    with _stopped_clock():
        return importlib.import_module(module)
