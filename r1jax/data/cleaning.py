"""What the commands that clean rows share: where rows come from, and the three files that are written.

    OUT.jsonl           the rows that are kept, as they were read
    OUT.report.jsonl    an object per finding
    OUT.summary.json    counts, settings, and the digest of each file that was read
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from r1jax.config import ConfigError, FileOptions, data_commands, from_json
from r1jax.data import files, output, sources


def open_rows(name: str, split: str | None, *, prompts: bool = True) -> files.Scan:
    """The rows that a command line calls ``name``.

    Args:
      split: None is what ``sources.named`` finds: of a benchmark the part with the problems.
      prompts: a row without a prompt is a mistake.

    Raises:
      ValueError: no such rows.
    """
    source = sources.named(name, split=split)
    options = from_json(FileOptions, source.options, "options")
    needed = prompts or options.test_share
    return files.Scan(source.path, source.split, options, _problem if needed else lambda row: None)


def _problem(row: dict) -> str | None:
    problem = sources.prompt_problem(row)
    hint = '; name the column, as in FILE{"fields":{"prompt":"question"}}' if problem and "prompt" not in row else ""
    return problem and problem + hint


def identity(rows: files.Scan) -> dict[str, Any]:
    """What rows were read from."""
    found = {"path": rows.path, "split": rows.split, "digest": rows.digest()}
    return found | ({"commit": rows.commit} if rows.commit else {})


class Output:
    """Rows in, and the three files out."""

    def __init__(self, rows: files.Scan, kept: TextIO, findings: TextIO):
        self.rows = rows
        self.read = self.kept = 0
        self.summary: dict[str, Any] = {}
        """What the summary says beside the counts."""
        self.notes: list[str] = []
        """Lines for the terminal, after the counts."""
        self._kept, self._findings = kept, findings

    def __iter__(self) -> Iterator[tuple[str, dict]]:
        """(place, row) of every row."""
        for where, row in self.rows:
            self.read += 1
            yield where, row

    def keep(self, row: dict) -> None:
        self.kept += 1
        output.write_row(self._kept, row)

    def report(self, finding: dict) -> None:
        output.write_row(self._findings, finding)


@contextlib.contextmanager
def open_output(args: data_commands.Cleaning, *, prompts: bool = True) -> Iterator[Output]:
    """The files appear at the end of the block; after an error those that were there are as they were.

    Raises:
      ConfigError: they cannot be written, or there are no such rows.
    """
    output.check_output(args.out)
    rows = open_rows(args.data, args.split, prompts=prompts)
    if args.out.absolute() in (file.absolute() for file in rows.files):
        raise ConfigError(f"--out {args.out} is the file that is read; name another")
    with output.open_jsonl(args.out) as kept, output.open_jsonl(beside(args.out, "report.jsonl")) as findings:
        out = Output(rows, kept, findings)
        yield out
        counts = {"rows": out.read, "kept": out.kept, "dropped": out.read - out.kept}
        summary = {"settings": dataclasses.asdict(args), "data": identity(rows)} | counts | out.summary
        with output.replacing(beside(args.out, "summary.json")) as part:
            told = json.dumps(summary, indent=1, ensure_ascii=False, default=str)
            part.write_text(f"{told}\n", "utf-8", "backslashreplace")
    tell(f"{out.read:,} rows, {out.kept:,} kept in {args.out}, {out.read - out.kept:,} dropped", *out.notes)


def beside(out: Path, ending: str) -> Path:
    return out.with_name(f"{out.stem}.{ending}")


def tell(*lines: str) -> None:
    for line in lines:
        print(line, file=sys.stderr)
