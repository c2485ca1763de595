"""Answers that outlive the round in which they began, in memory and in a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from r1jax.data.template import Template
from r1jax.eval.answers import Question, Sampled, questions
from r1jax.rollout.jobs import Job, jobs_of, trajectories
from r1jax.types import GOING, Trajectories


@dataclass(frozen=True)
class Group:
    """A question and its answers."""

    question: Question
    jobs: list[Job]

    @property
    def is_whole(self) -> bool:
        return all(job.finish != GOING for job in self.jobs)


@dataclass(frozen=True)
class Rollout:
    """Whole groups, and the others that it left."""

    groups: list[Group]
    kept: list[Group]
    usage: dict[str, float]
    """``Usage.metrics``."""
    rate: float
    """Tokens sampled per second."""
    sampled: Sampled | None = None
    """The answers of ``groups``, which are being scored; None: not yet, of a rollout from a checkpoint."""


def saved(kept: Sequence[Group], ahead: Rollout | None) -> tuple[dict[str, np.ndarray], dict | None]:
    """What a checkpoint holds of them: arrays, and JSON of the rollout ahead."""
    if ahead is None:
        return _arrays("kept", kept), None
    arrays = _arrays("kept", ahead.kept) | _arrays("ahead", ahead.groups)
    return arrays, {"usage": ahead.usage, "rate": ahead.rate}


def restored(
    arrays: Mapping[str, np.ndarray], about: dict | None, group: int, mixture: Sequence[dict], template: Template
) -> tuple[list[Group], Future[Rollout] | None]:
    """The inverse of ``saved``. Questions are made again from their rows, which their names are the indices of, and answers
    scored again."""
    kept = _groups("kept", arrays, group, mixture, template)
    if about is None:
        return kept, None
    ahead: Future[Rollout] = Future()
    ahead.set_result(Rollout(_groups("ahead", arrays, group, mixture, template), kept, about["usage"], about["rate"]))
    return kept, ahead


def _arrays(name: str, groups: Sequence[Group]) -> dict[str, np.ndarray]:
    jobs = [job for group in groups for job in group.jobs]
    if not jobs:
        return {}
    t = trajectories(jobs)
    found: dict[str, Any] = {f.name: vars(t)[f.name] for f in fields(t) if f.name != "loss_mask"}
    found |= {"round": np.array([job.round for job in jobs]), "cap": np.array([job.cap for job in jobs])}
    return {f"{name}/{key}": value for key, value in found.items() if value is not None}


def _groups(
    name: str, arrays: Mapping[str, np.ndarray], group: int, mixture: Sequence[dict], template: Template
) -> list[Group]:
    found = {key.removeprefix(f"{name}/"): value for key, value in arrays.items() if key.startswith(f"{name}/")}
    if not found:
        return []
    rounds, caps = found.pop("round"), found.pop("cap")
    jobs = jobs_of(Trajectories(loss_mask=None, **found), rounds, caps)
    groups = [jobs[i : i + group] for i in range(0, len(jobs), group)]
    names = [one[0].prompt_id for one in groups]
    asked = questions([mixture[i] for i in names], names, template)
    return [Group(question, one) for question, one in zip(asked, groups, strict=True)]
