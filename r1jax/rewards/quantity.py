"""Numbers as people write them, as exact fractions with a unit. No parser, no sympy: most answers end here."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

MAX_CHARS = 300
"""A longer text is not taken for a number."""

_INT = r"(?:\d{1,3}(?:,\d{3})+|\d+)"
_NUM = rf"(?:{_INT}(?:\.\d*)?|\.\d+)"
_TEN = r"10\s*\^\s*(?:\{\s*(?P<p>[+-]?\d{1,4})\s*\}|(?P<p1>\d)(?!\d))"
_POWER = rf"(?:[eE](?P<e>[+-]?\d{{1,4}})|\s*(?:\\times|\\cdot|×|\*)\s*{_TEN})"
_FORMS = tuple(
    re.compile(form, re.ASCII)
    for form in (
        rf"(?P<n>{_NUM})(?:{_POWER})?",
        rf"(?:(?P<w>{_INT})\s*)?\\frac\s*\{{\s*(?P<ns>[+-]?)(?P<n>{_NUM})\s*\}}\s*\{{\s*(?P<ds>[+-]?)(?P<d>{_NUM})\s*\}}",
        r"(?:(?P<w>\d+)\s*)?\\frac\s*(?P<n>\d)\s*(?P<d>\d)",
        rf"(?:(?P<w>{_INT})\s+)?(?P<n>{_NUM})\s*/\s*(?P<ds>[+-]?)(?P<d>{_NUM})",
        r"(?P<i>\d*)\.(?P<f>\d*)\\overline\s*\{\s*(?P<r>\d+)\s*\}",
        _TEN,
    )
)
_SIGN = re.compile(r"\s*(?P<c1>[$€£])?\s*(?P<sign>[+-]?)\s*(?P<c2>[$€£])?\s*")
_TEXT_UNIT = re.compile(
    r"\s*\\(?:text|mathrm|textrm|mbox)\s*\{\s*(?P<unit>[^{}\\]*?)\s*\}(?P<si>)(?:\s*\^\s*\{?\s*(?P<power>\d)\s*\}?)?\s*$"
)
_DEGREES = re.compile(r"\s*(?:\^\s*\{?\s*\\circ\s*\}?|\\degree|°)\s*$")
_WORD_UNIT = re.compile(
    r"(?:\s+(?P<unit>[A-Za-z]{2,}(?:\s+[A-Za-z]+)*|[mgshlLNJWVKCF])|(?P<si>[cmk][mgl]|ft|lb|oz|min|mph))"
    r"(?:\s*\^\s*\{?\s*(?P<power>\d)\s*\}?)?$"
)
_NOT_UNITS = {"pi", "sin", "cos", "tan", "cot", "sec", "csc", "log", "ln", "exp", "sqrt", "and", "or", "mod", "choose", "over"}
_WRAPS = tuple(
    re.compile(wrap, re.DOTALL)
    for wrap in (
        r"\$\$([^$]*)\$\$",
        r"\$([^$]+)\$",
        r"\\\(((?:(?!\\\)).)*)\\\)",
        r"\\\[((?:(?!\\\]).)*)\\\]",
        r"\*\*([^*]+)\*\*",
        r"\\(?:text|textbf|mathrm|mathbf|textrm|mbox)\s*\{([^{}]*)\}",
        r"\{([^{}]*)\}",
        r"\(([A-Z])\)",
    )
)


class Quantity(NamedTuple):
    value: Fraction
    unit: str
    """'' if none is written; ``%`` is part of the value, not a unit."""


def clean(text: str) -> str:
    """The text without what does not change its meaning: math delimiters, spacing commands, size commands, bold, final
    punctuation; one space for any white space; ASCII minus; ``\\frac`` for its variants."""
    text = text.replace("{,}", ",").replace("\\$", "$").replace("\\%", "%").replace("−", "-").replace("~", " ")
    text = re.sub(r"\\[dtc]frac(?![a-z])", r"\\frac", text)
    text = re.sub(r"(?<!\\)\\(?:[,!;:]|(?:left|right|displaystyle)(?![a-z]))", "", text)
    text = re.sub(r"(?<!\\)\\(?: |quad(?![a-z]))", " ", text)
    text = " ".join(text.split())
    while True:
        before = text
        text = text.strip().rstrip(".,;:").rstrip() if not text.endswith("\\") else text
        for wrap in _WRAPS:
            if match := wrap.fullmatch(text):
                text = match.group(1).strip()
        if text == before:
            return text


def quantity(text: str) -> Quantity | None:
    """The number that ``text``, already ``clean``, writes.

    That is an integer or decimal with or without thousands separators, ``1.5e3``, ``1.5 \\times 10^3``, a fraction, a mixed
    number or ``0.\\overline{3}``; a sign, ``$``, ``%`` or a unit may stand beside it.

    None if it is anything else.
    """
    if len(text) > MAX_CHARS:
        return None
    body, unit = split_unit(text)
    if unit == "" and (match := _WORD_UNIT.search(body)) and not _NOT_UNITS.intersection((match["unit"] or "").lower().split()):
        body, unit = body[: match.start()], _unit(match)
    sign = _SIGN.match(body)
    currency = sign["c1"] or sign["c2"] or ""
    body = body[sign.end() :].rstrip()
    percent = body.endswith("%")
    body = body[:-1].rstrip() if percent else body
    value = _value(body)
    if value is None or (currency and unit):
        return None
    return Quantity((-value if sign["sign"] == "-" else value) / (100 if percent else 1), currency or unit)


def split_unit(text: str) -> tuple[str, str]:
    """``\\sqrt{2}\\text{ cm}`` -> (``\\sqrt{2}``, ``cm``): a unit that LaTeX marks as text, or degrees. The unit may be ''."""
    if match := _DEGREES.search(text):
        return text[: match.start()], "degree"
    if (match := _TEXT_UNIT.search(text)) and match.start() > 0:
        return text[: match.start()], _unit(match)
    return text, ""


def _unit(match: re.Match) -> str:
    """Plural and singular are one unit; so are different cases."""
    unit = (match["unit"] or match["si"]).lower().rstrip(".")
    if len(unit) > 3:
        unit = unit.removesuffix("s")
    return unit + (match["power"] or "")


def _value(body: str) -> Fraction | None:
    for form in _FORMS:
        if match := form.fullmatch(body):
            found = match.groupdict()
            break
    else:
        return None
    if "r" in found:
        return _repeating(found["i"] or "0", found["f"], found["r"])
    value = _decimal(found["n"]) if "n" in found else Fraction(1)
    if "d" in found:
        divisor = _decimal(found["d"])
        if divisor == 0:
            return None
        value /= divisor
        signs = (found.get("ns") or "") + (found.get("ds") or "")
        if found.get("w"):
            return None if signs else _decimal(found["w"]) + value
        return -value if signs.count("-") == 1 else value
    power = next((found[k] for k in ("e", "p", "p1") if found.get(k)), None)
    return value if power is None else value * Fraction(10) ** int(power)


def _decimal(text: str) -> Fraction:
    return Fraction(text.replace(",", "").rstrip(".") or "0")


def _repeating(whole: str, fixed: str, period: str) -> Fraction:
    """whole.fixed(period)(period)... = whole + (fixed + period / (10^p - 1)) / 10^f."""
    tail = Fraction(int(period), 10 ** len(period) - 1)
    return int(whole) + (int(fixed or "0") + tail) / 10 ** len(fixed)
