"""Tasks of the ``reasoning-gym`` package, scored by their own scorers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from r1jax.rewards.extract import final_answer
from r1jax.rewards.score import Score
from r1jax.rewards.slow_import import slow_import


def reasoning_gym(prompt: Any, completion: str, row: dict) -> Score:
    """The score, in [0, 1], that the task's own scorer gives to the final answer.

    Many scorers give a little (0.01 or 0.05) to wrong answers. The row carries ``task``, the task's name, and ``entry``, the
    task's ``{"question", "answer", "metadata"}``.

    Raises:
      ValueError: the row lacks them, or the package or the task does not exist.
    """
    for key in ("task", "entry"):
        if key not in row:
            raise ValueError(f"the row has no {key!r}; rows for this reward come from a source 'reasoning_gym:TASK'")
    answer = final_answer(completion)
    value = 0.0 if answer is None else float(_scorer(row["task"])(answer=answer, entry=row["entry"]))
    return Score(value, why=f"extracted {_short(answer)}, {row['task']} expected {_short(row['entry'].get('answer'))}")


@functools.cache
def _scorer(task: str) -> Callable[..., float]:
    try:
        gym = slow_import("reasoning_gym")
    except ModuleNotFoundError as e:
        if e.name != "reasoning_gym":
            raise
        raise ValueError("the package reasoning-gym is not installed; pip install 'r1jax[reasoning-gym]'") from e
    return gym.get_score_answer_fn(task)


def _short(text: Any) -> str:
    return repr(str(text)[:80]) if text is not None else "nothing"
