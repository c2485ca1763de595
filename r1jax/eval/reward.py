"""``r1jax reward``: scores answers in a file, with the rewards and the workers of training."""

from __future__ import annotations

import itertools
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import track

from r1jax.config import ConfigError, commands
from r1jax.config.base import GuardStop
from r1jax.data import jsonl, output, sources
from r1jax.rewards import Item, Pool, Score
from r1jax.rewards.load import MODEL, split_options

if TYPE_CHECKING:  # imports jax, which takes seconds and is seldom needed
    from r1jax.eval.reward_model import Judge

AT_ONCE = 256
"""Answers that a reward model scores together."""


def reward(args: commands.Reward) -> int:
    """Writes every row of ``args.data`` with its scores to ``args.out``, in the order of the rows, and a summary to standard
    error. Holds ``workers.queue`` rows or so at a time.

    Raises:
      ConfigError: the user's mistakes.
      GuardStop: more than ``workers.max_error_share`` of the scores failed; the file is written.
    """
    output.check_output(args.out)
    waiting: deque[tuple[str, dict]] = deque()  # rows being scored
    summary = Summary(args.rewards)
    judges = open_judges(args.rewards)
    others = tuple(name for name in args.rewards if name not in judges)

    def items() -> Iterator[Item]:
        for where, row in jsonl.stream(args.data):
            waiting.append((where, row))
            yield item(where, row, others)

    with Pool(args.workers) as pool, output.open_jsonl(args.out) as file:
        pool.check(others)
        console = Console(stderr=True)
        found = pool.stream(items()) if others else ({} for _ in items())
        if judges:
            found = judged(found, waiting, judges, args.rewards)
        found = track(found, "scoring", None, console=console, disable=not console.is_terminal)
        for scores in found:
            where, row = waiting.popleft()
            summary.add(where, scores)
            output.write_row(file, row | described(scores, args.explain))
    print(summary, file=sys.stderr)
    if summary.failed > args.workers.max_error_share * summary.rows * len(args.rewards):
        raise GuardStop(
            f"{summary.failed} of {summary.rows * len(args.rewards)} scores failed, more than workers.max_error_share "
            f"{args.workers.max_error_share}; the first: {summary.first_failure}; {args.out} has all of them"
        )
    return 0


def open_judges(rewards: tuple[str, ...]) -> dict[str, Judge]:
    """Those of the rewards that are reward models, ``model{"run":"RUN"}``, with their weights.

    Raises:
      ConfigError: there is no such run, or it trained no reward model.
    """
    runs = {}
    for name in rewards:
        bare, options = split_options(name)
        if bare == MODEL:
            if options.keys() != {"run"} or not isinstance(options["run"], str):
                raise ConfigError(f'reward {name!r}: write a reward model as model{{"run":"RUN"}}, a run directory or RUN@STEP')
            runs[name] = options["run"]
    if not runs:
        return {}
    from r1jax import config, sharding
    from r1jax.eval.reward_model import Judge, open_judge

    mesh = sharding.make_mesh(config.Mesh())
    return {name: Judge(open_judge(run), mesh) for name, run in runs.items()}


def judged(
    found: Iterator[dict[str, Score]], rows: deque[tuple[str, dict]], judges: dict[str, Judge], order: tuple[str, ...]
) -> Iterator[dict[str, Score]]:
    """``found`` with the scores of reward models, by name in this order.

    Args:
      rows: those that were read and not yet written; of each part that is taken from ``found`` the first ones.
    """
    while part := list(itertools.islice(found, AT_ONCE)):
        mine = [row for _, row in itertools.islice(rows, len(part))]
        texts = [row["prompt"] for row in mine], [row["completion"] for row in mine]
        columns = {name: judge.scores(*texts) for name, judge in judges.items()}
        for i, scores in enumerate(part):
            both = scores | {name: column[i] for name, column in columns.items()}
            yield {name: both[name] for name in order}


def item(where: str, row: dict, rewards: tuple[str, ...]) -> Item:
    """
    Raises:
      ConfigError: the row has no prompt or no completion.
    """
    if problem := sources.prompt_problem(row):
        raise ConfigError(f"{where}: {problem}")
    if not isinstance(row.get("completion"), str):
        had = ", ".join(map(repr, row))
        raise ConfigError(f"{where}: a row must hold 'completion', a string, the assistant's whole turn (it has {had})")
    return Item(row["prompt"], row["completion"], {k: v for k, v in row.items() if k != "completion"}, rewards)


def described(scores: dict[str, Score], explain: bool) -> dict[str, Any]:
    """The fields that a row gets, each with a value per reward."""
    fields = {
        "rewards": {name: score.value for name, score in scores.items()},
        "status": {name: score.status for name, score in scores.items()},
    }
    return fields | ({"why": {name: score.why for name, score in scores.items()}} if explain else {})


class Summary:
    """How many rows, and of each reward the mean, in which a failed score counts as 0, and how the scores ended."""

    def __init__(self, rewards: tuple[str, ...]):
        self.rows, self.failed, self.first_failure = 0, 0, ""
        self._started = time.monotonic()
        self._sums = dict.fromkeys(rewards, 0.0)
        self._kinds = {name: Counter() for name in rewards}

    def add(self, where: str, scores: dict[str, Score]) -> None:
        self.rows += 1
        for name, score in scores.items():
            self._sums[name] += score.value
            self._kinds[name][score.status] += 1
            if score.status != "ok":
                self.failed += 1
                self.first_failure = self.first_failure or f"{where}: reward {name} {score.status}: {score.why}"

    def __str__(self) -> str:
        seconds = time.monotonic() - self._started
        width = max(map(len, self._sums))
        lines = [f"{self.rows} rows in {seconds:.1f} s, {self.rows / seconds:.0f} a second"]
        for name, kinds in self._kinds.items():
            how = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
            lines.append(f"{name:<{width}}  mean {self._sums[name] / self.rows:.4f}  {how}")
        return "\n".join(lines)
