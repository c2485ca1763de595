"""What both sides are given: prompts, lengths, and a reward. Reward workers load this file, so it imports no jax."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

WORDS = (
    "the of and to in is that it was for on are as with his they at be this from have or by one had not but what all were when "
    "we there can an your which their said if do will each about how up out them then she many some so these would other into "
    "has more her two like him see time could no make than first been its who now people my made over did down only way find "
    "use may water long little very after words called just where most know"
)
TRIES = 100


def random_tokens(rng: np.random.Generator, rows: int, length: int, vocab: int) -> list[list[int]]:
    return rng.integers(0, vocab, (rows, length)).tolist()


def ragged_lengths(rng: np.random.Generator, count: int, longest: int) -> list[int]:
    """``count`` lengths from 2 to ``longest`` whose mean is as close to a quarter of ``longest`` as whole numbers allow: an
    exponential distribution, cut. Most answers are short, and a few are as long as they may be."""
    drawn, low, high = rng.exponential(1.0, count), 0.0, 4.0 * longest
    for _ in range(60):
        scale = (low + high) / 2
        lengths = np.clip(np.rint(scale * drawn), 2, longest).astype(int)
        low, high = (scale, high) if lengths.mean() < longest / 4 else (low, scale)
    return lengths.tolist()


def texts(rng: np.random.Generator, count: int, length: int, encode: Callable[[str], list[int]], decode: Callable) -> list[str]:
    """Different prompts of words, each of exactly ``length`` tokens.

    Raises:
      ValueError: the tokenizer does not cut words at any place, so that none was found.
    """
    found: dict[str, None] = {}
    for _ in range(TRIES * count):
        text = decode(encode(" ".join(rng.choice(WORDS.split(), length)))[:length])
        if len(encode(text)) == length:
            found[text] = None
        if len(found) == count:
            return list(found)
    raise ValueError(f"of {TRIES * count} prompts only {len(found)} were of {length} tokens; change --prompt-tokens")


def rows(split: str, prompts: Sequence[str]) -> list[dict]:
    """A source: the prompts given."""
    return [{"prompt": text, "answer": None} for text in prompts]


def checksum(prompt: Any, completion: str, row: dict) -> float:
    """A reward from 0 to 1 that any other letter changes."""
    return sum((i + 1) * ord(c) for i, c in enumerate(completion)) % 7 / 6
