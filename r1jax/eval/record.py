"""What an evaluation writes as it goes, so that an interrupted one goes on.

    eval.json       what was asked, and with which weights: what decides the answers
    answers.jsonl   every answer, model by model and batch by batch
    results.json    the figures, with all it takes to repeat them
    results.md      the same for people

A batch is one call of the sampler, with the same questions whether the evaluation was interrupted or not: so the answers, and
what follows from them, are the same bit for bit.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from r1jax.config import ConfigError, diff
from r1jax.data import output

ASKED, ANSWERS, RESULTS, SUMMARY = "eval.json", "answers.jsonl", "results.json", "results.md"


class Record:
    """The directory of an evaluation; or memory alone, where ``path`` is None.

    Args:
      asked: what decides the answers, JSON values.
      keep: of a row what ``rows`` gives.

    Attributes:
      made: model name -> what was found when it was loaded, JSON values.

    Raises:
      ConfigError: the directory cannot be written, or holds something else.
    """

    def __init__(self, path: Path | None, asked: dict[str, Any], keep: Callable[[dict], dict]):
        self.path, self.asked, self._keep = path, json.loads(json.dumps(asked)), keep
        self.made: dict[str, dict[str, Any]] = {}
        self._rows: dict[str, list[dict]] = {}
        self._end = 0  # of the batches that are done
        if path is None:
            return
        _open_directory(path)
        before = _read(path / ASKED)
        if before is None:
            self._write_asked()
            return
        if changed := diff(before["asked"], self.asked):
            raise ConfigError(f"--out {path} holds another evaluation, in which {_told(changed)}; name a new directory")
        self.made = before["made"]

    def note(self, model: str, found: dict[str, Any]) -> None:
        """Keeps what was found when a model was loaded.

        Raises:
          ConfigError: it was found otherwise before.
        """
        before = self.made.get(model)
        if before is None:
            self.made[model] = found
            self._write_asked()
        elif changed := diff(before, found):
            raise ConfigError(f"{model} is not what it was when {self.path} was begun: {_told(changed)}; name a new directory")

    def resume(self, model: str, sizes: Sequence[int]) -> int:
        """Reads a model's answers, which follow those of the models before, and cuts what is behind the last whole batch.

        Args:
          sizes: answers of each batch, in their order.

        Returns:
          How many batches are done.
        """
        rows = self._rows[model] = []
        if self.path is None or not (self.path / ANSWERS).exists():
            return 0
        done = 0
        with open(self.path / ANSWERS, "rb+") as file:
            file.seek(self._end)
            lines = _lines(file, self._end)
            for size in sizes:
                batch = list(itertools.islice(lines, size))
                if len(batch) < size:
                    file.truncate(self._end)
                    break
                rows += [self._keep(row) for row, _ in batch]
                done, self._end = done + 1, batch[-1][1]
        return done

    def append(self, model: str, rows: list[dict]) -> None:
        """A batch, on the disk when this returns."""
        self._rows[model] += [self._keep(json.loads(json.dumps(row))) for row in rows]  # as they would be read
        if self.path is None:
            return
        with open(self.path / ANSWERS, "a", encoding="utf-8", errors="backslashreplace") as file:
            for row in rows:
                output.write_row(file, row)
            os.fsync(file.fileno())
            self._end = file.tell()

    def rows(self, model: str) -> list[dict]:
        """What was kept of a model's answers, in their order."""
        return self._rows[model]

    def results(self) -> dict[str, Any] | None:
        """What was written as results, if anything."""
        return None if self.path is None else _read(self.path / RESULTS)

    def write(self, name: str, text: str) -> None:
        """A file that appears as a whole."""
        if self.path is not None:
            with output.replacing(self.path / name) as part:
                part.write_text(text, encoding="utf-8", errors="backslashreplace")

    def _write_asked(self) -> None:
        self.write(ASKED, json.dumps({"asked": self.asked, "made": self.made}, indent=1) + "\n")


def _open_directory(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise ConfigError(f"--out {path} is a file; name a directory for answers and results")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"--out {path}: there is no directory {path.parent}; make it first")
    if path.is_dir() and any(path.iterdir()) and not (path / ASKED).exists():
        raise ConfigError(f"--out {path} is not empty and holds no evaluation; name a new directory")
    path.mkdir(exist_ok=True)


def _told(changed: Sequence[tuple[str, Any, Any]]) -> str:
    return "; ".join(f"{name} was {old!r:.80} and is {new!r:.80}" for name, old, new in changed[:3])


def _read(path: Path) -> dict | None:
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise ConfigError(f"{path} is damaged ({e}); name a new directory") from e


def _lines(file: BinaryIO, end: int) -> Iterator[tuple[dict, int]]:
    """The rows up to one that is not whole, each with the place where it ends; the first begins at ``end``."""
    for line in file:
        end += len(line)
        try:
            row = json.loads(line)
        except ValueError:
            return
        if not line.endswith(b"\n"):
            return
        yield row, end
