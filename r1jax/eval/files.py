"""What the commands read and write."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from r1jax.config import ConfigError


def read_jsonl(path: Path) -> list[tuple[str, dict]]:
    """The objects of a file, each with its place, ``FILE:LINE``, for complaints. Empty lines are left out.

    Raises:
      ConfigError: it cannot be read, a line is not a JSON object, or there is none.
    """
    try:
        content = path.expanduser().read_bytes()
    except OSError as e:
        raise ConfigError(f"cannot read {path}: {e.strerror}") from e
    rows = []
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except UnicodeDecodeError as e:
            raise ConfigError(f"{where}: not UTF-8 at byte {e.start}") from e
        except json.JSONDecodeError as e:
            raise ConfigError(f"{where}: not JSON, {e.msg} at column {e.colno}") from e
        if not isinstance(row, dict):
            raise ConfigError(f"{where}: a row is a JSON object, not {type(row).__name__}")
        rows.append((where, row))
    if not rows:
        raise ConfigError(f"{path} has no rows")
    return rows


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
    file.write(json.dumps(row, ensure_ascii=False) + "\n")
    file.flush()
