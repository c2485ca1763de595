"""Whether the final answer is the row's, to the letter or within a tolerance. ``accuracy`` is the one for mathematics."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

from r1jax.rewards.extract import final_answer
from r1jax.rewards.notation import clean
from r1jax.rewards.quantity import Quantity, quantity
from r1jax.rewards.score import Score

_NUMBER = re.compile(r"[+\-−]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][+-]?\d{1,3})?%?|[+\-−]?\.\d+", re.ASCII)


def exact(prompt: Any, completion: str, row: dict, *, ignore_case: bool = False) -> Score:
    """1 if the final answer (``extract.final_answer``) is ``row["answer"]`` or, if that is a list, one of it; else 0.

    White space at the ends is dropped, and elsewhere any of it is one space.

    Raises:
      ValueError: the row has no answer that is a string or a number, or a list of these.
    """
    expected = row.get("answer")
    accepted = expected if isinstance(expected, list) else [expected]
    if not accepted or not all(isinstance(answer, str | int | float) and str(answer).strip() for answer in accepted):
        raise ValueError(f"row['answer'] is {expected!r:.80}; exact compares with a string, a number, or a list of these")
    fold = str.casefold if ignore_case else str
    answer = final_answer(completion)
    equal = answer is not None and _spaced(fold(answer)) in {_spaced(fold(str(one))) for one in accepted}
    return Score(float(equal), why=f"extracted {_short(answer)}, expected {_short(expected)}")


def numeric(prompt: Any, completion: str, row: dict, *, rel_tol: float = 1e-4, abs_tol: float = 0.0) -> Score:
    """1 if the number in the final answer is within ``abs_tol``, or ``rel_tol`` times the answer's size, of ``row["answer"]``.

    The final answer (``extract.final_answer``) is a number as ``accuracy`` reads it, or else the last number in it counts.
    Units are not compared; 50% is 0.5.

    Raises:
      ValueError: the row's answer is no number.
    """
    expected = _number(str(row.get("answer")))
    if expected is None:
        raise ValueError(f"row['answer'] is {row.get('answer')!r:.80}; numeric compares with a number")
    answer = final_answer(completion)
    given = None if answer is None else _number(answer, anywhere=True)
    # As fractions: a decimal that lies on the edge of the tolerance is within it.
    near = max(Fraction(str(rel_tol)) * abs(expected), Fraction(str(abs_tol)))
    right = given is not None and abs(given - expected) <= near
    return Score(float(right), why=f"extracted {_short(answer)}, expected {row['answer']} +- {float(near):g}")


def _tolerances(*, rel_tol: float = 1e-4, abs_tol: float = 0.0) -> None:
    if not 0 <= rel_tol < float("inf") or not 0 <= abs_tol < float("inf"):
        raise ValueError(f"rel_tol is {rel_tol} and abs_tol {abs_tol}; they must be >= 0")


numeric.ready = _tolerances


def _number(text: str, anywhere: bool = False) -> Fraction | None:
    found: Quantity | None = quantity(clean(text))
    if found is None and anywhere and (numbers := _NUMBER.findall(text)):
        found = quantity(clean(numbers[-1]))
    return None if found is None else found.value


def _spaced(text: str) -> str:
    return " ".join(text.split())


def _short(value: Any) -> str:
    return "nothing" if value is None else repr(str(value)[:80])
