"""A round's answers where they are not all sampled at its beginning: some are sampled a round ahead, some over several rounds.

Whatever is sampled for a round, its groups are whole. The answers that a checkpoint holds, unfinished ones and those of the
round ahead, make a resumed run the same as one that was not interrupted.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from concurrent.futures import Future

from r1jax import config
from r1jax.eval import answers as asking
from r1jax.eval.answers import Answers, Question, Sampled, Scoring
from r1jax.rollout.jobs import Job, trajectories
from r1jax.stages.begun import Group, Rollout
from r1jax.stages.evaluation import stop_if_scores_fail
from r1jax.stages.workspace import Workspace

Progress = Callable[[int, int], None]


def next_questions(work: Workspace, count: int, step: int) -> list[Question]:
    """The next rows, for a round that begins at this step, whose prompts fit; longer ones are left out and counted."""
    cursor = work.cursor
    asked, cursor.row, left_out = asking.take(
        work.mixture, cursor.row, count, work.template, work.stage.engine.max_prompt_tokens, work.stage.deferred(step)
    )
    cursor.left_out += left_out
    return asked


def length_cap(stage: config.GRPO, step: int) -> int:
    """The longest answer at this step, in tokens (R1-Zero doubled it at step 8200)."""
    return [stage.sampling.max_new_tokens, *(cap for at, cap in stage.length_schedule if at <= step)][-1]


def answers(work: Workspace, count: int) -> Answers:
    """``count`` whole groups, scored: those that were sampled ahead, else sampled now.

    Raises:
      GuardStop: too many scores failed.
    """
    with work.phase("rollout", count * work.stage.group, "answers"):
        if work.ahead is None:
            rollout = begin(work, count, work.cursor.round, work.step, work.display.advance)()
        else:
            rollout, work.ahead = work.ahead.result(), None
    work.kept, work.usage, work.rollout_rate = rollout.kept, rollout.usage, rollout.rate
    sampled = rollout.sampled or scoring_again(work, rollout.groups)
    with work.phase("reward"):
        found = sampled.scored()
    stop_if_scores_fail(work, found)
    return found


def sample_ahead(work: Workspace) -> None:
    """Begins the next round's rollout with the weights of now. On one device, and on devices of its own (``engine.devices``),
    it runs in a thread of its own. Several that also train must be given their programs in one order, so there it is over when
    this returns, and only its scores are waited for later."""
    stage = work.stage
    at = work.step + stage.minibatches
    if not stage.one_step_off_policy or at >= stage.steps:
        return
    count = stage.questions * stage.minibatches
    if work.aside is not None:
        work.ahead = work.aside.submit(begin(work, count, work.cursor.round + 1, at))
        return
    work.ahead = Future()
    with work.phase("rollout", count * stage.group, "answers"):
        work.ahead.set_result(begin(work, count, work.cursor.round + 1, at, work.display.advance)())


def settle(work: Workspace) -> None:
    """Waits for the rollout ahead, for the sampler is wanted."""
    if work.ahead is not None:
        with work.phase("rollout"):
            work.ahead.result()


def begin(
    work: Workspace, count: int, round: int, step: int, progress: Progress = lambda answers, tokens: None
) -> Callable[[], Rollout]:
    """Takes the questions and the weights of now; returns what samples ``count`` whole groups.

    Args:
      step: at which they are learned from.
    """
    stage = work.stage
    cap = length_cap(stage, step)
    surplus = math.ceil(stage.partial_rollouts * stage.questions * stage.minibatches)
    asked = next_questions(work, max(0, count + surplus - len(work.kept)), step)
    fresh = [Group(q, [Job(i, q.ids, q.name, i, cap, round) for i in range(stage.group)]) for q in asked]
    groups = [*work.kept, *fresh]
    sampling = dataclasses.replace(stage.sampling, max_new_tokens=cap)
    work.load_sampler()

    def run() -> Rollout:
        return _Collecting(work, groups, count, progress).run(sampling)

    return run


class _Collecting:
    """A rollout under way. Groups are scored as they become whole; in this order they are taken, until there are enough."""

    def __init__(self, work: Workspace, groups: list[Group], count: int, progress: Progress):
        self.work, self.groups, self.count, self.progress = work, groups, count, progress
        self.scoring = Scoring(work.pool, work.weights)
        self.texts: dict[int, list[str]] = {}
        """Of each group that is taken, by its index."""

    def run(self, sampling: config.Sampling) -> Rollout:
        sampler, jobs = self.work.sampler, [job for group in self.groups for job in group.jobs]
        before, began = sum(len(job.tokens) for job in jobs), time.perf_counter()
        if not self.enough([]):
            sampler.go_on(jobs, sampling, self.enough)
        tokens, seconds = sum(len(job.tokens) for job in jobs) - before, time.perf_counter() - began
        taken = sorted(self.texts)
        groups = [self.groups[i] for i in taken]
        each = [group.question for group in groups for _ in group.jobs]
        texts = [text for i in taken for text in self.texts[i]]
        sampled = Sampled(each, trajectories([job for group in groups for job in group.jobs]), texts, self.scoring)
        kept = [group for i, group in enumerate(self.groups) if i not in self.texts]
        return Rollout(groups, kept, sampler.usage.metrics(sampler.slots), tokens / seconds, sampled)

    def enough(self, ended: list[Job]) -> bool:
        """Takes the groups that are whole, and says whether there are enough."""
        self.progress(len(ended), sum(len(job.tokens) for job in ended))
        for i, group in enumerate(self.groups):
            if len(self.texts) < self.count and i not in self.texts and group.is_whole:
                self.texts[i] = submit(self.scoring, self.work, group, i)
        return len(self.texts) == self.count or self.work.leaving.is_set()


def submit(scoring: Scoring, work: Workspace, group: Group, place: int) -> list[str]:
    """Starts scoring a group's answers; returns their texts.

    Args:
      place: of the group among the others.
    """
    asked, t, first = [group.question] * len(group.jobs), trajectories(group.jobs), place * len(group.jobs)
    texts = asking.texts(asked, t, work.tokenizer)
    scoring.submit(range(first, first + len(asked)), asked, texts, asking.sampled_ids(t))
    return texts


def scoring_again(work: Workspace, groups: list[Group]) -> Sampled:
    """The answers of groups from a checkpoint."""
    scoring = Scoring(work.pool, work.weights)
    texts = [text for i, group in enumerate(groups) for text in submit(scoring, work, group, i)]
    each = [group.question for group in groups for _ in group.jobs]
    return Sampled(each, trajectories([job for group in groups for job in group.jobs]), texts, scoring)
