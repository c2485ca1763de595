"""prompts -> rollout -> rewards: the part that training and evaluation share."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from r1jax import config, processes
from r1jax.data.template import Template
from r1jax.data.tokenizer import Tokenizer
from r1jax.rewards import Item, Pool, Score, total
from r1jax.rewards.tokens import TOKENS
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
    mixture: Sequence[dict],
    cursor: int,
    count: int,
    template: Template,
    max_tokens: int,
    passed_over: frozenset[str] = frozenset(),
) -> tuple[list[Question], int, int]:
    """The next ``count`` questions of at most ``max_tokens`` tokens, named by their index in the mixture.

    Args:
      passed_over: sources whose rows do not count yet.

    Returns:
      The questions, the cursor after them, and how many rows were longer and left out.

    Raises:
      ConfigError: almost all rows are longer.
    """
    found: list[Question] = []
    left_out = 0
    while len(found) < count:
        row, place = mixture[cursor], cursor
        cursor += 1
        if row["source"] in passed_over:
            continue
        (question,) = questions([row], [place], template)
        if len(question.ids) <= max_tokens:
            found.append(question)
            continue
        left_out += 1
        if left_out + len(found) > PATIENCE * (len(found) + 1):
            raise config.ConfigError(
                f"{left_out} of {left_out + len(found)} prompts are longer than engine.max_prompt_tokens {max_tokens}, the "
                f"last {len(question.ids)}; raise it"
            )
    return found, cursor, left_out


def sampled_ids(t: Trajectories) -> list[list[int]]:
    """Each answer's tokens, its end token included."""
    return [row[start:end].tolist() for row, start, end in zip(t.tokens, t.prompt_length, t.length, strict=True)]


def texts(asked: Sequence[Question], t: Trajectories, tokenizer: Tokenizer) -> list[str]:
    """The assistant's whole turn of each answer: prefill and sampled text, without the end token."""
    out = []
    for i, (question, ids) in enumerate(zip(asked, sampled_ids(t), strict=True)):
        if ids and FINISH[int(t.finish[i])] == "stop":
            ids = ids[:-1]
        out.append(question.prefill + tokenizer.decode(ids))
    return out


class Scoring:
    """Scores answers beside the accelerator's work. Each process scores its part of the answers, and all get all scores.

    Args:
      weights: source name -> reward name -> weight.
    """

    def __init__(self, pool: Pool, weights: dict[str, dict[str, float]]):
        self.weights = weights
        self._pool = pool
        self._rows: list[int] = []
        self._parts: list[Future[list[dict[str, Score]]]] = []

    def submit(
        self, rows: Sequence[int], asked: Sequence[Question], completions: Sequence[str], tokens: Sequence[list[int]]
    ) -> None:
        """Starts scoring answers; waits while ``workers.queue`` of them are under way.

        Args:
          rows: which of all answers these are: 0, 1, ..., in any order.
          tokens: each answer's ids without its prefill, which rewards find in the row.
        """
        items = [
            Item(q.row["prompt"], text, {**q.row, TOKENS: ids}, tuple(self.weights[q.row["source"]]))
            for q, text, ids in zip(asked, completions, tokens, strict=True)
        ]
        mine = items[(jax.process_index() - len(self._rows)) % jax.process_count() :: jax.process_count()]
        self._rows += map(int, rows)
        try:
            self._parts.append(self._pool.submit(mine))
        except ValueError as e:  # the other processes must hear of it, or they would wait for this one's scores
            self._parts.append(Future())
            self._parts[-1].set_exception(e)

    def scores(self) -> list[dict[str, Score]]:
        """Every submitted answer's scores by reward name, in the order of their rows.

        Raises:
          ValueError: the answers of this process, or of another one, could not be scored; in all processes.
        """
        count, mine, failure = jax.process_count(), [], None
        try:
            mine = [scores for part in self._parts for scores in part.result()]
        except Exception as e:
            if count == 1:
                raise
            failure = f"{type(e).__name__}: {e}"
        if count == 1:
            return self._ordered(mine)
        packed = [{name: [s.value, s.status, s.why] for name, s in scores.items()} for scores in mine]
        parts = _gather("scores", {"failure": failure, "scores": packed})
        for process, part in enumerate(parts):
            if part["failure"] is not None:
                raise ValueError(f"process {process} could not score its answers: {part['failure']}")
        unpacked = [[{n: Score(*v) for n, v in scores.items()} for scores in part["scores"]] for part in parts]
        return self._ordered([unpacked[i % count][i // count] for i in range(len(self._rows))])

    def _ordered(self, scores: list[dict[str, Score]]) -> list[dict[str, Score]]:
        return [scores[i] for i in np.argsort(self._rows)]


def from_first(name: str, value: Any, seconds: float = processes.PATIENCE) -> Any:
    """Process 0's JSON value, in every process. ``name`` and ``seconds`` are those of ``processes.meet``."""
    return json.loads(json.dumps(value)) if jax.process_count() == 1 else _gather(name, value, seconds)[0]


def _gather(name: str, value: Any, seconds: float = processes.PATIENCE) -> list[Any]:
    """Every process's JSON value."""
    packed = json.dumps(value).encode()
    length = int(processes.gather(f"length of {name}", np.array(len(packed)), seconds).max())
    length = 1 << length.bit_length()  # a program for each length is compiled
    gathered = processes.gather(name, np.frombuffer(packed.ljust(length), np.uint8))
    return [json.loads(bytes(part)) for part in gathered]


@dataclass(frozen=True)
class Sampled:
    """Answers that are being scored."""

    questions: list[Question]
    """One per answer."""
    trajectories: Trajectories
    completions: list[str]
    scoring: Scoring

    def scored(self) -> Answers:
        """Waits for the scores.

        Raises:
          ValueError: answers could not be scored.
        """
        scores, weights = self.scoring.scores(), self.scoring.weights
        sums = [total(s, weights[q.row["source"]]) for s, q in zip(scores, self.questions, strict=True)]
        return Answers(self.questions, self.trajectories, self.completions, scores, np.array(sums, np.float32))


def sample(
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
) -> Sampled:
    """``samples`` answers to every question, scored while the next ones are sampled.

    Args:
      round: which rollout, for the random stream.
      weights: source name -> reward name -> weight.
      progress: called with (answers, tokens) as they are sampled.
    """
    each, scoring = [q for q in asked for _ in range(samples)], Scoring(pool, weights)
    completions = [""] * len(each)

    def come(rows: np.ndarray, part: Trajectories) -> None:
        theirs = [each[i] for i in rows]
        new = texts(theirs, part, tokenizer)
        for i, text in zip(rows, new, strict=True):
            completions[i] = text
        scoring.submit(rows, theirs, new, sampled_ids(part))
        progress(len(new), int((part.length - part.prompt_length).sum()))

    t = sampler.generate(
        [q.ids for q in asked], sampling, samples=samples, round=round, ids=[q.name for q in asked], progress=come
    )
    return Sampled(each, t, completions, scoring)


def reward_metrics(answers: Answers) -> dict[str, float]:
    """Means of the rewards by name and by source, failures, and lengths. Denominator: the answers that have the reward."""
    t = answers.trajectories
    lengths = t.length - t.prompt_length
    out = {"reward/total": float(answers.rewards.mean())}
    for name in dict.fromkeys(n for s in answers.scores for n in s):
        out[f"reward/{name}"] = float(np.nanmean(answers.values(name)))
        kinds = Counter(s[name].status for s in answers.scores if name in s)
        out |= {f"reward/{name}/errors/{kind}": float(count) for kind, count in kinds.items() if kind != "ok"}
    sources = np.array([q.row["source"] for q in answers.questions])
    for source in dict.fromkeys(sources):
        out[f"source/{source}/reward"] = float(answers.rewards[sources == source].mean())
    return out | {
        "length/mean": float(lengths.mean()),
        "length/max": float(lengths.max()),
        "length/truncated": float((t.finish == 0).mean()),
    }
