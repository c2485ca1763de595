"""The scores of reward models join the rewards of a round's answers (``GRPO.preference``)."""

from __future__ import annotations

import dataclasses

import numpy as np

from r1jax.eval.answers import Answers
from r1jax.rewards import total
from r1jax.stages.evaluation import stop_if_scores_fail
from r1jax.stages.workspace import Workspace


def scored(work: Workspace, answers: Answers) -> Answers:
    """``answers`` with the scores of the preferences that count in this round, each for the answers to its sources, and with
    rewards that hold them.

    Raises:
      GuardStop: too many scores failed.
    """
    stage = work.stage
    counting = [p for p in stage.preference if p.counts(work.step, stage.steps)]
    if not counting:
        return answers
    scores = [dict(each) for each in answers.scores]
    weights = [dict(work.weights[q.row["source"]]) for q in answers.questions]
    for p in counting:
        mine = [i for i, q in enumerate(answers.questions) if not p.sources or q.row["source"] in p.sources]
        judge = work.judges[p.name]
        before = judge.flops
        with work.phase("preference", len(mine), "answers"):
            prompts, texts = [answers.questions[i].row["prompt"] for i in mine], [answers.completions[i] for i in mine]
            for i, score in zip(mine, judge.scores(prompts, texts), strict=True):
                scores[i][p.name], weights[i][p.name] = score, p.weight
            work.display.advance(len(mine), 0)
        work.count({"preference": judge.flops - before})
    rewards = np.array([total(s, w) for s, w in zip(scores, weights, strict=True)], np.float32)
    answers = dataclasses.replace(answers, scores=scores, rewards=rewards)
    stop_if_scores_fail(work, answers)
    return answers
