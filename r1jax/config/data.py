"""Where rows come from, how a prompt becomes text, and how text becomes tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from r1jax.config.base import ConfigError


@dataclass(frozen=True)
class Source:
    """Rows ``{"prompt": str or messages, "answer": any, "source": str, ...}`` and the rewards that score them."""

    path: str = "r1jax.data.arithmetic:rows"
    """A JSONL file of rows; ``reasoning_gym:TASK`` (extra); or ``pkg.mod:f`` / ``file.py:f``, where f(split, **options)
    returns a sequence of rows."""
    name: str = "arithmetic"
    """Written into each row's ``source``; metrics are kept per name."""
    split: str = "train"
    weight: float = 1.0
    """Share of this source in the mixture, relative to the others."""
    limit: int | None = None
    """Use only the first N rows."""
    options: dict[str, Any] = field(default_factory=dict)
    """Passed on to the source: a task's difficulty, a size, a seed."""
    rewards: dict[str, float] = field(default_factory=lambda: {"accuracy": 1.0, "format": 1.0})
    """Reward name -> weight; the total is the weighted sum. A name is a built-in, ``pkg.mod:f`` or ``path/file.py:f``."""

    def __post_init__(self):
        if self.weight < 0:
            raise ConfigError(f"source {self.name!r}: weight is {self.weight}; it must be >= 0")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"source {self.name!r}: limit is {self.limit}; it must be at least 1")


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
