"""Numbers written in words, to be written in digits: an easy task for a small pretrained language model.

    prompt   two thousand seven hundred sixty-two =
    answer   2762

A small model needs examples to see what is wanted: ``shots`` makes the prompt a conversation in which the assistant has
answered some already.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from r1jax.config import ConfigError
from r1jax.data.split import held_out

TEST_ROWS = 256
TEST_SHARE = 1 / 3
"""Of the 900 three-digit numbers alone it leaves more than ``TEST_ROWS``."""

_SMALL = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen"),
    *("fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def rows(
    split: str, *, digits: Sequence[int] = (3, 4), shots: Sequence[int] = (), seed: int = 0, size: int = 1_000_000
) -> Sequence[dict]:
    """Rows with ``prompt`` and ``answer``. A hash of the number alone decides its side of the split.

    Args:
      split: ``train``; or ``test``, ``TEST_ROWS`` different numbers, whatever ``seed`` and ``size`` are.
      digits: how many digits the numbers have, each count in ``digits`` (3 to 6) equally often.
      shots: numbers of the training side that the conversation answers before the prompt; without any the prompt is a text.
      seed: of the training rows. Row i is a function of the seed, ``digits`` and i alone.
      size: training rows. Numbers come again.

    Raises:
      ConfigError: an unknown split or an option out of range.
    """
    if split not in ("train", "test"):
        raise ConfigError(f"number_words has no split {split!r}; use 'train' or 'test'")
    if not digits or not all(3 <= n <= 6 for n in digits):
        raise ConfigError(f"number_words: digits is {digits}; give counts from 3 to 6")
    if size < 1:
        raise ConfigError(f"number_words: size is {size}; it must be at least 1")
    if leaked := [n for n in shots if held_out(str(n), TEST_SHARE)]:
        raise ConfigError(f"number_words: shots {leaked} are held-out numbers; use others")
    return _test(digits, shots) if split == "test" else _Train(digits, shots, seed, size)


def in_words(n: int) -> str:
    """English words of 0 <= n < 1,000,000, without 'and': 2762 is 'two thousand seven hundred sixty-two'."""
    if n < 20:
        return _SMALL[n]
    if n < 100:
        return _TENS[n // 10 - 2] + (f"-{_SMALL[n % 10]}" if n % 10 else "")
    unit, name = (100, "hundred") if n < 1000 else (1000, "thousand")
    return f"{in_words(n // unit)} {name}" + (f" {in_words(n % unit)}" if n % unit else "")


class _Train(Sequence):
    def __init__(self, digits: Sequence[int], shots: Sequence[int], seed: int, size: int):
        self.digits, self.shots, self.seed, self.size = digits, shots, seed, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < self.size:
            raise IndexError(index)
        return _row(_number(random.Random(f"{self.seed}/{index}"), self.digits, test=False), self.shots)


def _test(digits: Sequence[int], shots: Sequence[int]) -> list[dict]:
    rng = random.Random("test")
    numbers: dict[int, None] = {}
    while len(numbers) < TEST_ROWS:
        numbers[_number(rng, digits, test=True)] = None
    return [_row(n, shots) for n in numbers]


def _number(rng: random.Random, digits: Sequence[int], test: bool) -> int:
    # Random.random is the one stream that Python promises to keep from version to version.
    low = 10 ** (digits[int(rng.random() * len(digits))] - 1)
    while held_out(str(n := low + int(rng.random() * 9 * low)), TEST_SHARE) != test:
        pass
    return n


def _row(n: int, shots: Sequence[int]) -> dict:
    asked = f"{in_words(n)} ="
    if not shots:
        return {"prompt": asked, "answer": str(n)}
    said = [
        {"role": role, "content": text} for k in shots for role, text in (("user", f"{in_words(k)} ="), ("assistant", str(k)))
    ]
    return {"prompt": [*said, {"role": "user", "content": asked}], "answer": str(n)}
