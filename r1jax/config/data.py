"""Where rows come from, how a prompt becomes text, and how text becomes tokens."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from r1jax.config.base import ConfigError


@dataclass(frozen=True)
class Source:
    """Rows ``{"prompt": str or messages, "answer": any, "source": str, ...}`` and the rewards that score them."""

    path: str = "r1jax.data.arithmetic:rows"
    """A ``.jsonl``, ``.parquet`` (extra) or ``.array_record`` file or a folder of them, here, on the Hub
    (``org/name[@revision]``) or on ``gs://``; ``reasoning_gym:TASK`` (extra); or ``pkg.mod:f`` / ``file.py:f``, where
    f(split, **options) returns a sequence of rows."""
    name: str = "arithmetic"
    """Written into each row's ``source``; metrics are kept per name."""
    split: str = "train"
    weight: float = 1.0
    """Share of this source in the mixture, relative to the others."""
    limit: int | None = None
    """Use only the first N rows."""
    pass_rate: tuple[float, ...] = ()
    """(low, high): use only rows whose ``pass_rate``, which ``r1jax data pass-rate`` measures, is within; () uses all."""
    order: Literal["shuffled", "easy_first"] = "shuffled"
    """``shuffled``: each epoch in another order. ``easy_first``: each epoch by falling ``pass_rate``, equal ones shuffled."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of files, the fields of ``FileOptions``; else passed on to the source: a task's difficulty, a size, a seed."""
    rewards: dict[str, float] = field(default_factory=lambda: {"accuracy": 1.0, "format": 1.0})
    """Reward name -> weight; the total is the weighted sum. A name is a built-in, ``pkg.mod:f`` or ``path/file.py:f``, and its
    options may follow as JSON: ``format{"style":"r1"}``. ``rewards.compose`` has the sums of R1's stages."""

    def __post_init__(self):
        if self.weight < 0:
            raise ConfigError(f"source {self.name!r}: weight is {self.weight}; it must be >= 0")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"source {self.name!r}: limit is {self.limit}; it must be at least 1")
        if self.pass_rate and not (len(self.pass_rate) == 2 and 0 <= self.pass_rate[0] <= self.pass_rate[1] <= 1):
            raise ConfigError(f"source {self.name!r}: pass_rate is {self.pass_rate}; give (low, high), 0 <= low <= high <= 1")


@dataclass(frozen=True)
class FileOptions:
    """The ``options`` of a source of files. A row is made by ``fields``, then ``known``, ``answer_pattern``, ``turns`` and
    ``append``, as far as they are given."""

    known: str | None = None
    """The rows are those of this data set, here or elsewhere: gsm8k, math-500, aime, aime-2025, gpqa-diamond, deepscaler or
    humaneval. They get the prompt, the answer and what else the set's reward wants (``r1jax/data/known.py``)."""
    config: str | None = None
    """The folder of the repository whose rows are meant; a data set on the Hub often has several."""
    files: str | None = None
    """A pattern of names (``data/{split}-*.parquet``). Without it the files of a split are those that have its name as a word
    in theirs; files that name no split are for training."""
    test_share: float = 0.0
    """Share of the rows for training, by a hash of their prompts, that are held out as the split ``test``."""
    fields: dict[str, str] = field(default_factory=dict)
    """A row's field -> the column that it is, ``{"prompt": "question"}``. The columns stay in the row too."""
    answer_pattern: str | None = None
    """A regular expression; the answer becomes what its first group finds in it."""
    append: str = ""
    """Put behind every prompt, such as the request for a box that R1's README advises for mathematics."""
    turns: Literal["last", "all"] = "last"
    """Of rows with ``messages`` and no ``prompt``: the ``last`` assistant message is the completion and what is before it the
    prompt; or ``all`` are, each in a row of its own, whose prompt holds what the template keeps of the earlier ones."""

    def __post_init__(self):
        if not 0 <= self.test_share < 1:
            raise ConfigError(f"test_share is {self.test_share}; it must be in [0, 1)")
        try:
            re.compile(self.answer_pattern or "")
        except re.error as e:
            raise ConfigError(f"answer_pattern {self.answer_pattern!r} is no regular expression: {e}") from e


@dataclass(frozen=True)
class Text:
    """Tokenizer and template."""

    tokenizer: str = "auto"
    """``auto`` takes the one that came with the initial weights; ``bytes`` is one token per UTF-8 byte plus the tags; else a
    ``tokenizer.json`` or a directory that holds one."""
    template: str = "auto"
    """``auto`` is the tokenizer's chat template, or r1-zero if it has none; ``chat``, ``r1``, ``r1-zero``, ``none``; or Jinja
    text, which holds ``{{``, with ``prompt`` and ``messages`` defined."""
    system: str | None = None
    """A system message put before the prompt's messages, unless they begin with one."""
    template_options: dict[str, Any] = field(default_factory=dict)
    """Passed on to the template (``enable_thinking`` and the like)."""
