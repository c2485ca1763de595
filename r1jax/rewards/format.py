"""Whether a turn has the form that was asked for (the format reward of arXiv 2501.12948, section 2.2.2)."""

from __future__ import annotations

from typing import Any, Literal

from r1jax.rewards.score import Score

TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def format(
    prompt: Any, completion: str, row: dict, *, style: Literal["r1-zero", "r1"] = "r1-zero", strict: bool = True
) -> Score:
    """1 if the turn is a thought and then an answer, neither empty, else 0.

    ``completion`` is the whole turn, with the ``<think>`` that a template pre-filled.

    Args:
      style: ``r1-zero`` is ``<think>...</think> <answer>...</answer>``; ``r1`` is ``<think>...</think>`` and then the answer
        without tags of its own, as R1's later stages and the distilled models write it.
      strict: each tag of the style once, and only white space outside the parts. Otherwise it is enough that an answer (of
        ``r1-zero`` the last ``<answer>`` element) follows a closed thought.
    """
    if style == "r1":
        why = _fault_of_thought(completion) if strict else _loose_fault(completion)
    else:
        why = _fault(completion) if strict else _loose_fault(completion, "<answer>", "</answer>")
    return Score(0.0 if why else 1.0, why=why)


def tag_count(prompt: Any, completion: str, row: dict, *, tags: tuple[str, ...] = TAGS) -> Score:
    """The share of ``tags`` that stand exactly once in the turn: partial credit while a policy learns the format."""
    off = [tag for tag in tags if completion.count(tag) != 1]
    return Score(1 - len(off) / len(tags), why=f"not once: {', '.join(off)}" if off else "")


def _ready(*, tags: tuple[str, ...] = TAGS) -> None:
    if not all(tags) or not tags:
        raise ValueError("option 'tags' is empty or names an empty tag")


tag_count.ready = _ready


def _fault(text: str) -> str:
    """What breaks R1-Zero's format, or ''."""
    if why := _miscounted(text, TAGS):
        return why
    starts = [text.index(tag) for tag in TAGS]
    if starts != sorted(starts):
        return "tags are out of order"
    before, rest = text.split("<think>")
    thought, rest = rest.split("</think>")
    between, rest = rest.split("<answer>")
    answer, after = rest.split("</answer>")
    faults = (
        (before.strip(), "text before <think>"),
        (not thought.strip(), "empty <think>"),
        (between.strip(), "text between </think> and <answer>"),
        (not answer.strip(), "empty <answer>"),
        (after.strip(), "text after </answer>"),
    )
    return next((why for fault, why in faults if fault), "")


def _fault_of_thought(text: str) -> str:
    """What breaks R1's format, or ''."""
    if why := _miscounted(text, TAGS[:2]):
        return why
    before, _, rest = text.partition("<think>")
    thought, closed, answer = rest.partition("</think>")
    faults = (
        (not closed, "tags are out of order"),
        (before.strip(), "text before <think>"),
        (not thought.strip(), "empty <think>"),
        (not answer.strip(), "nothing after </think>"),
    )
    return next((why for fault, why in faults if fault), "")


def _loose_fault(text: str, opening: str = "", closing: str = "") -> str:
    """What is missing of a closed thought and an answer between the tags after it, or ''."""
    thought, closed, rest = text.rpartition("</think>")
    if not closed:
        return "missing </think>"
    if not thought.replace("<think>", "").strip():
        return "empty <think>"
    if closing:
        rest, closed, _ = rest.rpartition(closing)
        _, opened, rest = rest.rpartition(opening)
        if not opened or not closed:
            return f"no {opening}...{closing} after </think>"
    return "" if rest.strip() else "nothing after </think>" if not closing else f"empty {opening}"


def _miscounted(text: str, tags: tuple[str, ...]) -> str:
    for tag in tags:
        if (count := text.count(tag)) != 1:
            return f"missing {tag}" if count == 0 else f"{count} times {tag}"
    return ""
