"""Held-out accuracy during training."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np

from r1jax.config import ConfigError
from r1jax.config.base import GuardStop
from r1jax.eval import answers as asking
from r1jax.eval.estimators import pass_at_k
from r1jax.plan import spent
from r1jax.stages.workspace import Workspace

ROUND = 2**31 - 1  # one random stream for every evaluation, so that two of them differ by the policy alone
KEPT = 8  # held-out answers kept at the edges of a stage, so that before and after can be laid side by side, and failed ones


def hold_out(work: Workspace, edge: bool) -> dict[str, float]:
    """Evaluates, writes the metrics, and at the edges of a stage (before its first step, after its last) takes more answers
    and keeps some."""
    values, found = evaluate(
        work, samples=work.stage.eval.final_samples if edge else work.stage.eval.samples, greedy=edge and work.stage.eval.greedy
    )
    work.write(work.step, values)
    if edge and work.samples is not None:
        per_question = len(found.questions) // len({q.name for q in found.questions})
        kept = range(0, min(KEPT * per_question, len(found.questions)), per_question)
        work.samples.write(work.step, [found.sample(i, held_out=True) for i in kept])
    return values


def evaluate(work: Workspace, *, samples: int, greedy: bool = False) -> tuple[dict[str, float], asking.Answers]:
    """``eval/...`` metrics on the held-out rows, and the sampled answers.

    Prompts over ``engine.max_prompt_tokens`` are left out and counted.

    An answer is right when the first reward of its source is at least 1. ``eval/entropy`` is the mean of ``-log p`` over the
    sampled tokens, an unbiased estimate of the policy's entropy per token at the sampling temperature.

    Raises:
      ConfigError: all prompts are too long.
      GuardStop: too many scores failed.
    """
    stage = work.stage
    sampling = stage.eval.sampling or stage.sampling
    asked = asking.questions(work.held_out, range(len(work.held_out)), work.template)
    asked = [q for q in asked if len(q.ids) <= stage.engine.max_prompt_tokens]
    if not asked:
        raise ConfigError(
            f"all {len(work.held_out)} held-out prompts are longer than engine.max_prompt_tokens "
            f"{stage.engine.max_prompt_tokens}; raise it"
        )
    work.load_sampler()
    with work.phase("eval", len(asked) * (samples + greedy), "answers"):

        def ask(sampling, samples):
            answers = asking.sample(
                asked, sampler=work.sampler, pool=work.pool, tokenizer=work.tokenizer, sampling=sampling, samples=samples,
                round=ROUND, weights=work.weights, progress=work.display.advance,
            ).scored()  # fmt: skip
            stop_if_scores_fail(work, answers, held_out=True)
            work.count({"eval": spent.sampled(work.model, answers.trajectories, samples)})
            return answers

        found = ask(sampling, samples)
        values = {
            f"eval/{key.removeprefix('reward/')}": v
            for key, v in asking.reward_metrics(found).items()
            if key.startswith("reward/")
        }
        right = correct(work, found).reshape(len(asked), samples)
        values["eval/pass@1"] = float(right.mean())
        if samples > 1:
            values[f"eval/pass@{samples}"] = float(pass_at_k(right, samples).mean())
        if greedy:
            values["eval/greedy"] = float(correct(work, ask(dataclasses.replace(sampling, temperature=0.0), 1)).mean())
    t = found.trajectories
    values["eval/left_out"] = float(len(work.held_out) - len(asked))
    values["eval/entropy"] = float(-t.logprobs[t.loss_mask].mean())
    values["eval/length"] = float((t.length - t.prompt_length).mean())
    values["eval/truncated"] = float((t.finish == 0).mean())
    return values, found


def stop_if_scores_fail(work: Workspace, answers: asking.Answers, **more) -> None:
    """Stops the run where a reward is broken: what it learned from zeros that mean nothing would be wrong.

    Args:
      more: fields for the rows of samples.jsonl.

    Raises:
      GuardStop: more than ``workers.max_error_share`` of the scores failed. The first answers of each kind of failure are in
        samples.jsonl then.
    """
    share, count = work.stage.workers.max_error_share, sum(map(len, answers.scores))
    failed = [(i, name, s) for i, scores in enumerate(answers.scores) for name, s in scores.items() if s.status != "ok"]
    if len(failed) <= share * count:
        return
    kinds = Counter(f"{name} {score.status}" for _, name, score in failed)
    first = {kind: [i for i, name, s in failed if f"{name} {s.status}" == kind][:KEPT] for kind in kinds}
    if work.samples is not None:
        kept = sorted({i for indices in first.values() for i in indices})
        work.samples.write(work.step + 1, [answers.sample(i, **more) for i in kept])
    i, name, score = failed[0]
    raise GuardStop(
        f"{len(failed)} of {count} scores failed ({', '.join(f'{n} {kind}' for kind, n in kinds.most_common())}), more than "
        f"workers.max_error_share {share}; the first: reward {name} {score.status}: {score.why} (answer "
        f"{answers.completions[i]!r:.120}); {work.run.path / 'samples.jsonl'} ends with such answers"
    )


def correct(work: Workspace, found: asking.Answers) -> np.ndarray:
    """bool[N]: the first reward of the answer's source is at least 1."""
    first = {source: next(iter(rewards)) for source, rewards in work.weights.items() if rewards}
    return np.array([s[first[q.row["source"]]].value >= 1 for s, q in zip(found.scores, found.questions, strict=True)])
