"""Answers with what is thought of them become token sequences whose last token's value is trained on, or read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from r1jax.config import ConfigError, RewardModel
from r1jax.data.packing import deal, pack
from r1jax.data.sources import Mixture
from r1jax.data.template import Template
from r1jax.data.tokenizer import Tokenizer
from r1jax.rewards.model_scores import final_summary
from r1jax.types import JudgedBatch

PATIENCE = 1000
"""Rows in a row that may be left out before that is taken for a mistake of the config."""


class Judged(NamedTuple):
    answers: tuple[np.ndarray, ...]
    """int32[n] each: the better and the worse of a pair, or one answer."""
    words: tuple[int, int]
    """Tokens of a pair's two answers without the prompt; of one answer (0, 0)."""
    target: float
    """The margin of a pair, or the label."""


class Taken(NamedTuple):
    found: list[Judged]
    row: int
    """The cursor after them."""
    left_out: int
    """Rows that were too long."""
    unbalanced: int
    """Pairs left out for the sake of the lengths."""
    words: tuple[int, int]
    """Tokens of all chosen and of all rejected answers so far, these included."""


class Laid(NamedTuple):
    tokens: np.ndarray
    """int32[M, B, T]; so ``positions`` and ``segments``."""
    positions: np.ndarray
    segments: np.ndarray
    ends: list[list[int]]
    """Of each bundle's sequences the place of the last token, in the flattened array."""
    count: int
    """Micro-batches that hold sequences; these come first."""


def encode(
    prompt: str | list[dict], completion: str, reads: str, template: Template, tokenizer: Tokenizer
) -> tuple[np.ndarray, int]:
    """Prompt, answer and end token, int32[n], and how many of these are not the prompt's.

    Args:
      completion: the assistant's whole turn.
      reads: as ``config.RewardModel.reads``. What the template pre-fills is no part of the prompt here.

    Raises:
      ConfigError: the tokenizer has no end token.
    """
    if not tokenizer.end_ids:
        raise ConfigError("the tokenizer has no end token, after which an answer is judged; give its directory an eos_token")
    rendered = template.render(prompt)
    before = rendered.text.removesuffix(rendered.prefill)
    tokens = tokenizer.encode(before + (final_summary(completion) if reads == "summary" else completion))
    tokens.append(tokenizer.end_ids[0])
    return np.array(tokens, np.int32), max(len(tokens) - len(tokenizer.encode(before)), 1)


def judged(row: dict, stage: RewardModel, template: Template, tokenizer: Tokenizer) -> Judged:
    """
    Raises:
      ConfigError: the row is not of the stage's form.
    """
    source = f"source {row.get('source')!r}"
    if stage.form == "pairwise":
        if not {"chosen", "rejected"} <= row.keys():
            raise ConfigError(f"{source}: form is 'pairwise', and a row lacks 'chosen' or 'rejected' (it has {', '.join(row)})")
        both = [encode(row["prompt"], row[name], stage.reads, template, tokenizer) for name in ("chosen", "rejected")]
        margin = row.get("margin", 0.0)
        if isinstance(margin, bool) or not isinstance(margin, int | float) or margin < 0:
            raise ConfigError(f"{source}: 'margin' is {margin!r:.60}; by how much 'chosen' is better is a number >= 0")
        return Judged((both[0][0], both[1][0]), (both[0][1], both[1][1]), float(margin))
    label = label_of(row)
    answer, _ = encode(row["prompt"], row["completion"], stage.reads, template, tokenizer)
    return Judged((answer,), (0, 0), label)


def label_of(row: dict) -> float:
    """1.0 of a good answer, 0.0 of a bad one: the row's ``label``, or else ``safe``.

    Raises:
      ConfigError: it has neither, or no completion.
    """
    source, label = f"source {row.get('source')!r}", row.get("label", row.get("safe"))
    if "completion" not in row or label is None:
        raise ConfigError(f"{source}: form is 'pointwise', and a row lacks 'completion' or 'label' (it has {', '.join(row)})")
    if label not in (0, 1):
        raise ConfigError(f"{source}: 'label' is {label!r:.60}; it is 1 for a good (safe) answer or 0 for a bad one")
    return float(label)


def take(
    mixture: Mixture, cursor: int, words: tuple[int, int], stage: RewardModel, template: Template, tokenizer: Tokenizer
) -> Taken:
    """The next ``stage.batch`` rows that fit, in the order of the mixture; of pairs those that keep the lengths of chosen and
    rejected answers balanced (see ``keeps_balance``).

    Args:
      words: as ``Taken.words``, before.

    Raises:
      ConfigError: ``PATIENCE`` rows one after the other are left out, or a row is not of the stage's form.
    """
    found: list[Judged] = []
    long, unbalanced, refused = 0, 0, 0
    while len(found) < stage.batch:
        one = judged(mixture[cursor], stage, template, tokenizer)
        cursor += 1
        if (size := sum(map(len, one.answers))) > stage.sequence_length:
            long, why = long + 1, f"longer than sequence_length {stage.sequence_length}, the last {size}; raise it"
        elif stage.form == "pairwise" and not keeps_balance(words, one.words, stage.length_balance):
            longer = "chosen" if one.words[0] > one.words[1] else "rejected"
            unbalanced += 1
            why = f"the {longer} answer of the last is the longer, as of too many; set length_balance to 0, or add other pairs"
        else:
            found.append(one)
            words = words[0] + one.words[0], words[1] + one.words[1]
            refused = 0
            continue
        refused += 1
        if refused == PATIENCE:
            raise ConfigError(f"{PATIENCE} rows one after the other are left out: {why}")
    return Taken(found, cursor, long, unbalanced, words)


def keeps_balance(words: tuple[int, int], more: tuple[int, int], share: float) -> bool:
    """Whether sums of chosen and rejected lengths may grow by a pair: the sums then differ by at most ``share`` of their mean,
    or the pair brings them closer together. 0 lets every pair in."""
    before, after = words[0] - words[1], words[0] - words[1] + more[0] - more[1]
    return not share or abs(after) <= share * (sum(words) + sum(more)) / 2 or before * (more[0] - more[1]) < 0


def batch_of(found: Sequence[Judged], stage: RewardModel, ways: int = 1) -> tuple[JudgedBatch, int]:
    """Numpy arrays [M, B, T], with as many micro-batches as the longest rows could need, and how many are not empty."""
    micro_batches = -(-stage.batch // stage.micro_batch)
    laid = lay([one.answers for one in found], stage.micro_batch, stage.sequence_length, micro_batches, ways)
    mask, targets = np.zeros(laid.tokens.shape, bool), np.zeros(laid.tokens.shape, np.float32)
    against = np.zeros(laid.tokens.shape, np.int32) if stage.form == "pairwise" else None
    for one, ends in zip(found, laid.ends, strict=True):
        mask.flat[ends[0]], targets.flat[ends[0]] = True, one.target
        if against is not None:
            against.flat[ends[0]] = ends[1] % stage.sequence_length
    return JudgedBatch(laid.tokens, laid.positions, laid.segments, mask, targets, against), laid.count


def lay(
    bundles: Sequence[Sequence[np.ndarray]], rows: int, length: int, micro_batches: int | None = None, ways: int = 1
) -> Laid:
    """Sequences laid into rows as ``packing.pack_sequences`` does; those of a bundle lie in one row.

    Args:
      bundles: of int32[n].
      rows: B, a multiple of ``ways``, the devices that share them.
      length: T.
      micro_batches: M; None is as many as the rows fill, at least 1.

    Raises:
      ValueError: a bundle is longer than a row, or the micro-batches do not suffice.
    """
    sizes = [sum(map(len, bundle)) for bundle in bundles]
    bins = pack(sizes, length)
    count = -(-len(bins) // rows)
    total = max(count, 1) if micro_batches is None else micro_batches
    if count > total:
        raise ValueError(f"{len(bins)} packed rows need {count} micro-batches of {rows} rows, more than {total}")
    tokens, positions, segments = (np.zeros((total * rows, length), np.int32) for _ in range(3))
    ends: list[list[int]] = [[] for _ in bundles]
    places = deal([sum(sizes[i] for i in members) for members in bins], rows, ways)
    for row, members in zip(places, bins, strict=True):
        at, segment = 0, 0
        for i in members:
            for sequence in bundles[i]:
                here, segment = slice(at, at + len(sequence)), segment + 1
                tokens[row, here], positions[row, here], segments[row, here] = sequence, np.arange(len(sequence)), segment
                at += len(sequence)
                ends[i].append(row * length + at - 1)
    arrays = (x.reshape(total, rows, length) for x in (tokens, positions, segments))
    return Laid(*arrays, ends, count)
