"""FLOPs of what a stage did, for its ledger: what the model's arithmetic needs for these very lengths (see ``plan.flops``). A
module for multi-token prediction is not counted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from r1jax import config
from r1jax.plan import flops
from r1jax.types import Trajectories


def sampled(model: config.Model, t: Trajectories, samples: int) -> float:
    """Of sampling: a prompt is prefilled once for its ``samples`` answers, whose last token no pass reads."""
    prompts, answers = _lengths(t)
    asked = prompts[::samples]
    read = np.maximum(answers - 1, 0)
    prefill = flops.forward_flops(model, int(asked.sum()), int(_causal(asked).sum()), len(asked))
    pairs = _causal(read) + read * prompts
    return float(prefill + flops.forward_flops(model, int(read.sum()), int(pairs.sum()), int(read.sum()), absorbed=True))


def passed(model: config.Model, t: Trajectories, share_prompts: int = 1, *, predicts: bool = True) -> float:
    """Of one forward pass over prompts and answers that predicts the answers' tokens.

    Args:
      share_prompts: answers that one prompt stands before.
      predicts: False leaves the output head out.
    """
    prompts, answers = _lengths(t)
    alone = prompts[::share_prompts]
    tokens = int(alone.sum() + answers.sum())
    pairs = int(_causal(alone).sum() + (_causal(answers) + answers * prompts).sum())
    return float(flops.forward_flops(model, tokens, pairs, int(answers.sum()) if predicts else 0))


def of_round(
    stage: config.GRPO, model: config.Model, t: Trajectories, *, fresh_reference: bool, teacher: config.Model | None = None
) -> dict[str, float]:
    """Phase -> FLOPs of one rollout and the updates that it is good for, the first of which takes its own log-probs. A critic
    is counted as the policy without its head.

    Args:
      fresh_reference: the reference is the policy that the round begins with, whose log-probs are then taken once for both.
    """
    shared = stage.group if stage.share_prompts else 1
    once = passed(model, t, shared)
    later, old = 1.0 if stage.kl_in_reward else 1 - 1 / stage.minibatches, stage.old_logprobs == "trainer"
    reference = (later * (not old) if fresh_reference else 1) if stage.kl_beta else 0
    values = passed(model, t, shared, predicts=False) if stage.advantage == "gae" else 0.0
    score = (later * old + reference) * once + values + (passed(teacher, t, shared) if teacher else 0.0)
    return {"rollout": sampled(model, t, stage.group), "score": score, "update": flops.GRADIENT * (once + values)}


def trained(model: config.Model, lengths: Sequence[int], predictions: int) -> float:
    """Of forward and backward pass over sequences of so many tokens, of which ``predictions`` are trained on."""
    n = np.array(lengths, np.int64)
    return float(flops.GRADIENT * flops.forward_flops(model, int(n.sum()), int(_causal(n).sum()), predictions))


def _lengths(t: Trajectories) -> tuple[np.ndarray, np.ndarray]:
    prompts = np.asarray(t.prompt_length, np.int64)
    return prompts, np.asarray(t.length, np.int64) - prompts


def _causal(n: np.ndarray) -> np.ndarray:
    return n * (n + 1) // 2
