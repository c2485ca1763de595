"""Reward functions written for TRL and for verl become ours.

In a file of yours, ``mine = from_trl(theirs)``; then name it ``path/file.py:mine``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from r1jax.rewards.score import Score
from r1jax.rewards.tokens import TOKENS


def from_trl(f: Callable) -> Callable:
    """TRL's ``f(prompts, completions, **columns) -> list[float | None]``, sync or async, called with a batch of one.

    Columns are the row's fields, and ``completion_ids`` where the row has tokens. To a prompt of messages belongs a completion
    of messages, as in TRL. None, which TRL leaves out of its sum, counts as 0.
    """

    def reward(prompt: Any, completion: str, row: dict) -> Any:
        columns = {key: [value] for key, value in row.items() if key not in ("prompt", "completion", TOKENS)}
        if TOKENS in row:
            columns["completion_ids"] = [row[TOKENS]]
        turn = completion if isinstance(prompt, str) else [{"role": "assistant", "content": completion}]
        return _when_done(f(prompts=[prompt], completions=[turn], **columns), _of_trl)

    return reward


def from_verl(f: Callable) -> Callable:
    """verl's ``compute_score(data_source, solution_str, ground_truth, extra_info) -> float | dict``, sync or async.

    ``ground_truth`` is ``row["reward_model"]["ground_truth"]``, or ``row["answer"]`` in rows without it; ``data_source`` is the
    row's own, or its source's name. ``solution_str`` has what the template pre-filled, which verl leaves out. Of a dict the
    ``score`` is taken.
    """

    def reward(prompt: Any, completion: str, row: dict) -> Any:
        truth = row["reward_model"]["ground_truth"] if "reward_model" in row else row["answer"]
        source = row.get("data_source", row.get("source"))
        score = f(data_source=source, solution_str=completion, ground_truth=truth, extra_info=row.get("extra_info"))
        return _when_done(score, _of_verl)

    return reward


def _of_trl(values: list) -> Any:
    (value,) = values
    return Score(0.0, why="None: it does not apply to this row") if value is None else value


def _of_verl(score: Any) -> Any:
    return score["score"] if isinstance(score, dict) else score


def _when_done(value: Any, take: Callable) -> Any:
    """``take(value)``, or a coroutine of it if ``value`` is to be awaited."""

    async def wait() -> Any:
        return take(await value)

    return wait() if inspect.isawaitable(value) else take(value)
