"""The final answer in an assistant's turn."""

from __future__ import annotations

import re

_MARK = "####"
"""GSM8K's, before the answer."""
_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)


def final_answer(completion: str) -> str | None:
    """The answer in what follows the thought: the last ``\\boxed{}`` of the last ``<answer>...</answer>``, or that element, or
    the last ``\\boxed{}``, or else the whole text. Where no box is, what follows the last ``####`` on its line is taken.

    What stands in ``<think>`` is never an answer. None if the thought is not closed or nothing follows it.
    """
    text = completion.rpartition("</think>")[2].partition("<think>")[0]
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, end) if end >= 0 else -1
    if start >= 0:
        text = text[start + len("<answer>") : end]
    return marked(text).strip() or None


def marked(text: str) -> str:
    """What the last ``\\boxed{}`` holds, or what follows the last ``####`` on its line, or the text."""
    box = last_boxed(text)
    if box is not None:
        return box
    before, mark, after = text.rpartition(_MARK)
    return after.strip().partition("\n")[0] if mark and not before.endswith("#") else text


def last_boxed(text: str) -> str | None:
    """What is inside the last ``\\boxed{...}`` whose braces balance; of nested ones, the innermost."""
    open_braces: list[int | None] = []  # where the content of a box begins; None for another brace
    found = None
    for match in _BRACES.finditer(text):
        token = match.group()
        if token == "}":
            start = open_braces.pop() if open_braces else None
            if start is not None and (found is None or start > found[0]):
                found = (start, match.start())
        elif token == "{":
            open_braces.append(None)
        elif token.endswith("{") and token != "\\{":
            open_braces.append(match.end())
    return None if found is None else text[slice(*found)].strip()
