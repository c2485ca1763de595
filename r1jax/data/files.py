"""Rows of files, JSON Lines or Parquet: one file, a folder of them, a data set on the Hub, or the same in a bucket."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from r1jax import hub
from r1jax.config import ConfigError, FileOptions
from r1jax.data import jsonl
from r1jax.data.split import held_out

SUFFIXES = (".jsonl", ".parquet")
SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval")
"""Words by which files say which split they are."""


class Table(NamedTuple):
    rows: list[dict]
    digest: str
    """Of the files' bytes, wherever they came from."""
    commit: str | None
    """Of the repository on the Hub."""


def load(path: str, split: str, options: FileOptions, problem: Callable[[dict], str | None]) -> Table:
    """The rows of one split.

    Args:
      path: what ``hub.fetch`` takes.
      problem: says what is wrong with a row, None if nothing is.

    Raises:
      ValueError: nothing of that name or split, or a row is malformed, with its file and place; one line.
    """
    share = options.test_share
    # With a share, both splits are cut from the rows for training.
    folder, names = hub.fetch(path, "dataset", lambda files: choose(files, "train" if share else split, options))
    by_name = "{split}" in (options.files or "") or all(tells(name, split) for name in names)
    if split != "train" and not (share or by_name):
        if split == "test":
            raise ConfigError(f"{path} holds nothing out; set options test_share, name eval.sources, or set eval.every to 0")
        raise ConfigError(f"{path} has no split {split!r}")
    rows, digest = [], hashlib.sha256()
    for file in (folder / name for name in names):
        for where, found in read(file):
            try:
                row = reshape(found, options)
            except ValueError as e:
                raise ConfigError(f"{where}: {e}") from e
            if complaint := problem(row):
                raise ConfigError(f"{where}: {complaint}")
            if not share or held_out(json.dumps(row["prompt"], sort_keys=True, default=str), share) == (split == "test"):
                rows.append(row)
        with file.open("rb") as content:
            hashlib.file_digest(content, lambda: digest)
    return Table(rows, digest.hexdigest(), hub.commit(folder))


def choose(files: list[str], split: str, options: FileOptions) -> list[str]:
    """The files of a split: those that match ``options.files``, or whose name or folders hold the split as a word. Files that
    name no split at all are the split for training.

    Raises:
      ValueError: there are none, or there are several sets of them.
    """
    tables = [f for f in files if f.endswith(SUFFIXES)]
    if options.config is not None:
        tables = [f for f in tables if options.config in f.split("/")[:-1]]
    if options.files is not None:
        chosen = fnmatch.filter(tables, options.files.replace("{split}", split))
    elif any(tells(f, word) for f in tables for word in SPLITS):
        chosen = [f for f in tables if tells(f, split)]
    else:
        chosen = tables
    if not chosen:
        asked = "".join(f", {k} {v!r}" for k, v in (("config", options.config), ("files", options.files)) if v is not None)
        raise ValueError(f"has no .jsonl or .parquet files for split {split!r}{asked}; {available(files)}")
    if options.files is None and len({set_of(f) for f in chosen}) > 1:
        raise ValueError(
            f"has several sets of rows ({some(chosen)}); set options config to one of the folders, or files to a pattern"
        )
    return chosen


def available(files: list[str]) -> str:
    if tables := [f for f in files if f.endswith(SUFFIXES)]:
        return f"it has {some(tables)}"
    return "of a data set in another format, the Hub has a copy at the revision org/name@refs/convert/parquet"


def some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def set_of(file: str) -> tuple[str, str]:
    """The same for the shards of one set of rows: folder, and name without numbers and what stands behind ``-of-N``."""
    folder, _, name = file.rpartition("/")
    return folder, re.sub(r"-?\d+(-of-\d+.*(?=\.))?", "", name)


def tells(file: str, split: str) -> bool:
    """Whether a relative name holds the split as a word: ``main/test-00000-of-00001.parquet``, ``math_test.jsonl``."""
    return re.search(rf"(?<![A-Za-z]){re.escape(split)}(?![A-Za-z])", file) is not None


def read(path: Path) -> list[tuple[str, dict]]:
    """The rows of a file, each with its place for complaints."""
    if path.suffix == ".parquet":
        return parquet(path)
    if path.suffix == ".jsonl":
        return jsonl.read(path)
    raise ConfigError(f"{path} is not a .jsonl or a .parquet file")


def parquet(path: Path) -> list[tuple[str, dict]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as e:
        raise ConfigError("reading Parquet needs pyarrow; pip install 'r1jax[parquet]'") from e
    try:
        rows = pyarrow.parquet.read_table(path, partitioning=None).to_pylist()
    except (pyarrow.ArrowException, OSError) as e:
        raise ConfigError(f"{path} is not a Parquet file, or not all of it: {' '.join(str(e).split())}") from e
    return [(f"{path} row {i}", row) for i, row in enumerate(rows)]


def reshape(row: dict[str, Any], options: FileOptions) -> dict[str, Any]:
    """A row with the fields that ``options.fields`` names, and of its answer what ``options.answer_pattern`` finds."""
    for field, column in options.fields.items():
        if column not in row:
            raise ValueError(f"no {column!r} for {field!r} (it has {', '.join(map(repr, row)) or 'no fields'})")
    row = {**row, **{field: row[column] for field, column in options.fields.items()}}
    if options.answer_pattern is not None and "answer" in row:
        found = re.search(options.answer_pattern, str(row["answer"]))
        if not found:
            raise ValueError(f"answer_pattern {options.answer_pattern!r} finds nothing in the answer {row['answer']!r:.80}")
        row["answer"] = found[1 if found.re.groups else 0].strip()
    return row
