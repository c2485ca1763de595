"""``r1jax data build``: the rows of any source, checked and in the form that training sees, in one file."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from r1jax.config import ConfigError, data_commands
from r1jax.data import output, sources


def build(args: data_commands.DataBuild) -> int:
    """Writes the rows to ``args.out``, in the format of its ending.

    Raises:
      ConfigError: there are no such rows, the file cannot be written, or the format cannot hold a row.
    """
    output.check_output(args.out)
    rows = sources.load(sources.named(args.data, split=args.split, limit=args.limit))
    with output.replacing(args.out) as part:
        WRITERS[args.out.suffix](part, rows)
    made_of = f", made of files with sha256 {rows.digest}" if rows.digest else ""
    print(f"{len(rows):,} rows in {args.out}{made_of}", file=sys.stderr)
    return 0


def jsonl(path: Path, rows: Sequence[dict]) -> None:
    with output.open_jsonl(path) as file:
        for i in range(len(rows)):
            file.write(as_json(rows[i], i) + "\n")


def array_record(path: Path, rows: Sequence[dict]) -> None:
    """Each row is JSON in a group of its own, so that any of them is read alone."""
    from array_record.python import array_record_module

    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    try:
        for i in range(len(rows)):
            writer.write(as_json(rows[i], i).encode(errors="backslashreplace"))
    finally:
        writer.close()


def parquet(path: Path, rows: Sequence[dict]) -> None:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as e:
        raise ConfigError("writing Parquet needs pyarrow; pip install 'r1jax[parquet]'") from e
    try:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    except pyarrow.ArrowException as e:
        said = " ".join(str(e).split())
        raise ConfigError(f"a Parquet column holds values of one type: {said}; write .jsonl or .array_record") from e


WRITERS: dict[str, Callable[[Path, Sequence[dict]], None]] = {
    ".jsonl": jsonl,
    ".parquet": parquet,
    ".array_record": array_record,
}


def as_json(row: dict, index: int) -> str:
    """
    Raises:
      ConfigError: the row holds what JSON cannot.
    """
    try:
        return json.dumps(row, ensure_ascii=False)
    except (TypeError, ValueError) as e:
        raise ConfigError(f"row {index} cannot be written as JSON: {e}") from e
