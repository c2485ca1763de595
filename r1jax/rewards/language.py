"""Language consistency: whether the thought is in the language that was asked for (Nature 2025, Methods, eq. 7).

    Reward_language = words of the target language in the thought / words in the thought

Words are told apart by their script, so this knows English (Latin letters) and Chinese (Han characters), the languages of R1's
prompts, and counts every other script as another language.
"""

from __future__ import annotations

import re
from typing import Any, Literal, NamedTuple

from r1jax.rewards.score import Score

HAN_PER_WORD = 1.6
"""Characters: Chinese writes no spaces."""

_NO_WORDS = re.compile(
    # What a formula holds cannot open another: so an opening sign that nothing closes costs no more than the way to the next.
    r"```.*?(?:```|\Z)|`[^`\n]+`"  # code
    r"|\$\$[^$]++\$\$|\$(?=\S)[^$\n]*+(?<=\S)\$(?!\d)"  # '$5 and $10' is no formula
    r"|\\\[(?:[^\\]|\\(?![\[\]]))*+\\\]|\\\((?:[^\\]|\\(?![()]))*+\\\)"
    r"|\\begin\{\w+\*?\}(?:[^\\]|\\(?!begin|end))*+\\end\{\w+\*?\}"
    r"|\\[A-Za-z]+(?:\{[^{}\n]*\})*"  # commands outside formulas
    r"|</?[A-Za-z][^<>\n]*+>|(?:https?://|www\.)[^\s\u3000-\u9fff\uff00-\uffef]+"  # tags, addresses
    r"|\b[A-Za-z_][\w.]{0,60}\([^()\n]*+\)"  # calls
    r"|\*\*",
    re.DOTALL | re.ASCII,
)
_HAN = r"\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
_LATIN = r"A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff"
_PIECE = re.compile(
    rf"(?P<han>[{_HAN}]+)"
    rf"|(?P<phrase>[{_LATIN}\d_]++(?:[\s,.;:!?'\"()’“”…–—‑-]++[{_LATIN}\d_]++)*)"
    rf"|(?P<other>[^\W\d_{_HAN}{_LATIN}]{{2,}})"
)
_WORD = re.compile(rf"(?<![{_LATIN}\d_])[{_LATIN}]++(?:['’‑-][{_LATIN}]++)*+(?![\d_])")
FUNCTIONS = "sin cos tan cot sec csc arcsin arccos arctan log ln lg exp max min mod gcd lcm lim det sqrt"
COMMON = """
    the so we our us you your they their it its this that these those then thus hence therefore however because since but
    be are was were been have has had do does did can could should would will must may might need let lets let's don't it's
    of to on at by what which how why when where who there here now also just very some both more most
    maybe perhaps actually wait okay ok yes well hmm again finally firstly obviously clearly instead
    solve solving calculate calculating compute prove assume suppose consider verify think know want use using
    means equals equation problem question answer triangle formula
"""
"""English words that are seldom names of variables or programs. Python's keywords are not here: 用 for 循环."""
_FUNCTIONS, _COMMON, _LETTERS = frozenset(FUNCTIONS.split()), frozenset(COMMON.split()), frozenset(("a", "A", "I"))


class Words(NamedTuple):
    """How many words of each language a text has."""

    en: int
    zh: float
    other: int


def language(prompt: Any, completion: str, row: dict, *, target: Literal["en", "zh"] | None = None) -> Score:
    """The share of the thought's words that are of the target language; 1 if it has no words.

    The thought is what stands before the last ``</think>``, or the whole turn where none is.

    Args:
      target: None takes ``row["target_language"]``, or else the language that most words of the prompt's user messages are in,
        or where they have none, of the thought.
    """
    target = target or row.get("target_language")
    if target not in (None, "en", "zh"):
        raise ValueError(f"row['target_language'] is {target!r}; it must be en or zh")
    thought, closed, _ = completion.rpartition("</think>")
    words = count_words(thought if closed else completion)
    target = target or _most(count_words(_asked(prompt))) or _most(words)
    total = sum(words)
    value = getattr(words, target) / total if total else 1.0
    return Score(value, why=f"{words.en:g} English, {words.zh:.3g} Chinese, {words.other:g} other words, expected {target}")


def count_words(text: str) -> Words:
    """The words of a text without its code, formulas, tags, addresses, numbers and names of variables.

    A Chinese word is 1.6 characters. In a text that is mostly Chinese, a single Latin word between other scripts or signs
    (``用 Python 求解``) is taken for a name and not counted, unless it is a common English word.
    """
    en = names = han = other = 0
    for piece in _PIECE.finditer(_NO_WORDS.sub(" 0 ", text)):  # words on both sides of a formula are one phrase
        match piece.lastgroup:
            case "han":
                han += len(piece[0])
            case "other":
                other += 1
            case "phrase":
                words, is_name = _count_phrase(piece[0])
                names += words if is_name else 0
                en += 0 if is_name else words
    zh = han / HAN_PER_WORD
    return Words(en + names if en > zh else en, zh, other)


def _count_phrase(phrase: str) -> tuple[int, bool]:
    """How many English words it has, and whether it may be a mere name."""
    words = _WORD.findall(phrase)
    plain = [w for w in words if w[1:].islower() and w not in _FUNCTIONS]  # neither x, nor GDP, nor maxSum
    count = len(plain) + sum(w in _LETTERS for w in words) if plain else 0
    return count, len(plain) == 1 and plain[0].lower() not in _COMMON


def _most(words: Words) -> str | None:
    return None if words.en == words.zh == 0 else "zh" if words.zh > words.en else "en"


def _asked(prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(message["content"] for message in prompt or () if message["role"] == "user")
