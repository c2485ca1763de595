"""Files of one JSON object per line that only grow, are read while they are written, and survive a kill in mid-line."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def plain(value: Any) -> Any:
    """``value`` as strict JSON values: NaN and infinities become None, scalars of array libraries Python numbers,
    and anything that JSON does not know its ``str``."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return str(value)


def line(value: Mapping[str, Any]) -> bytes:
    """One line of strict JSON in UTF-8, with its newline."""
    text = json.dumps(plain(value), ensure_ascii=False, allow_nan=False)
    # Only lone surrogates do not encode; their backslash form is JSON's own escape for them.
    return text.encode("utf-8", "backslashreplace") + b"\n"


def read(path: Path) -> Iterator[dict]:
    """The objects of a file, in order. A torn last line is left out.

    Raises:
      ValueError: a line before the last is not a JSON object; names file and line.
    """
    with path.open("rb") as file:
        for number, text in enumerate(file, 1):
            if not text.endswith(b"\n"):
                return
            yield parse(text, f"{path}, line {number}")


def parse(text: bytes, where: str) -> dict:
    """One line as an object.

    Raises:
      ValueError: it is not one; the message starts with ``where``.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where}: not a line of JSON ({error}); delete the line or restore the file") from error
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected a JSON object, got {text[:60]!r}; delete the line or restore the file")
    return value


def cut_back(path: Path, last_step: int | None) -> None:
    """Drops a torn last line and, unless ``last_step`` is None, rows of later steps; the file is replaced atomically."""
    if not path.exists():
        return
    if last_step is None:
        kept = path.read_bytes()
        kept, whole = kept[: kept.rfind(b"\n") + 1], kept
        if kept == whole:
            return
    else:
        kept = b"".join(line(row) for row in read(path) if row.get("step", 0) <= last_step)
    part = path.with_name(path.name + ".part")
    part.write_bytes(kept)
    os.replace(part, path)


class Appender:
    """Appends rows to ``path``, each flushed; after a resume, first drops the rows past ``resumed_at``."""

    def __init__(self, path: Path, resumed_at: int | None = None):
        path.parent.mkdir(parents=True, exist_ok=True)
        cut_back(path, resumed_at)
        self._file = path.open("ab", buffering=0)  # what a full disk did not take must not be tried again at the end

    def write(self, *rows: Mapping[str, Any]) -> None:
        """
        Raises:
          OSError: the disk takes no more; the file may end in a torn line.
        """
        left = memoryview(b"".join(line(row) for row in rows))
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._file.name) from error

    def close(self) -> None:
        self._file.close()
