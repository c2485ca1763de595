"""Training of a reward model: judged answers -> packed batch -> update -> checkpoint."""

from __future__ import annotations

import numpy as np

from r1jax.config import RewardModel
from r1jax.config.base import ConfigError
from r1jax.data import preferences
from r1jax.eval.reward_model import Reader
from r1jax.plan import spent
from r1jax.stages.workspace import Workspace, told


def begin(work: Workspace) -> None:
    """What comes before the first step."""
    if work.stage.eval.every:
        hold_out(work)
    work.stop_if_terminated()


def train(work: Workspace) -> None:
    """Runs to ``stage.steps``, from wherever the workspace was restored."""
    stage, cursor = work.stage, work.cursor
    while work.step < stage.steps:
        with work.profile.round(work.step + 1, work.step + 1), work.phase("update"):
            words = cursor.chosen_tokens, cursor.rejected_tokens
            taken = preferences.take(work.mixture, cursor.row, words, stage, work.template, work.tokenizer)
            cursor.row, cursor.left_out = taken.row, cursor.left_out + taken.left_out
            cursor.unbalanced += taken.unbalanced
            cursor.chosen_tokens, cursor.rejected_tokens = taken.words
            batch, count = preferences.batch_of(taken.found, stage, work.trainer.ways)
            values = told(work.update(work.trainer.put(batch), count, float(stage.batch)))
            lengths = [len(a) for one in taken.found for a in one.answers]
            work.display.advance(1, sum(lengths))
        work.count({"update": spent.trained(work.model, lengths, 0)})
        cursor.round += 1
        work.write(work.step, values | work.data_metrics() | length_metrics(work))
        end_of_step(work)


def length_metrics(work: Workspace) -> dict[str, float]:
    """Of pairs: mean lengths of all chosen and all rejected answers so far, in tokens, and how many pairs were left out so that
    these agree."""
    cursor, pairs = work.cursor, work.cursor.round * work.stage.batch
    if work.stage.form != "pairwise":
        return {}
    return {
        "length/chosen": cursor.chosen_tokens / pairs,
        "length/rejected": cursor.rejected_tokens / pairs,
        "data/unbalanced": float(cursor.unbalanced),
    }


def end_of_step(work: Workspace) -> None:
    stage, step = work.stage, work.step
    last, score = step >= stage.steps, None
    if stage.eval.every and (step % stage.eval.every == 0 or last):
        score = hold_out(work)["eval/accuracy"]
    if last or step % stage.checkpoint.every == 0:
        work.save(score)
    work.stop_if_terminated()


def hold_out(work: Workspace) -> dict[str, float]:
    """Writes ``eval/...`` metrics of the held-out rows. Denominator: the rows.

    Raises:
      ConfigError: a row is not of the stage's form.
    """
    stage, rows = work.stage, work.held_out
    reader = Reader(work.model, work.mesh, work.template, work.tokenizer, stage.reads)
    with work.phase("eval", len(rows), "rows"):
        if stage.form == "pairwise":
            values = pair_values(stage, reader, work.state.params, rows)
        else:
            values = label_values(stage, reader, work.state.params, rows)
        work.display.advance(len(rows), 0)
    values = {f"eval/{name}": float(value) for name, value in values.items()}
    work.write(work.step, values)
    return values


def pair_values(stage: RewardModel, reader: Reader, params, rows: list[dict]) -> dict[str, float]:
    for row in rows:
        if not {"chosen", "rejected"} <= row.keys():
            raise ConfigError(f"held-out rows of {row['source']!r}: one lacks 'chosen' or 'rejected' (it has {', '.join(row)})")
    both = [row[name] for name in ("chosen", "rejected") for row in rows]
    good, bad = reader.values(params, [row["prompt"] for row in rows] * 2, both).reshape(2, -1).astype(np.float64)
    margins = stage.margin * np.array([row.get("margin", 0.0) for row in rows])
    ahead = good - bad
    return {"accuracy": (ahead > 0).mean(), "loss": np.logaddexp(0, margins - ahead).mean(), "margin": ahead.mean()}


def label_values(stage: RewardModel, reader: Reader, params, rows: list[dict]) -> dict[str, float]:
    labels = np.array([preferences.label_of(row) for row in rows])
    values = reader.values(params, [row["prompt"] for row in rows], [row["completion"] for row in rows]).astype(np.float64)
    right = np.where(labels > 0.5, values > 0, values < 0)
    out = {"accuracy": right.mean(), "loss": np.logaddexp(0, np.where(labels > 0.5, -values, values)).mean()}
    kinds = {"good": labels > 0.5, "bad": labels < 0.5}
    return out | {f"accuracy/{name}": right[which].mean() for name, which in kinds.items() if which.any()}
