"""Rewards from reward models, R1's preference rewards (Nature 2025, Methods): helpfulness of the final summary alone, safety of
the whole response with its thought.

The model is the user's: a function that is named by the option ``scorer``.
"""

from __future__ import annotations

import functools
from typing import Any

from r1jax.rewards.load import find


def helpful(prompt: Any, completion: str, row: dict, *, scorer: str) -> Any:
    """What the scorer gives the final summary: R1 keeps the thought out, so as not to disturb the reasoning.

    Args:
      scorer: ``pkg.mod:f`` or ``path/file.py:f``, a function ``f(prompt, text) -> float | Score``, sync or async. ``prompt`` is
        the row's, a text or messages. ``text`` is empty where the thought never ended.
    """
    return _scorer(scorer)(prompt, final_summary(completion))


def safety(prompt: Any, completion: str, row: dict, *, scorer: str) -> Any:
    """What the scorer gives the whole turn, for harm may stand in the thought too. ``scorer`` is as in ``helpful``."""
    return _scorer(scorer)(prompt, completion)


def _ready(*, scorer: str) -> None:
    _scorer(scorer)


helpful.ready = safety.ready = _ready
_scorer = functools.cache(find)


def final_summary(completion: str) -> str:
    """What follows the last ``</think>``, without white space around it; the whole turn where there is no thought, and '' where
    the thought is not closed."""
    return completion.rpartition("</think>")[2].partition("<think>")[0].strip()
