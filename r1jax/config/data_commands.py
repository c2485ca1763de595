"""The arguments of ``r1jax data`` and its commands."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from r1jax.config.base import ConfigError
from r1jax.config.commands import Answering, at_least_one
from r1jax.config.train import Workers


@dataclass(frozen=True)
class Data:
    """Look at rows, clean them, and say where they came from."""


@dataclass(frozen=True, kw_only=True)
class OfRows:
    """What every command that reads rows asks for."""

    data: str
    """A .jsonl, .parquet or .array_record file or a folder of them, here or on gs://; a data set on the Hub,
    org/name[@revision]; or a known one by name. The options of a source of files may follow as a JSON object:
    ``openai/gsm8k{"config":"main"}``."""
    split: str = "train"


@dataclass(frozen=True, kw_only=True)
class DataShow(OfRows):
    """Count rows, list their fields and show the first."""

    rows: int = 3
    """How many to show."""

    def __post_init__(self):
        if self.rows < 0:
            raise ConfigError(f"--rows is {self.rows}; it must be >= 0")


@dataclass(frozen=True, kw_only=True)
class DataBuild(OfRows):
    """Write the rows of any source as training sees them to one file.

    ``--data`` may also be ``arithmetic``, ``reasoning_gym:TASK``, ``pkg.mod:f`` or ``file.py:f``.
    """

    out: Path
    """A .jsonl, .parquet (extra) or .array_record file to write."""
    limit: int | None = None
    """Only the first N rows."""

    def __post_init__(self):
        if self.out.suffix not in (".jsonl", ".parquet", ".array_record"):
            raise ConfigError(f"--out is {self.out}; its name must end in .jsonl, .parquet or .array_record")
        if self.limit is not None:
            at_least_one("--limit", self.limit)


@dataclass(frozen=True, kw_only=True)
class DataPassRate(Answering, OfRows):
    """Measure how often a model solves each row.

    Of the rows that come out, a source with ``pass_rate = (low, high)`` keeps those between, and one with ``order =
    "easy_first"`` begins each epoch with the easy ones.
    """

    out: Path
    """JSONL to write: the rows, each with ``pass_rate``."""
    samples: int = 8
    """Answers per row."""
    reward: str | None = None
    """An answer is right where this is at least 1. None is the known data set's, of reasoning_gym the task's own, else
    ``accuracy``."""
    limit: int | None = None
    """Only the first N rows."""

    def __post_init__(self):
        super().__post_init__()
        if self.out.suffix != ".jsonl":
            raise ConfigError(f"--out is {self.out}; rows are written as JSON Lines, so name a file NAME.jsonl")
        at_least_one("--samples", self.samples)
        if self.limit is not None:
            at_least_one("--limit", self.limit)


@dataclass(frozen=True, kw_only=True)
class Cleaning(OfRows):
    """What every command that writes the rows it keeps asks for."""

    out: Path
    """JSONL to write. Beside it come NAME.report.jsonl, what was found, and NAME.summary.json, the counts and the digests."""

    def __post_init__(self):
        if self.out.suffix != ".jsonl":
            raise ConfigError(f"--out is {self.out}; rows are written as JSON Lines, so name a file NAME.jsonl")


@dataclass(frozen=True, kw_only=True)
class DataDedupe(Cleaning):
    """Drop exact and near duplicates, keeping the first of each group."""

    threshold: float = 0.8
    """Rows whose 5-word shingles have at least this Jaccard similarity, and whose prompts have the same numbers, are
    duplicates; so are rows that a chain of such pairs links. 1 drops rows with the same shingles only."""

    def __post_init__(self):
        super().__post_init__()
        if not 0.5 <= self.threshold <= 1:
            raise ConfigError(f"--threshold is {self.threshold}; it must be in [0.5, 1]")


@dataclass(frozen=True, kw_only=True)
class DataDecontaminate(Cleaning):
    """Drop rows that share 10 words in a row with a benchmark."""

    against: tuple[str, ...]
    """The benchmarks' rows, named as --data is. Of a file by itself all rows are taken, else those of the split ``test`` or of
    the known set's own."""
    words: int = 10
    """Words in a row that make a match: R1's rule (arXiv 2501.12948, D.1). 16 Chinese characters count as 10 words. A shorter
    question matches as a whole."""

    def __post_init__(self):
        super().__post_init__()
        if not self.against:
            raise ConfigError("--against is empty; name at least one benchmark")
        if self.words < 3:
            raise ConfigError(f"--words is {self.words}; fewer than 3 words in a row would match nearly everything")


@dataclass(frozen=True, kw_only=True)
class DataProvenance(Cleaning):
    """Write source, licence and date into rows, and find those in which a model names itself."""

    manifest: Path | None = None
    """TOML or JSON; see r1jax/data/README.md. None is NAME.manifest.toml or .json beside the file, or manifest.toml or .json in
    the folder, if it is there."""
    named: Literal["drop", "flag"] = "drop"
    """What becomes of rows in which a model names itself. ``flag`` writes the names into the row's ``names_model``."""


@dataclass(frozen=True, kw_only=True)
class DataPairs:
    """Have a judge compare answers to the same prompt, in both orders, and write pairs for a reward model."""

    data: Path
    """JSONL rows with ``prompt`` and ``completion`` (the assistant's whole turn), such as a run's samples.jsonl. The first two
    different answers to a prompt are a pair, the next two another."""
    judge: str
    """A reward that says by how much an answer is better than ``row["other"]``: ``compare{"url":...,"model":...}``, from -2 to
    2, or one of yours."""
    out: Path
    """JSONL to write: ``prompt``, ``chosen``, ``rejected``, ``margin`` (by how much on average), ``provenance``. Beside it come
    NAME.report.jsonl, the pairs that were dropped, and NAME.summary.json."""
    queries: int = 4
    """Verdicts per pair, half of them in either order (R1: 4, in random order)."""
    margin: float = 1.0
    """Pairs whose mean verdict is within this of 0 are dropped (R1: 1)."""
    workers: Workers = field(default_factory=lambda: Workers(timeout=110.0))

    def __post_init__(self):
        if self.out.suffix != ".jsonl":
            raise ConfigError(f"--out is {self.out}; rows are written as JSON Lines, so name a file NAME.jsonl")
        if self.queries < 2 or self.queries % 2:
            raise ConfigError(f"--queries is {self.queries}; half of them are asked in either order: give 2, 4, ...")
        if self.margin < 0:
            raise ConfigError(f"--margin is {self.margin}; it must be >= 0")
