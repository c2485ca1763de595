"""One number from an answer's scores, and the sums of rewards that R1 was trained with (Nature 2025, Methods, eq. 4 and 8-10).

    Reward_rule      = Reward_accuracy + Reward_format                                              (4)
    Reward           = Reward_reasoning + Reward_general + Reward_language                          (8)
    Reward_reasoning = Reward_rule                                                                  (9)
    Reward_general   = Reward_reward_model + Reward_format                                          (10)

A prompt is either a reasoning or a general one, and the other's term is 0. A source's ``rewards`` is the sum for its rows: the
functions below return it, the reward that says whether an answer is right first, as evaluation wants it.

    R1-Zero        Source(..., rewards=compose.rule())
    RL stage 1     Source(..., rewards=compose.reasoning())
    RL stage 2     a source with compose.reasoning(), and two with compose.general(), to which GRPO.preference adds the scores
                   of the helpful and of the safety reward model, in the last 400 of 1,700 steps
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from r1jax.rewards.score import Score

R1_FORMAT = 'format{"style":"r1"}'
"""A thought and then the answer, as R1's templates want it: R1-Zero's has <answer>."""


def rule(correctness: str = "accuracy", format: str = "format") -> dict[str, float]:
    """Equation 4, with equal weights. ``correctness`` is ``accuracy``, ``code``, ``choice`` or another reward's name."""
    return {correctness: 1.0, format: 1.0}


def reasoning(correctness: str = "accuracy", format: str = R1_FORMAT, language: str = "language") -> dict[str, float]:
    """Equations 8 and 9 for a reasoning prompt."""
    return {**rule(correctness, format), language: 1.0}


def general(reward_model: str | None = None, format: str = R1_FORMAT, language: str = "language") -> dict[str, float]:
    """Equations 8 and 10 for a general prompt. ``reward_model`` is a helpful or a safety reward that workers compute, by data
    set; None leaves that term to ``GRPO.preference``."""
    return ({reward_model: 1.0} if reward_model else {}) | {format: 1.0, language: 1.0}


def named(name: str, **options: Any) -> str:
    """The name of a reward with options: ``named("overlong", max_tokens=20480, buffer=4096)``."""
    return name + json.dumps(options, ensure_ascii=False, separators=(",", ":")) if options else name


def total(scores: Mapping[str, Score], weights: Mapping[str, float]) -> float:
    """The weighted sum of the scores' values.

    Raises:
      ValueError: a weight names a reward that was not scored.
    """
    missing = [name for name in weights if name not in scores]
    if missing:
        raise ValueError(f"weights name {', '.join(missing)}, which was not scored (scored: {', '.join(scores) or 'nothing'})")
    return sum(weight * scores[name].value for name, weight in weights.items())
