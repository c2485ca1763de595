"""The quickstart's task: sums of numbers with the same number of digits, worked out digit by digit from the right.

    prompt      47+38=
    completion  <think>15 8</think><answer>85</answer>

Each step is the sum of two digits and, after the first, of what the step before carried: 7+8=15, then 4+3+1=8.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from r1jax.config import ConfigError
from r1jax.data.split import held_out

TEST_ROWS = 512
TEST_SHARE = 1 / 8


def rows(
    split: str, *, digits: int = 2, noise: float = 0.0, forget_carry: float = 0.0, seed: int = 0, size: int = 1_000_000
) -> Sequence[dict]:
    """Rows with ``prompt``, ``answer`` and ``completion``.

    ``a + b`` and ``b + a`` are on the same side of the split, which a hash of the problem alone decides: no option moves a
    problem from one side to the other.

    Args:
      split: ``train``; or ``test``, ``TEST_ROWS`` different problems, without mistakes, whatever ``seed`` and ``size`` are.
      digits: of each number, at least 2. The numbers have no leading zeros.
      noise: probability that a step of a training completion states a wrong sum, equally likely any other of 0..19. The steps
        after it and the answer go on from there.
      forget_carry: probability that a training completion drops a carry of 1, at each step that has one.
      seed: of the training problems and of their mistakes. Row i is a function of the seed, these options and i alone.
      size: training rows. Problems come again, with other mistakes.

    Raises:
      ConfigError: an unknown split or an option out of range.
    """
    if split not in ("train", "test"):
        raise ConfigError(f"arithmetic has no split {split!r}; use 'train' or 'test'")
    if digits < 2:
        raise ConfigError(f"arithmetic: digits is {digits}; use at least 2, for one-digit sums are too few to hold some out")
    if not 0 <= noise <= 1 or not 0 <= forget_carry <= 1:
        raise ConfigError(f"arithmetic: noise is {noise} and forget_carry is {forget_carry}; they are probabilities, 0 to 1")
    if size < 1:
        raise ConfigError(f"arithmetic: size is {size}; it must be at least 1")
    return _test(digits) if split == "test" else _Train(digits, noise, forget_carry, seed, size)


class _Train(Sequence):
    def __init__(self, digits: int, noise: float, forget_carry: float, seed: int, size: int):
        self.digits, self.noise, self.forget_carry, self.seed, self.size = digits, noise, forget_carry, seed, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < self.size:
            raise IndexError(index)
        rng = random.Random(f"{self.seed}/{index}")
        return _row(*problem(rng, self.digits, test=False), rng, self.noise, self.forget_carry)


def _test(digits: int) -> list[dict]:
    rng = random.Random("test")
    problems: dict[tuple[int, int], None] = {}
    while len(problems) < TEST_ROWS:
        problems[problem(rng, digits, test=True)] = None
    return [_row(a, b, rng, 0.0, 0.0) for a, b in problems]


def problem(rng: random.Random, digits: int, test: bool) -> tuple[int, int]:
    """Two numbers of so many digits, of one side of the split."""
    low, high = 10 ** (digits - 1), 10**digits
    while True:
        a, b = (low + _below(rng, high - low) for _ in range(2))
        if held_out(f"{min(a, b)}+{max(a, b)}", TEST_SHARE) == test:
            return a, b


def _row(a: int, b: int, rng: random.Random, noise: float, forget_carry: float) -> dict:
    steps, answer = worked(a, b, rng, noise, forget_carry)
    completion = f"<think>{' '.join(map(str, steps))}</think><answer>{answer}</answer>"
    return {"prompt": f"{a}+{b}=", "answer": str(a + b), "completion": completion}


def worked(a: int, b: int, rng: random.Random, noise: float, forget_carry: float) -> tuple[list[int], str]:
    """The sums of the digits, 0 to 19 each, and the answer that they lead to, with the mistakes that ``rows`` describes."""
    steps, written, carry, total = [], "", 0, 0
    for x, y in zip(reversed(str(a)), reversed(str(b)), strict=True):
        if carry and rng.random() < forget_carry:
            carry = 0
        total = int(x) + int(y) + carry
        if rng.random() < noise:
            total = (total + 1 + _below(rng, 19)) % 20
        steps.append(total)
        written = str(total % 10) + written
        carry = total // 10
    return steps, str(total // 10 or "") + written


def _below(rng: random.Random, n: int) -> int:
    # Random.random is the one stream that Python promises to keep from version to version.
    return int(rng.random() * n)
