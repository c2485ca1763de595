"""What the commands write."""

from __future__ import annotations

import contextlib
import datetime
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from r1jax.config import ConfigError


def check_output(path: Path) -> None:
    """Fails before any work is done where the work's result could not be written.

    Raises:
      ConfigError: the folder does not exist, or the path is a folder.
    """
    if path.is_dir():
        raise ConfigError(f"--out {path} is a directory; name a file in it")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"--out {path}: there is no directory {path.parent}; make it first")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, which becomes ``path`` at the end of the block; after an error ``path`` is as it was."""
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def open_jsonl(path: Path) -> Iterator[TextIO]:
    """A text file for ``write_row`` that appears as a whole."""
    # Only lone surrogates do not encode; their backslash form is JSON's own escape for them.
    with replacing(path) as part, open(part, "w", encoding="utf-8", errors="backslashreplace") as file:
        yield file


def write_row(file: TextIO, row: dict[str, Any]) -> None:
    """
    Raises:
      ConfigError: the row holds what JSON cannot, such as an image. Dates become text.
    """
    file.write(json.dumps(row, ensure_ascii=False, default=_plain) + "\n")
    file.flush()


def _plain(value: Any) -> str:
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    raise ConfigError(f"a row holds {value!r:.60}, of type {type(value).__name__}, which JSON cannot; leave that column out")
