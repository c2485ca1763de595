"""Rewards that look at an answer's tokens: ``row["_tokens"]``, the ids that the policy sampled, its end token included.

Training and evaluation put them there; what the template pre-filled is not among them.
"""

from __future__ import annotations

from typing import Any

from r1jax.rewards.score import Score

TOKENS = "_tokens"
"""The row's key."""


def overlong(prompt: Any, completion: str, row: dict, *, max_tokens: int, buffer: int) -> Score:
    """DAPO's soft overlong punishment (arXiv 2503.14476, eq. 13): 0 up to ``max_tokens - buffer`` tokens, then falling linearly
    to -1 at ``max_tokens`` and beyond.

    DAPO: ``max_tokens`` 20480, ``buffer`` 4096. Its accuracy reward is 1 or -1; ours is 1 or 0.
    """
    count = len(_tokens(row))
    return Score(min(0.0, max(-1.0, (max_tokens - buffer - count) / buffer)), why=f"{count} tokens")


def repetition(prompt: Any, completion: str, row: dict, *, n: int = 20) -> Score:
    """Minus the share of the answer's n-grams of tokens that stood earlier in it: 0 if none repeats, near -1 for a loop."""
    tokens = _tokens(row)
    count = len(tokens) - n + 1
    if count < 1:
        return Score(0.0, why=f"fewer than {n} tokens")
    different = len({tuple(tokens[i : i + n]) for i in range(count)})
    return Score(different / count - 1, why=f"{count - different} of {count} {n}-grams repeat")


def _overlong_ready(*, max_tokens: int, buffer: int) -> None:
    if not 0 < buffer <= max_tokens:
        raise ValueError(f"buffer is {buffer} and max_tokens {max_tokens}; it must be 0 < buffer <= max_tokens")


def _repetition_ready(*, n: int = 20) -> None:
    if n < 1:
        raise ValueError(f"option 'n' is {n}; it must be at least 1")


overlong.ready, repetition.ready = _overlong_ready, _repetition_ready


def _tokens(row: dict) -> list[int]:
    if TOKENS not in row:
        raise ValueError(f"the row has no {TOKENS!r}, the ids of the answer's tokens; training and evaluation give them")
    return row[TOKENS]
