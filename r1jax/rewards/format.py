"""The R1-Zero format reward (arXiv 2501.12948, section 2.2.2)."""

from __future__ import annotations

from typing import Any

from r1jax.rewards.score import Score

TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def format(prompt: Any, completion: str, row: dict) -> Score:
    """1 if the turn is ``<think>...</think> <answer>...</answer>``, each tag once, neither part empty and nothing else; else 0.

    White space may stand around the two parts. ``completion`` is the whole turn, with what the template pre-filled.
    """
    why = _fault(completion)
    return Score(0.0 if why else 1.0, why=why)


def _fault(text: str) -> str:
    """What breaks the format, or ''."""
    for tag in TAGS:
        if (count := text.count(tag)) != 1:
            return f"missing {tag}" if count == 0 else f"{count} times {tag}"
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
