"""Supervised fine-tuning: rows -> packed batch -> update -> checkpoint. Distillation is this stage with a teacher's rows."""

from __future__ import annotations

from r1jax.data import sft
from r1jax.data.packing import pack_sequences
from r1jax.losses.sums import denominator
from r1jax.plan import spent
from r1jax.stages.evaluation import hold_out
from r1jax.stages.workspace import Workspace, told


def train(work: Workspace) -> None:
    """Runs to ``stage.steps``, from wherever the workspace was restored."""
    stage, cursor = work.stage, work.cursor
    while work.step < stage.steps:
        with work.profile.round(work.step + 1, work.step + 1), work.phase("update"):
            examples, cursor.row, left_out = sft.take(
                work.mixture, cursor.row, stage.batch, work.template, work.tokenizer, stage.sequence_length
            )
            cursor.left_out += left_out
            batch, count = pack_sequences(
                [e.tokens for e in examples],
                [e.trained for e in examples],
                rows=stage.micro_batch,
                length=stage.sequence_length,
                normalize="token",
                micro_batches=-(-stage.batch // stage.micro_batch),
                ways=work.trainer.ways,
            )
            tokens = int(batch.mask.sum())
            total = denominator("token", answers=stage.batch, tokens=tokens, cap=stage.sequence_length)
            values = told(work.update(work.trainer.put(batch), count, total))
            work.display.advance(1, int((batch.segments > 0).sum()))
        work.count({"update": spent.trained(work.model, [len(e.tokens) for e in examples], tokens)})
        cursor.round += 1
        work.write(work.step, values | work.data_metrics())
        end_of_step(work)


def end_of_step(work: Workspace) -> None:
    stage, step = work.stage, work.step
    last, score = step >= stage.steps, None
    if stage.eval.every and (step % stage.eval.every == 0 or last):
        values = hold_out(work, last)
        score = values["eval/pass@1"]
    if last or step % stage.checkpoint.every == 0:
        work.save(score)
    if stage.export.every and (step % stage.export.every == 0 or last):
        work.export()
    work.stop_if_terminated()
