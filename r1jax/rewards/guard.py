"""Which LaTeX must not reach a computer algebra system: texts that take for ever to parse or to evaluate.

Only a filter for speed. What slips through is ended by the worker's clock.
"""

from __future__ import annotations

import math
import re

MAX_CHARS = 1000
MAX_DEPTH = 12
MAX_OPERATORS = 120
"""Commands, signs, subscripts. Parsing takes about 2 ms for each."""
MAX_DIGITS = 400
MAX_POWER = 10_000
"""Largest exponent of a number; the digits of the result grow with it."""
MAX_FUNCTION_POWER = 1000
"""The same where a sine or a logarithm is: it takes as many digits of pi."""
MAX_GROUP_POWER = 100
"""Largest exponent of a bracket: expanding (x + 1)^n takes longer than n."""
MAX_FACTORIAL = 1000
MAX_FACTORS = 10
"""Brackets multiplied with each other: expanding doubles with each."""
MAX_RELATIONS = 20

_EVALUATED = re.compile(r"\\(sum|prod|i{1,3}nt|oint|lim|limsup|liminf|bigcup|bigcap)(?![a-z])")
_COUNTING = re.compile(r"\\(?:[dt]?binom|Gamma|zeta|choose|gcd|lcm)(?![a-z])|\\operatorname")
_FUNCTION = re.compile(r"\\(?:arc)?(?:sin|cos|tan|log|ln)")
_FACTOR = re.compile(r"[)\]](?:\*|\\cdot|\\times)?[(\[]")
_RELATION = re.compile(r"[=<>]|\\(?:le|ge|lt|gt|ne)q?(?![a-z])")
_ROOT = re.compile(r"\\sqrt\[(?!(?:\d{1,2}|[A-Za-z])\])")
_NUMBER = re.compile(r"\d+")


def too_costly(latex: str) -> str:
    """Why ``latex`` is not to be parsed, or ''."""
    if len(latex) > MAX_CHARS:
        return f"longer than {MAX_CHARS} characters"
    text = re.sub(r"\\(?:left|right)(?![a-z])|\s+", "", latex).replace("**", "^")
    if _depth(text) > MAX_DEPTH:
        return f"nested deeper than {MAX_DEPTH}"
    if len(re.findall(r"[\\+*/=_|-]", text)) > MAX_OPERATORS or re.search(r"[-+]{5,}", text):
        return "too many operators"
    if len(_FACTOR.findall(text)) >= MAX_FACTORS:
        return f"more than {MAX_FACTORS} brackets multiplied"
    if len(_RELATION.findall(text)) > MAX_RELATIONS:
        return f"more than {MAX_RELATIONS} relations"
    if text.count("\\exp") > 2 or len(re.findall(r"\\(?:sqrt|log|ln|sin|cos|tan)", text)) > 20:
        return "many functions"
    if re.search(rf"\d{{{MAX_DIGITS + 1}}}", text):
        return f"a number of more than {MAX_DIGITS} digits"
    if re.search(r"[\d.][eE][+-]?\d{4}", text):
        return "a decimal exponent above 999"
    if _ROOT.search(text):
        return "a root above 99"
    if match := _EVALUATED.search(text):
        return f"an unevaluated \\{match[1]}"
    return _powers(text) or _factorials(text)


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in text:
        if character in "({[":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")}]":
            depth = max(0, depth - 1)
    return deepest


def _powers(text: str) -> str:
    of_groups = 1
    largest = MAX_FUNCTION_POWER if _FUNCTION.search(text) else MAX_POWER
    for match in re.finditer(r"\^", text):
        exponent = _operand(text, match.end())
        if exponent.startswith("\\circ"):
            continue
        raised_on = text.startswith("^", match.end() + len(exponent))
        if exponent.count("^") > 1 or re.search(r"[\d)}\]|!]\^", exponent) or raised_on:
            return "a tower of powers"
        if "!" in exponent or text.startswith("!", match.end() + len(exponent)):
            return "a factorial in a power"
        size = math.prod(max(1, int(n)) for n in _NUMBER.findall(exponent))
        if size > largest:
            return f"an exponent above {largest}"
        if text[match.start() - 1 : match.start()] in (")", "}", "]"):
            of_groups *= size
            if of_groups > MAX_GROUP_POWER:
                return f"a bracket to a power above {MAX_GROUP_POWER}"
    return ""


def _factorials(text: str) -> str:
    if re.search(r"!(?:[)}\]]*!)+|[}\]]!", text):
        return "a factorial of a factorial or of a group"
    for match in re.finditer(r"(\d*)!", text):
        group = match[1] or _group_before(text, match.start())
        if "^" in group or math.prod(max(1, int(n)) for n in _NUMBER.findall(group)) > MAX_FACTORIAL:
            return f"a factorial above {MAX_FACTORIAL}"
    counting = _COUNTING.search(text)
    if counting and ("\\lfloor" in text or "\\sqrt" in text):
        return "a counting function beside a root or a floor"
    if counting and ("^" in text or any(int(n) > MAX_FACTORIAL for n in _NUMBER.findall(text))):
        return f"a counting function above {MAX_FACTORIAL}"
    return ""


def _operand(text: str, start: int) -> str:
    """What a ``^`` before ``start`` raises to: a group, a command with its groups, a run of digits, or a character."""
    at = start + 1 if text[start : start + 1] in "+-" else start
    if text[at : at + 1] in ("{", "("):
        return text[start : _group_end(text, at)]
    match = re.compile(r"\\[A-Za-z]+|\d+|.?").match(text, at)
    end = match.end()
    while match[0].startswith("\\") and text[end : end + 1] == "{":
        end = _group_end(text, end)
    return text[start:end]


def _group_end(text: str, start: int) -> int:
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] in "({[") - (text[i] in ")}]")
        if depth == 0:
            return i + 1
    return len(text)


def _group_before(text: str, end: int) -> str:
    depth = 0
    for i in range(end - 1, -1, -1):
        depth += (text[i] in ")}]") - (text[i] in "({[")
        if depth == 0:
            return text[i:end]
    return text[:end]
