"""``train --dry-run``: everything that can be checked and shown without making a run directory or loading weights."""

from __future__ import annotations

from rich.console import Console

from r1jax import sharding
from r1jax.config import GRPO, SFT, Pipeline, Stage
from r1jax.data import sft
from r1jax.data.packing import pack_sequences
from r1jax.data.sources import Mixture
from r1jax.data.template import Template
from r1jax.data.tokenizer import Tokenizer
from r1jax.eval import answers as asking
from r1jax.observe.text import printable, shorten
from r1jax.plan import micro_batch
from r1jax.rewards import Item, Pool
from r1jax.rewards.tokens import TOKENS
from r1jax.stages.preflight import gold_answer
from r1jax.stages.prepare import Prepared, prepare_all

TEXT_LIMIT, TEXT_LINES = 2000, 30


def dry_run(settings: Stage | Pipeline, name: str) -> int:
    """Validates each stage, prints what it needs and what it will see, and returns 0.

    Raises:
      ConfigError: what a run would find wrong before its first step, too little memory included.
    """
    console = Console(highlight=False, markup=False, soft_wrap=True)
    for title, found in prepare_all(settings, name).items():
        show(console, title, found)
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
    if isinstance(stage, GRPO):
        show_question(console, stage, found.mixture, found.template)
    else:
        show_packed_row(console, stage, found.mixture, found.template, found.tokenizer)
    show_rewards(console, stage, found.mixture[0], found.template, found.tokenizer)


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


def show_rewards(console: Console, stage: Stage, row: dict, template: Template, tokenizer: Tokenizer) -> None:
    """Loads every reward, and shows what the gold answer of a row earns."""
    names = {s.name: tuple(s.rewards) for s in (*stage.sources, *stage.eval.sources)}
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
