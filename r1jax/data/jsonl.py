"""Files of one JSON object per line, read as people wrote them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from r1jax.config import ConfigError


def read(path: Path) -> list[tuple[str, dict]]:
    """All of ``stream``."""
    return list(stream(path))


def stream(path: Path) -> Iterator[tuple[str, dict]]:
    """The objects of a file, each with its place, ``FILE:LINE``, for complaints. Empty lines are left out.

    Raises:
      ConfigError: it cannot be read, a line is not a JSON object, or there is none.
    """
    try:
        file = path.expanduser().open("rb")
    except OSError as e:
        here = f" (from {Path.cwd()})" if isinstance(e, FileNotFoundError) and not path.expanduser().is_absolute() else ""
        raise ConfigError(f"cannot read {path}: {e.strerror}{here}") from e
    empty = True
    with file:
        for number, line in enumerate(file, 1):
            if line.strip():
                empty = False
                yield (where := f"{path}:{number}"), parse(line, where)
    if empty:
        raise ConfigError(f"{path} has no rows")


def parse(line: bytes, where: str) -> dict:
    """One object. ``where`` is what a complaint calls its place."""
    try:
        row = json.loads(line)
    except UnicodeDecodeError as e:
        raise ConfigError(f"{where}: not UTF-8 at byte {e.start}") from e
    except json.JSONDecodeError as e:
        raise ConfigError(f"{where}: not JSON, {e.msg} at column {e.colno}") from e
    if not isinstance(row, dict):
        raise ConfigError(f"{where}: a row is a JSON object, not {type(row).__name__}")
    return row
