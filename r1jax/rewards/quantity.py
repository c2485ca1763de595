"""Numbers as people write them, as exact fractions with a unit. No parser, no sympy: most answers end here."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

MAX_CHARS = 300
"""A longer text is not taken for a number."""

_INT = r"(?:\d{1,3}(?:,\d{3})+|\d{1,3}(?: \d{3})+|\d+)"
_NUM = rf"(?:{_INT}(?:\.\d*)?|\.\d+)"
_TEN = r"10\s*\^\s*(?:\{\s*(?P<p>[+-]?\d{1,4})\s*\}|(?P<p1>\d)(?!\d))"
_POWER = rf"(?:[eE](?P<e>[+-]?\d{{1,4}})|\s*(?:\\times|\\cdot|\*)\s*{_TEN})"
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
_SIGN = re.compile(r"\s*(?P<c1>[$€£¥])?\s*(?P<sign>[+-]?)\s*(?P<c2>[$€£¥])?\s*")
_UNIT_POWER = r"(?:\s*\^\s*\{?\s*(?P<power>\d)\s*\}?)?"
_TEXT_UNIT = re.compile(rf" *\\(?:text|mathrm|textrm|mbox) ?\{{ *(?P<unit>[^{{}}\\\n]*?) *\}}{_UNIT_POWER} *$")
_WORD_UNIT = re.compile(
    r"(?: +(?P<unit>(?:[A-Za-z]{2,}|[mgshlLNJWVKCF](?=/|$| *\^))(?:[ /][A-Za-z]+){0,4})|(?P<si>[cmk][mgl]|ft|lb|oz|min|mph))"
    rf"{_UNIT_POWER}$"
)
_DEGREES = re.compile(
    r" *(?:\^ *\{? *\\circ *\}?|\\degree|°) *(?:(?P<scale>[CF])|\\(?:text|mathrm|rm) ?\{ *(?P<marked>[CF]) *\})?$"
)
_CURRENCY_AFTER = re.compile(r"(?<=\d) ?([€£¥])$")
_BASE = re.compile(r"(?<=[\dA-F])_ ?(?:\{ *(\d+) *\}|(\d))$")
_NOT_UNITS = frozenset(
    ("sin", "cos", "tan", "cot", "sec", "csc", "log", "ln", "exp", "sqrt", "and", "or", "mod", "choose", "over", "is", "are")
    + ("was", "not", "no", "but", "to", "than", "more", "less", "plus", "minus", "times", "half", "if", "wrong", "maybe")
)
_SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SYMBOLS = {
    "meter": "m", "metre": "m", "kilometer": "km", "kilometre": "km", "centimeter": "cm", "centimetre": "cm",
    "millimeter": "mm", "millimetre": "mm", "foot": "ft", "feet": "ft", "inch": "in", "inches": "in", "mile": "mi",
    "yard": "yd", "gram": "g", "kilogram": "kg", "milligram": "mg", "Kg": "kg", "KG": "kg", "lb": "pound", "lbs": "pound",
    "£": "pound", "ounce": "oz", "liter": "L", "litre": "L", "l": "L", "milliliter": "mL", "millilitre": "mL", "ml": "mL",
    "second": "s", "sec": "s", "minute": "min", "hour": "h", "hr": "h", "hrs": "h",
    "dollar": "$", "usd": "$", "euro": "€", "eur": "€", "yen": "¥", "percent": "%", "degrees": "degree",
    "celsius": "C", "fahrenheit": "F",
}  # fmt: skip
_PHRASES = {"mph": "mi/h", "kph": "km/h", "per cent": "%", "C": "degree C", "F": "degree F"}


class Quantity(NamedTuple):
    value: Fraction
    unit: str
    """'' if none is written; ``%`` is part of the value, not a unit."""


def quantity(text: str) -> Quantity | None:
    """The number that ``text``, already ``notation.clean``, writes.

    That is an integer or decimal with or without thousands separators, ``1.5e3``, ``1.5 \\times 10^3``, a fraction, a mixed
    number, ``0.\\overline{3}`` or ``4 million``; a sign, ``$``, ``%`` or a unit may stand beside it.

    None if it is anything else.
    """
    if len(text) > MAX_CHARS:
        return None
    body, unit = _split(text)
    if unit == "" and (match := _WORD_UNIT.search(body)) and (named := _unit(match["unit"] or match["si"], match["power"])):
        body, unit = body[: match.start()], named
    scale, _, rest = unit.partition(" ")
    factor = Fraction(_SCALES.get(scale, 1))
    unit = rest if factor != 1 else unit
    sign = _SIGN.match(body)
    currency = sign["c1"] or sign["c2"] or ""
    currency = _SYMBOLS.get(currency, currency)
    body = body[sign.end() :].rstrip()
    if body.endswith("%") and not unit:
        body, unit = body[:-1].rstrip(), "%"
    if unit == "%":
        factor, unit = factor / 100, ""
    value = _value(body)
    if currency and unit.startswith("per "):
        currency = unit = f"{currency}/{unit.removeprefix('per ')}"
    if value is None or (currency and unit not in ("", currency)):
        return None
    return Quantity((-value if sign["sign"] == "-" else value) * factor, currency or unit)


def split_unit(text: str) -> tuple[str, str]:
    """``\\sqrt{2}\\text{ cm}`` -> (``\\sqrt{2}``, ``cm``): a unit that LaTeX marks as text, degrees, a currency's sign, or the
    base of a number. The unit may be ''. It stands on the line of what it follows."""
    body, unit = _split(text)
    # These change the value.
    return (text, "") if unit == "%" or unit.partition(" ")[0] in _SCALES else (body, unit)


def _split(text: str) -> tuple[str, str]:
    if match := _DEGREES.search(text):
        scale = match["scale"] or match["marked"]
        return text[: match.start()], f"degree {scale}" if scale else "degree"
    if match := _BASE.search(text):
        return text[: match.start()], f"base {match[1] or match[2]}"
    if match := _CURRENCY_AFTER.search(text):
        return text[: match.start()], _SYMBOLS.get(match[1], match[1])
    if (match := _TEXT_UNIT.search(text)) and match.start() > 0 and (unit := _unit(match["unit"], match["power"])):
        return text[: match.start()], unit
    return text, ""


def _unit(words: str, power: str | None) -> str:
    """One name for a unit: ``square feet`` and ``ft^2`` are ``ft2``; plural and singular are one, and so are different cases of
    longer words. '' if the words are no unit."""
    names = [_name(word) for word in words.replace("/", " / ").replace(" per ", " / ").split()]
    if not names or _NOT_UNITS.intersection(names) or len(names) > 5:
        return ""
    if names[0] in ("square", "sq", "cubic") and len(names) > 1:
        power = "3" if names[0] == "cubic" else "2"
        names = names[1:]
    unit = " ".join(names).replace(" / ", "/")
    return _PHRASES.get(unit, unit) + (power or "")


def _name(word: str) -> str:
    word = word.rstrip(".")
    if len(word) > 2:
        word = word.lower()
    singular = word[:-1] if len(word) > 3 and word.endswith("s") else word
    return _SYMBOLS.get(word) or _SYMBOLS.get(singular) or singular


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
    return Fraction(text.replace(",", "").replace(" ", "").rstrip(".") or "0")


def _repeating(whole: str, fixed: str, period: str) -> Fraction:
    """whole.fixed(period)(period)... = whole + (fixed + period / (10^p - 1)) / 10^f."""
    tail = Fraction(int(period), 10 ** len(period) - 1)
    return int(whole) + (int(fixed or "0") + tail) / 10 ** len(fixed)
