"""Whether the final answer equals the row's, for mathematics (DeepSeek-R1's rule-based accuracy reward)."""

from __future__ import annotations

import dataclasses
import functools
import logging
import re
from typing import Any

from r1jax.rewards.extract import final_answer, marked
from r1jax.rewards.guard import MAX_CHARS, too_costly
from r1jax.rewards.notation import clean
from r1jax.rewards.quantity import Quantity, quantity, split_unit
from r1jax.rewards.score import Score
from r1jax.rewards.slow_import import slow_import

_WORDS = re.compile(r"[^\W\d_]{2,}(?:[ '-][^\W\d_]+)*")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")
_IDLE_SPACE = re.compile(r"(?<!\d)\s|\s(?!\d)")
_ASSIGNMENT = re.compile(r"[A-Za-z](?:_(?:\w|\{\w+\}))?\s*=\s*(?=[^=]+$)")
_DECIMALS = 12
"""Places to which values without an exact form must agree: so 1.414214 is not a square root of 2."""


def accuracy(prompt: Any, completion: str, row: dict) -> Score:
    """1 if the final answer (``extract.final_answer``) equals ``row["answer"]``, a string or a number; else 0.

    Numbers are compared exactly: 0.5 is 1/2 and 50%, 0.333333 is not 1/3, 50 is not 50%. A unit that only one side writes is
    ignored; two different units differ. What is not a plain number is compared by math-verify. Every rule stands in the README
    of this folder, and examples of each in ``tests/test_rewards_math.py``.

    Raises:
      ValueError: the row's answer cannot be compared with.
    """
    expected = _expected(row)
    answer = final_answer(completion)
    if answer is None:
        return Score(0.0, why=f"no answer after the thought, expected {_short(expected)}")
    equal, note = _equal(answer, expected)
    return Score(float(equal), why=f"extracted {_short(answer)}, expected {_short(expected)}{note}")


def _expected(row: dict) -> str:
    if "answer" not in row:
        raise ValueError("the row has no 'answer'")
    answer = row["answer"]
    if not isinstance(answer, str | int | float):
        raise ValueError(f"row['answer'] is a {type(answer).__name__}; accuracy compares with a string or a number")
    return marked(str(answer))


def _equal(answer: str, expected: str) -> tuple[bool, str]:
    """Whether they are equal, and what to add to the explanation."""
    if len(answer) > len(expected) + MAX_CHARS:
        return False, f" (not compared: longer than {MAX_CHARS} characters)"
    answer, expected = clean(answer), clean(expected)
    if ("=" in answer) != ("=" in expected):  # 'x = 4' answers what '4' answers
        answer, expected = _ASSIGNMENT.sub("", answer, count=1), _ASSIGNMENT.sub("", expected, count=1)
    if not expected:
        raise ValueError("row['answer'] is empty")
    if _IDLE_SPACE.sub("", answer) == _IDLE_SPACE.sub("", expected):
        return True, ""
    if _WORDS.fullmatch(expected):
        return answer.casefold() == expected.casefold(), ""
    if answer.isalpha() and expected.isalpha():  # a choice or a variable, for which case counts
        return False, ""
    if "\n" in answer and "\n" not in expected and "\\begin" not in answer:
        return False, " (not compared: more than one line)"
    ours, theirs = quantity(answer), quantity(expected)
    if ours is not None and theirs is not None:
        return _same_quantity(ours, theirs), ""
    (ours, our_unit), (theirs, their_unit) = split_unit(answer), split_unit(expected)
    if our_unit and their_unit and our_unit != their_unit:
        return False, " (another unit)"
    if _is_prose(theirs):
        return ours.casefold() == theirs.casefold(), ""
    if _is_prose(ours):
        return False, " (not compared: words, not a formula)"
    if None not in (brackets := {_brackets(ours), _brackets(theirs)}) and len(brackets) > 1:
        return False, " (other brackets)"
    if why := too_costly(theirs):
        raise ValueError(f"row['answer'] is not compared with: it has {why}")
    if why := too_costly(ours):
        return False, f" (not compared: {why})"
    return _symbolically_equal(ours, theirs), ""


def _is_prose(text: str) -> bool:
    return len(_WORD.findall(text)) >= 3


def _brackets(text: str) -> str | None:
    """Of several values: ``()`` of a tuple or open interval, ``[)`` and so on, '' of a set or a list without brackets. None of
    anything else."""
    text = text.replace("\\{", "{").replace("\\}", "}")
    depth, commas, outside = 0, set(), False
    for character in text[:-1]:
        depth += (character in "([{") - (character in ")]}")
        outside = outside or depth == 0
        if character == ",":
            commas.add(depth)
    if 0 in commas:
        return ""
    if outside or 1 not in commas:
        return None
    return "" if text[0] == "{" else text[0] + text[-1]


def _same_quantity(a: Quantity, b: Quantity) -> bool:
    return a.value == b.value and (a.unit == b.unit or not a.unit or not b.unit)


def _symbolically_equal(answer: str, expected: str) -> bool:
    verifier = slow_import("math_verify")
    # It warns that its own time limits, by SIGALRM, are off: the worker's clock uses that signal.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    theirs = _parse(expected)
    ours = _parse(answer) if theirs else []
    if not ours or not theirs:
        return False
    return verifier.verify(theirs, ours, float_rounding=_DECIMALS, allow_set_relation_comp=True, timeout_seconds=None)


@functools.lru_cache(maxsize=64)
def _parse(latex: str) -> list:
    verifier = slow_import("math_verify")
    default = verifier.LatexExtractionConfig()
    # It would drop units, and with them the m of '10m'; ours are split off already.
    normalization = dataclasses.replace(default.normalization_config, units=False)
    latex_only = dataclasses.replace(default, boxed_match_priority=0, normalization_config=normalization)
    return verifier.parse(f"\\boxed{{{latex}}}", [latex_only], fallback_mode="no_fallback", parsing_timeout=None)


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
