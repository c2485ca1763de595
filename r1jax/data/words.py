"""Texts as words, and runs of words as numbers: what decontamination and deduplication compare.

A word is a number, or a run of letters, or one character of a script that is written without spaces. Case, width (NFKC),
punctuation and the commas within numbers make no difference.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator
from typing import Any

import numpy as np

# Thai and Lao, Burmese, Khmer, kana, Han.
_UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = rf"\d+(?:\.\d+)*|[{_UNSPACED}]|[^\W\d_{_UNSPACED}]+"
WORD = re.compile(_WORD)
WORD_OR_SIGN = re.compile(rf"{_WORD}|[-+*/=<>^%|±×÷·√≤≥≠≈∑∏∫∞−]")
"""Signs tell 12 + 34 from 12 - 34."""
_CHARACTER = re.compile(f"[{_UNSPACED}]")
_COMMA_IN_NUMBER = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")

SPACED, UNSPACED = 8, 5
"""Weights: 1.6 characters of an unspaced script count as one word, as in the language reward."""
_BASE = 0x9E3779B97F4A7C15
_MOST_KNOWN = 1 << 20


def normal(text: str) -> str:
    """``text`` with all that makes no difference but punctuation taken out."""
    text = text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()
    return _COMMA_IN_NUMBER.sub("", text) if "," in text else text


def texts(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(field, text) of every string in a row, however deep. Of texts that stand there twice, as where a column also goes by
    another name, the first."""
    seen = set()
    for field, value in row.items():
        for text in _strings(value):
            if text not in seen:
                seen.add(text)
                yield field, text


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


def prompt_text(row: dict[str, Any]) -> str:
    """A row's prompt as one text; of messages what they say, one under the other."""
    prompt = row["prompt"]
    return prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)


class _Numbers(dict):
    """Word -> 64 bits that are the same in every run. Forgets all when there are too many, for its memory is bounded."""

    def __missing__(self, word: str) -> int:
        if len(self) >= _MOST_KNOWN:
            self.clear()
        number = self[word] = int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest())
        return number


_numbers = _Numbers()


def numbers(words: list[str]) -> np.ndarray:
    """uint64[N]: a hash of each word."""
    return np.fromiter(map(_numbers.__getitem__, words), np.uint64, len(words))


def weights(words: list[str]) -> np.ndarray:
    """int64[N]: how much each counts."""
    return np.fromiter((UNSPACED if _CHARACTER.match(word) else SPACED for word in words), np.int64, len(words))


class Runs:
    """Hashes of runs of words, any of them at once."""

    def __init__(self):
        self.powers = self.inverse = np.ones(1, np.uint64)

    def hash(self, numbers: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """uint64[M] of the words from ``starts[i]`` up to ``ends[i]``: a polynomial modulo 2^64, so equal runs have equal
        hashes wherever they stand; two different ones have with a chance of about 2^-58.

        Args:
          numbers: uint64[N] of ``numbers``.
          starts: int64[M].
          ends: int64[M], at most N.
        """
        if len(numbers) > len(self.powers):
            self._grow(2 * len(numbers))
        sums = np.zeros(len(numbers) + 1, np.uint64)
        (numbers * self.powers[: len(numbers)]).cumsum(out=sums[1:])
        found = (sums[ends] - sums[starts]) * self.inverse[starts]
        found ^= found >> np.uint64(32)
        found *= np.uint64(0xD6E8FEB86659FD93)
        found ^= found >> np.uint64(32)
        return found

    def _grow(self, size: int) -> None:
        ones = np.full(size - 1, _BASE, np.uint64), np.full(size - 1, pow(_BASE, -1, 1 << 64), np.uint64)
        self.powers, self.inverse = (np.concatenate([np.ones(1, np.uint64), np.cumprod(one)]) for one in ones)


RUNS = Runs()


def runs(words: list[str], size: int, ascii: bool) -> tuple[np.ndarray, np.ndarray]:
    """(starts, ends), int64[M] each, of every run that counts as at least ``size`` words and is as short as that allows.

    Args:
      ascii: there are no words of unspaced scripts, so that nothing need be weighed.
    """
    if ascii:
        starts = np.arange(len(words) - size + 1)
        return starts, starts + size
    total = np.concatenate([np.zeros(1, np.int64), np.cumsum(weights(words))])
    starts = np.arange(total.searchsorted(total[-1] - SPACED * size, "right"))
    return starts, total.searchsorted(total[starts] + SPACED * size)
