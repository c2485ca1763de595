"""Whether a sampled answer can be read: what R1's authors left out of what they trained on (Nature 2025, supplement B.3), as
rules. They published the faults and not the limits, which are fields of ``config.Readable``.
"""

from __future__ import annotations

import re
import unicodedata

from r1jax.config import Readable
from r1jax.data import words
from r1jax.rewards.language import language

TAGS = ("<think>", "</think>")
_PARAGRAPHS = re.compile(r"\n\s*\n")
_FENCE = re.compile(r"^\s*(?:```|~~~)", re.MULTILINE)
_ANSWER = re.compile(r"</?answer>")


def fault(row: dict, completion: str, rules: Readable) -> tuple[str, str] | None:
    """The first rule that an answer breaks, and how; None if it can be read.

    Args:
      row: with ``prompt``, and perhaps ``target_language``; else the language is the prompt's.
      completion: the assistant's whole turn.
    """
    if why := _unreadable(completion):
        return "unreadable", why
    if rules.language is not None:
        score = language(row["prompt"], completion, row)
        if score.value < rules.language:
            return "mixed language", score.why
    thought = thought_of(completion)
    if rules.paragraph and (longest := max(map(_count, _PARAGRAPHS.split(thought)))) > rules.paragraph:
        return "long paragraph", f"{longest:.0f} words, at most {rules.paragraph}"
    if rules.code and _FENCE.search(thought):
        return "code in the thought", "a fenced block"
    share = repeated(completion, rules.repeated_words)
    if share > rules.repetition:
        return "repetition", f"{share:.2f} of its runs of {rules.repeated_words} words stood earlier in it"
    return None


def thought_of(completion: str) -> str:
    """What stands before the last ``</think>``, without ``<think>``; '' where there is none."""
    return completion.rpartition("</think>")[0].partition("<think>")[2]


def in_r1_style(completion: str) -> str:
    """A turn in R1-Zero's form as the released R1 writes it, after whose template's ``<think>`` and line break the thought
    follows, and after it the answer without tags of its own."""
    answer = _ANSWER.sub("", completion.rpartition("</think>")[2])
    return f"<think>\n{thought_of(completion).strip()}\n</think>\n\n{answer.strip()}"


def repeated(text: str, size: int) -> float:
    """The share of the runs of ``size`` words and signs of a text that stood earlier in it; 0 if it is shorter."""
    found = words.WORD_OR_SIGN.findall(words.normal(text))
    runs = [tuple(found[i : i + size]) for i in range(len(found) - size + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def _unreadable(text: str) -> str:
    """What of a text no person can read, or ''."""
    for tag in TAGS:
        if text.count(tag) > 1:
            return f"{text.count(tag)} times {tag}"
    if text.count(TAGS[0]) != text.count(TAGS[1]) or text.find(TAGS[0]) > text.find(TAGS[1]):
        return "a thought that does not begin or end"
    if "�" in text:
        return "bytes that are no text"
    bad = next((c for c in text if unicodedata.category(c) in ("Cc", "Cs", "Co", "Cn") and c not in "\n\t\r"), None)
    return "" if bad is None else f"the character U+{ord(bad):04X}"


def _count(text: str) -> float:
    """Words of a text, 1.6 characters of a script without spaces as one."""
    found = words.WORD.findall(words.normal(text))
    return int(words.weights(found).sum()) / words.SPACED
