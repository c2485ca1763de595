"""``r1jax data pass-rate``: how often a model solves each row, for a curriculum (``Source.pass_rate`` and ``Source.order``)."""

from __future__ import annotations

import sys

import jax

from r1jax import config
from r1jax.config import data_commands
from r1jax.config.base import GuardStop
from r1jax.data import output, sources
from r1jax.data.build import as_json
from r1jax.eval import answers as asking
from r1jax.eval.answers import Answers
from r1jax.eval.evaluate import is_right
from r1jax.eval.loaded import SMALLER, engine_for, find_template, load_sampler, open_model
from r1jax.plan.shortage import out_of_memory_is
from r1jax.rewards import Pool

TOGETHER = 256
"""Rows whose answers are held at once."""


@out_of_memory_is(f"lower --slots or --max-new-tokens; {SMALLER}")
def pass_rate(args: data_commands.DataPassRate) -> int:
    """Writes every row with ``pass_rate``, the share of its ``args.samples`` answers that earn at least 1.

    Raises:
      ConfigError: the user's mistakes.
      GuardStop: too many scores failed.
    """
    source = sources.named(args.data, split=args.split, reward=args.reward, limit=args.limit)
    rows = sources.load(source)
    output.check_output(args.out)
    opened = open_model(args)
    asked = asking.questions(rows, range(len(rows)), find_template(opened, args.template))
    workers, main = config.Workers(), jax.process_index() == 0
    rates: list[float] = []
    with Pool(workers) as pool:
        pool.check(source.rewards)
        sampler = load_sampler(opened, engine_for(asked, args.samples, args.slots), args)
        while len(rates) < len(asked):
            now = asked[len(rates) : len(rates) + TOGETHER]
            answers = asking.sample(
                now, sampler=sampler, pool=pool, tokenizer=opened.tokenizer, sampling=args.sampling, samples=args.samples,
                round=0, weights={source.name: source.rewards},
            ).scored()  # fmt: skip
            stop_if_scores_fail(answers, workers.max_error_share)
            rates += is_right(answers).reshape(-1, args.samples).mean(1).tolist()
            if main:
                print(f"{len(rates):,} of {len(asked):,} rows, mean pass rate {sum(rates) / len(rates):.3f}", file=sys.stderr)
    if main:
        with output.open_jsonl(args.out) as file:
            for question, rate in zip(asked, rates, strict=True):
                file.write(as_json({**question.row, "pass_rate": rate}, question.name) + "\n")
    return 0


def stop_if_scores_fail(answers: Answers, most: float) -> None:
    failed = [(name, s) for scores in answers.scores for name, s in scores.items() if s.status != "ok"]
    if len(failed) > most * len(answers.scores):
        name, first = failed[0]
        raise GuardStop(
            f"{len(failed)} of {len(answers.scores)} answers could not be scored, and a pass rate would be wrong; the first: "
            f"reward {name} {first.status}: {first.why}"
        )
