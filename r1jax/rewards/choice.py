"""Whether the right option was chosen (R1's rule for multiple choice: arXiv 2501.12948v2, appendix B.3)."""

from __future__ import annotations

import re
from string import ascii_uppercase
from typing import Any

from r1jax.rewards.extract import final_answer
from r1jax.rewards.notation import clean
from r1jax.rewards.score import Score

UNLISTED = 10
"""Letters that may be meant, from A, in rows without ``options``."""
LONGER = 1000
"""Characters that a phrase which names an option may have beyond the longest option."""

_ALONE = re.compile(r"(?:(?:option|choice|answer|选项)\s*)?[(\[（]?([A-Za-z])[)\]）]?[.:、]?", re.IGNORECASE)
_LED = re.compile(r"[(\[（]?([A-Za-z])[)\]）.:：、]+\s*(\S.*)")
_STATED = re.compile(
    r"\b(?:answer|(?:correct|right|best) (?:choice|option))\b[^.:=\n]{0,30}?(?:\bis\b|\bwould be\b|\bmust be\b|[:=：])"
    r"|(?<!not )(?<!n't )\b(?:choose|select|pick|go with)\b"
    r"|答案(?:应该?)?(?:是|为|选)?[:：]?|选项(?:应该?)?(?:是|为)[:：]?|(?<![不没别])选择?(?![项择])[:：]?",
    re.IGNORECASE,
)
_FIRST_LETTER = re.compile(
    r"[\s*_\"'“$:：]*(?:(?:option|choice|answer)\s+)?(?:(?P<bracket>[(\[（])|\\text(?:bf)?\{)?(?P<letter>[A-Z])(?![\w'’])",
    re.ASCII,
)
_ANOTHER = re.compile(r"[)\]）}*$.]*\s*(?:,|/|&|、|\band\b|\bor\b|和|或|与)\s*[(\[（*]*[A-Z](?!\w)", re.ASCII)
_WORD = re.compile(r"\s+(?!(?:because|since|as|is|for|with|which|due|by|given|from|here)\b)[a-z]")


def choice(prompt: Any, completion: str, row: dict) -> Score:
    """1 if the final answer (``extract.final_answer``) names the right option by its letter or by its text; else 0.

    ``row["options"]``, if there, lists the options' texts, the first being A. ``row["answer"]`` is a letter, the text of an
    option, or an integer that counts the options from 0. A single letter always means the option of that letter.

    The answer may be ``B``, ``(b)``, ``B.``, ``B. Paris``, ``Paris``, or a text whose last ``the answer is``, ``I choose``
    or ``答案是`` is followed by one of these, or whose last line is one. The article "a" is no letter, and an answer
    that names two options in one breath (``A or B``) names none.

    Raises:
      ValueError: the row's answer names no option, or two.
    """
    options = _options(row)
    right = _right(row, options)
    option = chosen(completion, row)
    named = "nothing" if option is None else ascii_uppercase[option]
    return Score(float(option == right), why=f"chose {named}, expected {ascii_uppercase[right]}")


def chosen(completion: str, row: dict) -> int | None:
    """The number of the option that the final answer names, from 0."""
    answer = final_answer(completion)
    return None if answer is None else _chosen(answer, _options(row))


def _options(row: dict) -> list[str]:
    options = row.get("options")
    if options is None:
        return [""] * UNLISTED
    if not isinstance(options, list) or not 2 <= len(options) <= len(ascii_uppercase):
        raise ValueError(f"row['options'] is {options!r:.80}; it must be a list of 2 to {len(ascii_uppercase)} options")
    return [str(option) for option in options]


def _right(row: dict, options: list[str]) -> int:
    answer = row.get("answer")
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(options) and "options" in row:
        if _by_text(str(answer), options) in (None, answer):
            return answer
        raise ValueError(f"row['answer'] is {answer}, which is one option's number and another's text; give it as a letter")
    named = _named(answer, options) if isinstance(answer, str) else None
    if named is None:
        raise ValueError(
            f"row['answer'] is {answer!r:.80}; it must be an option's letter, or its text or its number in row['options']"
        )
    return named


def _chosen(answer: str, options: list[str]) -> int | None:
    if (found := _named(answer, options)) is not None:
        return found
    if stated := list(_STATED.finditer(answer)):
        rest = answer[stated[-1].end() :].partition("\n")[0]
        return _first(rest, options) if (found := _named(rest, options)) is None else found
    return _named(answer.splitlines()[-1], options)


def _named(phrase: str, options: list[str]) -> int | None:
    """The option that the whole phrase names."""
    if len(phrase) > max(map(len, options)) + LONGER:
        return None
    phrase = clean(phrase)
    if (match := _ALONE.fullmatch(phrase)) and (alone := _index(match[1], options)) is not None:
        return alone
    if (found := _by_text(phrase, options)) is not None:
        return found
    if (match := _LED.fullmatch(phrase)) is None or (led := _index(match[1], options)) is None:
        return None
    text = _by_text(match[2], options)
    return led if text == led or (text is None and match[1].isupper() and not _ANOTHER.match(phrase, match.end(1))) else None


def _by_text(phrase: str, options: list[str]) -> int | None:
    """The one option whose text it is, without regard to case where only one fits so."""
    phrase = clean(phrase)
    texts = [clean(option) for option in options]
    for fit in (str, str.casefold):
        if found := [i for i, text in enumerate(texts) if text and fit(text) == fit(phrase)]:
            return found[0] if len(found) == 1 else None
    return None


def _first(rest: str, options: list[str]) -> int | None:
    """The capital letter that ``rest``, which follows "the answer is", begins with."""
    match = _FIRST_LETTER.match(rest)
    if match is None or _ANOTHER.match(rest, match.end()):
        return None
    if match["letter"] in "AI" and not match["bracket"] and _WORD.match(rest, match.end()):
        return None
    return _index(match["letter"], options)


def _index(letter: str, options: list[str]) -> int | None:
    index = ascii_uppercase.index(letter.upper())
    return index if index < len(options) else None
