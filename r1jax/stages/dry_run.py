"""``train --dry-run``: everything that can be checked and shown without making a run directory or loading weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from r1jax import sharding
from r1jax.config import GRPO, SFT, AnyStage, Pipeline, RewardModel, Stage
from r1jax.data import preferences, sft
from r1jax.data.packing import pack_sequences
from r1jax.data.sources import Mixture
from r1jax.data.template import Template
from r1jax.data.tokenizer import Tokenizer
from r1jax.eval import answers as asking
from r1jax.observe.text import printable, shorten
from r1jax.plan import micro_batch
from r1jax.rewards import Item, Pool
from r1jax.rewards.tokens import TOKENS
from r1jax.stages.decide import Decision
from r1jax.stages.preflight import gold_answer
from r1jax.stages.prepare import Prepared, PreparedRows, prepare_all

TEXT_LIMIT, TEXT_LINES = 2000, 30


def dry_run(
    settings: AnyStage | Pipeline, name: str, run: Path | None = None, decisions: Mapping[str, Decision] | None = None
) -> int:
    """Validates each stage that would be run, prints what it needs and what it will see, and returns 0.

    Args:
      run: the run directory, if it is there.
      decisions: of a pipeline, for each stage.

    Raises:
      ConfigError: what a run would find wrong before its first step, too little memory included.
    """
    console = Console(highlight=False, markup=False, soft_wrap=True)
    prepared = prepare_all(settings, name, run if decisions else None, decisions)
    for title, decision in (decisions or {}).items():
        console.print(decision.line(title))
    for title, found in prepared.items():
        (show_rows if isinstance(found, PreparedRows) else show)(console, title, found)
    console.print(f"{name}: dry run only, nothing was written")
    return 0


def show(console: Console, title: str, found: Prepared) -> None:
    stage = found.stage
    console.print(found.memory.table(title))
    if found.mesh_reason:
        console.print(found.mesh_reason)
    if found.chosen:
        console.print(micro_batch.line(stage, found.mesh))
    where, sampled = (sharding.describe(mesh) for mesh in (found.mesh, sharding.sampler_mesh(stage.engine, found.mesh)))
    where += "" if sampled == where and not stage.engine.devices else f", sampled on {sampled}"
    console.print(f"{title}: {stage.steps} steps on {where}, {len(found.held_out)} held-out problems")
    if found.mixture is None:
        console.print(f"{title}: its rows are not made yet, so that none is shown")
        return
    if isinstance(stage, RewardModel):
        show_judged(console, stage, found.mixture, found.template, found.tokenizer)
        return
    if isinstance(stage, GRPO):
        show_question(console, stage, found.mixture, found.template)
    else:
        show_packed_row(console, stage, found.mixture, found.template, found.tokenizer)
    show_rewards(console, stage, found.mixture[0], found.template, found.tokenizer)


def show_rows(console: Console, title: str, found: PreparedRows) -> None:
    """Of a stage that makes rows."""
    stage = found.stage
    need = f"{found.memory.need / 2**30:.2f} GiB a device"
    console.print(f"{title}: {stage.init} answers on {sharding.describe(found.mesh)}, {need}")
    if found.prompts is None or found.joined is None:
        console.print(f"{title}: its rows are not made yet, so that none is shown")
        return
    prompts = sum(len(rows) for _, rows in found.prompts)
    joined = "".join(f", {len(rows):,} rows of {s.name} join them" for s, rows in found.joined)
    console.print(f"{prompts:,} prompts x {stage.samples} answers{joined}; the first prompt, as the model sees it:")
    row = found.prompts[0][1][0]
    quote(console, found.template.render(row["prompt"]).text)
    show_rewards(console, stage, row, found.template, found.tokenizer)


def show_question(console: Console, stage: GRPO, mixture: Mixture, template: Template) -> None:
    count = stage.questions * stage.minibatches
    asked, _, left_out = asking.take(mixture, 0, count, template, stage.engine.max_prompt_tokens)
    lengths = [len(q.ids) for q in asked]
    console.print(
        f"a round is {count} questions x {stage.group} answers; prompts have {min(lengths)} to {max(lengths)} tokens, "
        f"{left_out} of {count + left_out} were too long; the first, as the model sees it:"
    )
    quote(console, template.render(asked[0].row["prompt"]).text)


def show_packed_row(console: Console, stage: SFT, mixture: Mixture, template: Template, tokenizer: Tokenizer) -> None:
    examples, _, left_out = sft.take(mixture, 0, stage.batch, template, tokenizer, stage.sequence_length)
    batch, count = pack_sequences(
        [e.tokens for e in examples], [e.trained for e in examples], rows=stage.micro_batch, length=stage.sequence_length
    )
    filled = batch.segments > 0
    console.print(
        f"a batch is {stage.batch} sequences in {count} micro-batches, {filled.mean():.0%} full, {batch.mask.sum():,} tokens "
        f"trained on; {left_out} of {stage.batch + left_out} rows were too long; the first packed row:"
    )
    quote(console, tokenizer.decode(batch.tokens[0, 0][filled[0, 0]]))


def show_judged(
    console: Console, stage: RewardModel, mixture: Mixture, template: Template, tokenizer: Tokenizer
) -> None:
    """Of a reward model: a batch in numbers, and the first row as it is read."""
    taken = preferences.take(mixture, 0, (0, 0), stage, template, tokenizer)
    batch, count = preferences.batch_of(taken.found, stage)
    pairs = stage.form == "pairwise"
    first = taken.found[0]
    unbalanced = f", {taken.unbalanced} left out to keep chosen and rejected equally long" if pairs else ""
    console.print(
        f"a batch is {stage.batch} {'pairs' if pairs else 'labelled answers'} in {count} micro-batches, "
        f"{(batch.segments > 0).mean():.0%} full; {taken.left_out} of {taken.row} rows were too long{unbalanced}; the first:"
    )
    for name, answer in zip(("better", "worse") if pairs else (f"label {first.target:g}",), first.answers, strict=True):
        console.print(f"{name}:")
        quote(console, tokenizer.decode(answer))


def show_rewards(console: Console, stage: AnyStage, row: dict, template: Template, tokenizer: Tokenizer) -> None:
    """Loads every reward, and shows what the gold answer of a row earns."""
    held_out = stage.eval.sources if isinstance(stage, Stage) else ()
    names = {s.name: tuple(s.rewards) for s in (*stage.sources, *held_out)}
    with Pool(stage.workers) as pool:
        pool.check([name for by_source in names.values() for name in by_source])
        prefill = template.render(row["prompt"]).prefill
        gold = gold_answer(row, prefill)
        if gold is None:
            console.print("the first row has no answer, so no gold answer can be scored")
            return
        with_tokens = {**row, TOKENS: tokenizer.encode(gold.removeprefix(prefill))}
        (scores,) = pool.score([Item(row["prompt"], gold, with_tokens, names[row["source"]])])
    console.print("a gold answer and its rewards:")
    quote(console, gold)
    for name, score in scores.items():
        status = "" if score.status == "ok" else f" {score.status}"
        console.print(f"  {name} {score.value:g}{status}" + (f" ({score.why})" if score.why else ""))


def quote(console: Console, text: str) -> None:
    for line in shorten(printable(text), TEXT_LIMIT, TEXT_LINES).split("\n"):
        console.print(f"  | {line}")
