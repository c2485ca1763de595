"""Rows of files, JSON Lines, Parquet or ArrayRecord: one file, a folder, a data set on the Hub, or the same in a bucket."""

from __future__ import annotations

import fnmatch
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from r1jax import hub
from r1jax.config import ConfigError, FileOptions
from r1jax.data import jsonl, known
from r1jax.data.split import held_out

TABLE = re.compile(r"\.(jsonl|parquet|array_?record)(-\d+-of-\d+)?$")
"""How names of files of rows end: ``rows.jsonl``, ``rows.array_record-00000-of-00002``."""
RECORDS = 1024
"""Of an ArrayRecord file, read at once."""
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
    found = Scan(path, split, options, problem)
    return Table([row for _, row in found], found.digest(), found.commit)


class Scan:
    """The rows of one split, each with its place, read anew each time they are gone through. Arguments and errors as of
    ``load``."""

    def __init__(self, path: str, split: str, options: FileOptions, problem: Callable[[dict], str | None]):
        self.path, self.split, self.options, self.problem, self.share = path, split, options, problem, options.test_share
        # With a share, both splits are cut from the rows for training.
        wanted = "train" if self.share else split
        folder, names = hub.fetch(path, "dataset", lambda files: choose(files, wanted, options))
        by_name = "{split}" in (options.files or "") or all(tells(name, split) for name in names)
        if split != "train" and not (self.share or by_name):
            if split == "test":
                raise ConfigError(
                    f"{path} holds nothing out; set options test_share, name eval.sources, or set eval.every to 0"
                )
            raise ConfigError(f"{path} has no split {split!r}")
        self.files, self.commit = [folder / name for name in names], hub.commit(folder)

    def __iter__(self) -> Iterator[tuple[str, dict]]:
        for file in self.files:
            for where, found in read(file):
                try:
                    made = reshape(found, self.options)
                except ValueError as e:
                    raise ConfigError(f"{where}: {e}") from e
                for row in made:
                    if complaint := self.problem(row):
                        raise ConfigError(f"{where}: {complaint}")
                    if not self.share or self._on_this_side(row):
                        yield where, row

    def _on_this_side(self, row: dict) -> bool:
        prompt = json.dumps(row["prompt"], sort_keys=True, default=str)
        return held_out(prompt, self.share) == (self.split == "test")

    def digest(self) -> str:
        digest = hashlib.sha256()
        for file in self.files:
            with file.open("rb") as content:
                hashlib.file_digest(content, lambda: digest)
        return digest.hexdigest()


def choose(files: list[str], split: str, options: FileOptions) -> list[str]:
    """The files of a split: those that match ``options.files``, or whose name or folders hold the split as a word. Files that
    name no split at all are the split for training.

    Raises:
      ValueError: there are none, or there are several sets of them.
    """
    tables = [f for f in files if TABLE.search(f)]
    config = options.config
    if config is None and options.known is not None:
        usual = known.find(options.known).config
        config = usual if any(usual in f.split("/")[:-1] for f in tables) else None
    if config is not None:
        tables = [f for f in tables if config in f.split("/")[:-1]]
    if options.files is not None:
        chosen = fnmatch.filter(tables, options.files.replace("{split}", split))
    elif any(tells(f, word) for f in tables for word in SPLITS):
        chosen = [f for f in tables if tells(f, split)]
    else:
        chosen = tables
    if not chosen:
        asked = "".join(f", {k} {v!r}" for k, v in (("config", options.config), ("files", options.files)) if v is not None)
        raise ValueError(f"has no .jsonl, .parquet or .array_record files for split {split!r}{asked}; {available(files)}")
    if options.files is None and len({set_of(f) for f in chosen}) > 1:
        raise ValueError(
            f"has several sets of rows ({some(chosen)}); set options config to one of the folders, or files to a pattern"
        )
    return chosen


def available(files: list[str]) -> str:
    if tables := [f for f in files if TABLE.search(f)]:
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


def read(path: Path) -> Iterator[tuple[str, dict]]:
    """The rows of a file, each with its place for complaints."""
    found = TABLE.search(path.name)
    match found and found[1]:
        case "jsonl":
            return jsonl.stream(path)
        case "parquet":
            return parquet(path)
        case "array_record" | "arrayrecord":
            return array_record(path)
    raise ConfigError(f"{path} is not a .jsonl, .parquet or .array_record file")


def parquet(path: Path) -> Iterator[tuple[str, dict]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as e:
        raise ConfigError("reading Parquet needs pyarrow; pip install 'r1jax[parquet]'") from e
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            rows = itertools.chain.from_iterable(batch.to_pylist() for batch in table.iter_batches())
            yield from ((f"{path} row {i}", row) for i, row in enumerate(rows))
    except (pyarrow.ArrowException, OSError) as e:
        raise ConfigError(f"{path} is not a Parquet file, or not all of it: {' '.join(str(e).split())}") from e


def array_record(path: Path) -> Iterator[tuple[str, dict]]:
    """Each record is a row as JSON."""
    from array_record.python import array_record_module

    try:
        reader = array_record_module.ArrayRecordReader(str(path))
        # A broken file has 0 records too, and says what it has when it is read.
        if not (count := reader.num_records()) and not reader.read_all():
            raise ConfigError(f"{path} has no rows")
        for start in range(0, count, RECORDS):
            for i, record in enumerate(reader.read(start, min(start + RECORDS, count)), start):
                where = f"{path} record {i}"
                yield where, jsonl.parse(record, where)
    except RuntimeError as e:
        raise ConfigError(f"{path} is not an ArrayRecord file, or not all of it: {' '.join(str(e).split())}") from e


def reshape(row: dict[str, Any], options: FileOptions) -> list[dict[str, Any]]:
    """The rows that a row becomes by the options: one, unless each assistant message makes its own.

    Raises:
      ValueError: it is not what the options say; without its place.
    """
    for field, column in options.fields.items():
        if column not in row:
            raise ValueError(f"no {column!r} for {field!r} (it has {', '.join(map(repr, row)) or 'no fields'})")
    row = {**row, **{field: row[column] for field, column in options.fields.items()}}
    if options.known is not None:
        row |= known.find(options.known).row(row)
    if options.answer_pattern is not None and "answer" in row:
        found = re.search(options.answer_pattern, str(row["answer"]))
        if not found:
            raise ValueError(f"answer_pattern {options.answer_pattern!r} finds nothing in the answer {row['answer']!r:.80}")
        row["answer"] = found[1 if found.re.groups else 0].strip()
    made = [row] if "prompt" in row or "messages" not in row else conversation(row, options.turns)
    return [appended(r, options.append) for r in made] if options.append else made


def conversation(row: dict[str, Any], turns: str) -> list[dict[str, Any]]:
    """A row with ``prompt`` and ``completion`` for the last assistant message, or for each."""
    messages = row["messages"]
    if not isinstance(messages, list) or not all(isinstance(m, dict) and isinstance(m.get("content"), str) for m in messages):
        raise ValueError(f"'messages' is {messages!r:.80}; it must be a list of {{'role': str, 'content': str}}")
    spoken = [i for i, message in enumerate(messages) if i and message.get("role") == "assistant"]
    if not spoken:
        raise ValueError("'messages' has no assistant message after another one, so there is nothing to train on")
    rest = {field: value for field, value in row.items() if field != "messages"}
    chosen = spoken if turns == "all" else spoken[-1:]
    return [{**rest, "prompt": messages[:i], "completion": messages[i]["content"]} for i in chosen]


def appended(row: dict[str, Any], text: str) -> dict[str, Any]:
    """The row with ``text`` behind its prompt, of messages behind the last."""
    prompt = row.get("prompt")
    if isinstance(prompt, list) and prompt and isinstance(prompt[-1], dict) and isinstance(prompt[-1].get("content"), str):
        return {**row, "prompt": [*prompt[:-1], {**prompt[-1], "content": prompt[-1]["content"] + text}]}
    return {**row, "prompt": prompt + text} if isinstance(prompt, str) else row
