"""prompts -> rollout -> rewards: the part that training and evaluation share."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jax.experimental import multihost_utils

from r1jax import config
from r1jax.data.template import Template
from r1jax.data.tokenizer import Tokenizer
from r1jax.rewards import Item, Pool, Score, total
from r1jax.rollout import Sampler
from r1jax.types import FINISH, Trajectories

PATIENCE = 100
"""Rows per question found that may be left out before that is taken for a mistake of the config."""


@dataclass(frozen=True)
class Question:
    """A row and its prompt as tokens."""

    row: dict
    ids: list[int]
    prefill: str
    """What the template already wrote of the assistant's turn; rewards see it before the answer."""
    name: int
    """int32 that names the question in the random stream."""


@dataclass(frozen=True)
class Answers:
    """The answers to some questions, those to one question side by side."""

    questions: list[Question]
    """One per answer."""
    trajectories: Trajectories
    completions: list[str]
    """Each answer's text with its prefill and without its end token."""
    scores: list[dict[str, Score]]
    rewards: np.ndarray
    """float32[N]: weighted sums of the scores."""

    def values(self, name: str) -> np.ndarray:
        """float32[N]: one reward of every answer, nan where its source does not have it."""
        return np.array([s[name].value if name in s else np.nan for s in self.scores], np.float32)

    def sample(self, i: int, **more) -> dict:
        """Answer i as a row of samples.jsonl."""
        question, t = self.questions[i], self.trajectories
        return {
            "prompt_id": question.name,
            "sample": int(t.sample[i]),
            "source": question.row["source"],
            "prompt": question.row["prompt"],
            "completion": self.completions[i],
            "answer": question.row["answer"],
            "rewards": {name: {"value": s.value, "status": s.status, "why": s.why} for name, s in self.scores[i].items()},
            "reward": float(self.rewards[i]),
            "finish": FINISH[int(t.finish[i])],
            "length": int(t.length[i] - t.prompt_length[i]),
            **more,
        }


def questions(rows: Sequence[dict], names: Sequence[int], template: Template) -> list[Question]:
    return [Question(row, *template.encode(row["prompt"]), int(name)) for row, name in zip(rows, names, strict=True)]


def take(
    mixture: Sequence[dict], cursor: int, count: int, template: Template, max_tokens: int
) -> tuple[list[Question], int, int]:
    """The next ``count`` questions of at most ``max_tokens`` tokens, named by their index in the mixture.

    Returns:
      The questions, the cursor after them, and how many rows were longer and left out.

    Raises:
      ConfigError: almost all rows are longer.
    """
    found: list[Question] = []
    start = cursor
    while len(found) < count:
        (question,) = questions([mixture[cursor]], [cursor], template)
        cursor += 1
        if len(question.ids) <= max_tokens:
            found.append(question)
        elif cursor - start > PATIENCE * (len(found) + 1):
            raise config.ConfigError(
                f"{cursor - start - len(found)} of {cursor - start} prompts are longer than engine.max_prompt_tokens "
                f"{max_tokens}, the last {len(question.ids)}; raise it"
            )
    return found, cursor, cursor - start - count


def texts(asked: Sequence[Question], t: Trajectories, tokenizer: Tokenizer) -> list[str]:
    """The assistant's whole turn of each answer: prefill and sampled text, without the end token."""
    out = []
    for i, question in enumerate(asked):
        ids = t.tokens[i, t.prompt_length[i] : t.length[i]].tolist()
        if ids and FINISH[int(t.finish[i])] == "stop":
            ids = ids[:-1]
        out.append(question.prefill + tokenizer.decode(ids))
    return out


def score(
    pool: Pool, asked: Sequence[Question], completions: Sequence[str], weights: dict[str, dict[str, float]]
) -> list[dict[str, Score]]:
    """Every answer's scores by reward name. Each process scores its part of the answers, and all get all scores.

    Args:
      weights: source name -> reward name -> weight.
    """
    items = [
        Item(q.row["prompt"], text, q.row, tuple(weights[q.row["source"]])) for q, text in zip(asked, completions, strict=True)
    ]
    processes, me = jax.process_count(), jax.process_index()
    mine = pool.score(items[me::processes])
    if processes == 1:
        return mine
    packed = json.dumps([{name: [s.value, s.status, s.why] for name, s in scores.items()} for scores in mine]).encode()
    length = int(multihost_utils.process_allgather(np.array(len(packed))).max())
    gathered = multihost_utils.process_allgather(np.frombuffer(packed.ljust(length), np.uint8))
    parts = [[{n: Score(*v) for n, v in scores.items()} for scores in json.loads(bytes(part))] for part in gathered]
    return [parts[i % processes][i // processes] for i in range(len(items))]


def answer(
    asked: Sequence[Question],
    *,
    sampler: Sampler,
    pool: Pool,
    tokenizer: Tokenizer,
    sampling: config.Sampling,
    samples: int,
    round: int,
    weights: dict[str, dict[str, float]],
    progress: Callable[[int, int], None] = lambda answers, tokens: None,
    scoring: Callable[[], None] = lambda: None,
) -> Answers:
    """``samples`` scored answers to every question.

    Args:
      round: which rollout, for the random stream.
      weights: source name -> reward name -> weight.
      progress: called with (answers, tokens) as they are sampled.
      scoring: called when sampling is over and scoring begins.
    """
    t = sampler.generate(
        [q.ids for q in asked], sampling, samples=samples, round=round, ids=[q.name for q in asked], progress=progress
    )
    scoring()
    return scored(asked, t, pool=pool, tokenizer=tokenizer, weights=weights)


def scored(
    asked: Sequence[Question],
    t: Trajectories,
    *,
    pool: Pool,
    tokenizer: Tokenizer,
    weights: dict[str, dict[str, float]],
) -> Answers:
    """The sampled answers with their texts and scores, as many to each question.

    Args:
      weights: source name -> reward name -> weight.
    """
    each = [q for q in asked for _ in range(len(t.length) // len(asked))]
    completions = texts(each, t, tokenizer)
    scores = score(pool, each, completions, weights)
    rewards = np.array([total(s, weights[q.row["source"]]) for s, q in zip(scores, each, strict=True)], np.float32)
    return Answers(each, t, completions, scores, rewards)


def reward_metrics(answers: Answers) -> dict[str, float]:
    """Means of the rewards by name and by source, failures, and lengths. Denominator: the answers that have the reward."""
    t = answers.trajectories
    lengths = t.length - t.prompt_length
    out = {"reward/total": float(answers.rewards.mean())}
    for name in dict.fromkeys(n for s in answers.scores for n in s):
        out[f"reward/{name}"] = float(np.nanmean(answers.values(name)))
        failed = sum(s[name].status != "ok" for s in answers.scores if name in s)
        if failed:
            out[f"reward/{name}/errors"] = float(failed)
    sources = np.array([q.row["source"] for q in answers.questions])
    for source in dict.fromkeys(sources):
        out[f"source/{source}/reward"] = float(answers.rewards[sources == source].mean())
    return out | {
        "length/mean": float(lengths.mean()),
        "length/max": float(lengths.max()),
        "length/truncated": float((t.finish == 0).mean()),
    }
