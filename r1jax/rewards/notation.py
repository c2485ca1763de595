"""One spelling for what people and models write in many: delimiters, spacing, Unicode signs."""

from __future__ import annotations

import re
import unicodedata

_SIGNS = str.maketrans(
    {
        "−": "-", "–": "-", "‑": "-", "÷": "/", "∞": "\\infty ", "π": "\\pi ", "×": "\\times ", "·": "\\cdot ", "±": "\\pm ",
        "≤": "\\le ", "≥": "\\ge ", "≠": "\\ne ", "≈": "\\approx ", "∪": "\\cup ", "∩": "\\cap ", "∈": "\\in ",
        "∅": "\\emptyset ",
    }
)  # fmt: skip
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_WRAPS = tuple(
    re.compile(wrap, re.DOTALL)
    for wrap in (
        r"\$\$([^$]*)\$\$",
        r"\$([^$]+)\$",
        r"\\\(((?:(?!\\\)).)*)\\\)",
        r"\\\[((?:(?!\\\]).)*)\\\]",
        r"\*\*([^*]+)\*\*",
        r"`([^`]+)`",
        r"\\(?:text|textbf|mathrm|mathbf|textrm|mbox)\s*\{([^{}]*)\}",
        r"\{([^{}]*)\}",
        r"\(?([A-Z])\)",
        r"(?:=|\\approx(?![a-z]))(.*)",
    )
)


def clean(text: str) -> str:
    """The text without what does not change its meaning: math delimiters, spacing commands, size commands, bold, final
    punctuation, an opening ``=``; one space or line feed for any white space; ASCII and LaTeX for Unicode signs; one name
    for commands with several (``\\frac``, ``\\emptyset``, ``\\{``)."""
    if not text.isascii():
        text = _ascii_signs(text)
    text = text.replace("{,}", ",").replace("\\$", "$").replace("\\%", "%").replace("~", " ")
    text = re.sub(r"\\[dtc]frac(?![a-z])", r"\\frac", text)
    text = text.replace("\\varnothing", "\\emptyset").replace("\\lbrace", "\\{").replace("\\rbrace", "\\}")
    text = re.sub(r"(?<!\\)\\(?:[,!;:]|(?:left|right|displaystyle)(?![a-z]))", "", text)
    text = re.sub(r"(?<!\\)\\(?:\s|$|quad(?![a-z]))", " ", text)
    text = re.sub(r"(?<![\\A-Za-z])pi(?![A-Za-z])", r"\\pi", text)
    text = re.sub(r"\s+", lambda space: "\n" if "\n" in space[0] else " ", text)
    while True:
        before = text
        text = text.strip().rstrip(".,;: \n")
        for wrap in _WRAPS:
            if match := wrap.fullmatch(text):
                text = match.group(1).strip()
        if text == before:
            return text


def _ascii_signs(text: str) -> str:
    text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+", lambda run: f"^{{{run[0].translate(_RAISED)}}}", text)
    text = re.sub(r"[₀₁₂₃₄₅₆₇₈₉]+", lambda run: f"_{{{run[0].translate(_LOWERED)}}}", text)
    text = re.sub(r"√\s*(\d+|[A-Za-z]|\([^()]*\))", lambda root: f"\\sqrt{{{root[1]}}}", text)
    text = re.sub(r"[¼½¾⅐-⅞]", lambda sign: _fraction(sign[0]), text)
    # Full-width digits, compatibility letters, the slash of fractions.
    return unicodedata.normalize("NFKC", text.translate(_SIGNS)).replace("⁄", "/")


def _fraction(sign: str) -> str:
    over, under = unicodedata.normalize("NFKC", sign).split("⁄")
    return f"\\frac{{{over}}}{{{under}}}"
