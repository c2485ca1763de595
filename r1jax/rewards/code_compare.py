"""Whether what a program wrote, or a function returned, is what a test expects. Runs outside the sandbox, on hostile data."""

from __future__ import annotations

import math
from typing import Any


def same_text(got: str, expected: str, tolerance: float | None) -> bool:
    """Equal, but for white space at the ends of lines and empty lines at the end; with ``tolerance``, word by word."""
    if tolerance is None:
        return _lines(got) == _lines(expected)
    words = got.split(), expected.split()
    return len(words[0]) == len(words[1]) and all(a == b or _near(a, b, tolerance) for a, b in zip(*words, strict=True))


def same_value(got: Any, expected: Any, tolerance: float | None) -> bool:
    """``got`` from ``plain``, ``expected`` from the row's JSON; equal as in Python."""
    if isinstance(got, list) and isinstance(expected, list):
        return len(got) == len(expected) and all(same_value(a, b, tolerance) for a, b in zip(got, expected, strict=True))
    if isinstance(got, dict) and isinstance(expected, dict):
        return got.keys() == expected.keys() and all(same_value(got[k], expected[k], tolerance) for k in got)
    if tolerance is not None and isinstance(got, int | float) and isinstance(expected, int | float):
        return got == expected or math.isclose(got, expected, rel_tol=tolerance, abs_tol=tolerance)
    return got == expected


def plain(encoded: Any) -> Any:
    """What ``code_inside.encode`` wrote, as JSON would hold it: tuples are lists, keys are texts.

    Numbers are never hashed: a program could choose them so that their hashes collide.

    Raises:
      ValueError: JSON has no such type. TypeError, KeyError: ``encode`` does not write such a thing.
    """
    if isinstance(encoded, list):
        return [plain(v) for v in encoded]
    if not isinstance(encoded, dict):
        return encoded
    ((kind, content),) = encoded.items()
    if kind == "int":
        return int(content, 16)
    if kind == "tuple":
        return [plain(v) for v in content]
    if kind == "dict":
        return {_key(k): plain(v) for k, v in content}
    raise ValueError(f"it returned a {kind}, which JSON cannot hold")


def _key(encoded: Any) -> str:
    if isinstance(encoded, bool) or encoded is None:
        return {True: "true", False: "false", None: "null"}[encoded]
    if isinstance(encoded, str | int | float):
        return str(encoded)
    raise ValueError("a dictionary's key is no scalar, which JSON cannot hold")


def _lines(text: str) -> list[str]:
    lines = [line.rstrip() for line in text.splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _near(got: str, expected: str, tolerance: float) -> bool:
    try:
        return math.isclose(float(got), float(expected), rel_tol=tolerance, abs_tol=tolerance)
    except ValueError:
        return False
