"""The countdown task, as TinyZero poses it (github.com/Jiayi-Pan/TinyZero): make a target out of given numbers.

    prompt   Using the numbers 7, 19, 36, 55, write an expression that equals 65. ...
    answer   (55 - 19) + (36 - 7)

``solved`` is its reward: any expression that is right earns it, not only the row's answer.
"""

from __future__ import annotations

import ast
import operator
import random
import re
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from r1jax.config import ConfigError
from r1jax.data.split import held_out
from r1jax.rewards.extract import final_answer
from r1jax.rewards.score import Score

TEST_ROWS = 512
TEST_SHARE = 1 / 8
LARGEST = 99
TARGETS = range(10, 101)
MAX_CHARS = 200
"""A longer expression is not looked at."""

_OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}

# -- Rows


def rows(split: str, *, numbers: Sequence[int] = (3, 4), seed: int = 0, size: int = 1_000_000) -> Sequence[dict]:
    """Rows with ``prompt``, ``answer`` (a solution that meets whole numbers only), ``numbers`` and ``target``. A hash of the
    numbers, in any order, and the target decides a problem's side of the split.

    Args:
      split: ``train``; or ``test``, ``TEST_ROWS`` different problems, whatever ``seed`` and ``size`` are.
      numbers: how many numbers a problem has, each count in ``numbers`` (3 to 6) equally often. They are 1 to ``LARGEST``.
      seed: of the training rows. Row i is a function of the seed, ``numbers`` and i alone.
      size: training rows.

    Raises:
      ConfigError: an unknown split or an option out of range.
    """
    if split not in ("train", "test"):
        raise ConfigError(f"countdown has no split {split!r}; use 'train' or 'test'")
    if not numbers or not all(3 <= n <= 6 for n in numbers):
        raise ConfigError(f"countdown: numbers is {numbers}; give counts from 3 to 6")
    if size < 1:
        raise ConfigError(f"countdown: size is {size}; it must be at least 1")
    return _test(numbers) if split == "test" else _Train(numbers, seed, size)


class _Train(Sequence):
    def __init__(self, numbers: Sequence[int], seed: int, size: int):
        self.numbers, self.seed, self.size = numbers, seed, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < self.size:
            raise IndexError(index)
        return _row(random.Random(f"{self.seed}/{index}"), self.numbers, test=False)


def _test(numbers: Sequence[int]) -> list[dict]:
    rng = random.Random("test")
    found: dict[str, dict] = {}
    while len(found) < TEST_ROWS:
        row = _row(rng, numbers, test=True)
        found.setdefault(_problem(row["numbers"], row["target"]), row)
    return list(found.values())


def _problem(numbers: Sequence[int], target: int) -> str:
    return f"{sorted(numbers)} {target}"


def _row(rng: random.Random, counts: Sequence[int], test: bool) -> dict:
    while True:
        numbers = [1 + _below(rng, LARGEST) for _ in range(counts[_below(rng, len(counts))])]
        target, solution = _combine(rng, numbers)
        if target in TARGETS and held_out(_problem(numbers, target), TEST_SHARE) == test:
            break
    prompt = (
        f"Using the numbers {', '.join(map(str, numbers))}, write an expression that equals {target}. Use each number exactly "
        "once, the operations + - * / and parentheses, and give the expression alone as the answer, for example (1 + 2) / 3"
    )
    return {"prompt": prompt, "answer": solution, "numbers": numbers, "target": target}


def _combine(rng: random.Random, numbers: Sequence[int]) -> tuple[int, str]:
    """The value and text of a random expression that uses each number once and meets whole numbers above 0 only."""
    terms = [(n, str(n)) for n in numbers]
    while len(terms) > 1:
        (a, left), (b, right) = (terms.pop(_below(rng, len(terms))) for _ in range(2))
        results = {"+": a + b, "*": a * b} | ({"-": a - b} if a > b else {}) | ({} if a % b else {"/": a // b})
        sign = list(results)[_below(rng, len(results))]
        terms.append((results[sign], f"({left} {sign} {right})"))
    ((value, text),) = terms
    return value, text[1:-1]


def _below(rng: random.Random, n: int) -> int:
    # Random.random is the one stream that Python promises to keep from version to version.
    return int(rng.random() * n)


# -- The reward


def solved(prompt: Any, completion: str, row: dict) -> Score:
    """1 if the final answer (``extract.final_answer``) is an expression of ``row["numbers"]``, each used exactly once, with the
    exact value ``row["target"]``; else 0."""
    text = final_answer(completion)
    if text is None:
        return Score(0.0, why="no answer after the thought")
    try:
        value, used = evaluate(text)
    except ValueError as e:
        return Score(0.0, why=f"{text[:80]!r}: {e}")
    if Counter(used) != Counter(row["numbers"]):
        return Score(0.0, why=f"{text!r} uses {sorted(used)}, not {sorted(row['numbers'])}")
    return Score(float(value == row["target"]), why=f"{text!r} is {value}, the target {row['target']}")


def evaluate(text: str) -> tuple[Fraction, list[int]]:
    """The exact value of an expression of whole numbers, ``+ - * /`` and parentheses, and the numbers in it.

    Raises:
      ValueError: it is no such expression, is longer than ``MAX_CHARS``, or divides by zero.
    """
    text = " ".join(text.split())
    if len(text) > MAX_CHARS or not re.fullmatch(r"[0-9+\-*/() ]+", text):
        raise ValueError("not an expression of numbers, + - * / and parentheses")
    used: list[int] = []

    def value(node: ast.expr) -> Fraction:
        match node:
            case ast.Constant(value=int(number)):
                used.append(number)
                return Fraction(number)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -value(operand)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATIONS:
                return _OPERATIONS[type(op)](value(left), value(right))
        raise ValueError("it has something else than + - * /")

    try:
        return value(ast.parse(text, mode="eval").body), used
    except SyntaxError as e:
        raise ValueError("it does not parse") from e
    except ZeroDivisionError as e:
        raise ValueError("it divides by zero") from e
