"""Sequences of many lengths laid into rows of one length."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np

from r1jax.types import PackedBatch


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Which sequences share a row: best-fit decreasing. Each goes, the longest first, into the fullest row that still has room.

    Equal lengths go in the order given, so that the result is a function of the arguments alone.

    Args:
      lengths: of the sequences, each from 1 to ``capacity``.
      capacity: of a row.

    Returns:
      The rows, each the indices of its sequences.

    Raises:
      ValueError: a length is out of range.
    """
    for index, length in enumerate(lengths):
        if not 1 <= length <= capacity:
            raise ValueError(f"sequence {index} has {length} tokens; a row takes 1 to {capacity}: leave it out or cut it")
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, row), sorted
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = bisect.bisect_left(room, (lengths[index], -1))
        if place < len(room):
            free, row = room.pop(place)
        else:
            free, row = capacity, len(rows)
            rows.append([])
        rows[row].append(index)
        bisect.insort(room, (free - lengths[index], row))
    return rows


def pack_sequences(
    sequences: Sequence[Sequence[int] | np.ndarray],
    trained: Sequence[Sequence[bool] | np.ndarray],
    *,
    rows: int,
    length: int,
    advantages: Sequence[float] | np.ndarray | None = None,
    sampler_logprobs: Sequence[Sequence[float] | np.ndarray] | None = None,
    normalize: str = "sequence",
    micro_batches: int | None = None,
) -> tuple[PackedBatch, int]:
    """Packs N sequences of token ids.

    A sequence's first token is nobody's target, so it is never trained on, whatever ``trained`` says.

    Args:
      sequences: N of int[n].
      trained: N of bool[n], aligned to the tokens: this token was sampled, or is part of the completion.
      rows: B, rows in a micro-batch.
      length: T, tokens in a row.
      advantages: float[N], or None.
      sampler_logprobs: N of float[n], aligned to the tokens, or None.
      normalize: ``sequence`` gives each target the weight 1/|o|, where |o| counts the sequence's targets that are trained on;
        ``token`` and ``constant`` give 1.
      micro_batches: M; None is as many as the rows fill, at least 1. More are padded with empty ones.

    Returns:
      A ``PackedBatch`` of numpy arrays [M, B, T], and the number of micro-batches that are not empty; these come first.

    Raises:
      ValueError: a sequence is empty or longer than T, arguments disagree in length, or M micro-batches do not suffice.
    """
    if normalize not in ("sequence", "token", "constant"):
        raise ValueError(f"normalize is {normalize!r}; use 'sequence', 'token' or 'constant'")
    lengths = np.array([len(s) for s in sequences], np.int64)
    _same_lengths(lengths, "trained", trained)
    if sampler_logprobs is not None:
        _same_lengths(lengths, "sampler_logprobs", sampler_logprobs)
    if advantages is not None and len(advantages) != len(sequences):
        raise ValueError(f"{len(advantages)} advantages for {len(sequences)} sequences; there must be one each")
    bins = pack(lengths.tolist(), length)
    filled = -(-len(bins) // rows)
    total = max(filled, 1) if micro_batches is None else micro_batches
    if filled > total:
        raise ValueError(f"{len(bins)} packed rows need {filled} micro-batches of {rows} rows, more than micro_batches={total}")

    # From here on one flat array per field: the tokens of all sequences, one sequence after the other in the bins' order.
    order = np.array([i for row in bins for i in row], np.int64)
    lengths = lengths[order]
    row = np.repeat(np.arange(len(bins)), [len(b) for b in bins])
    segment = np.concatenate([np.arange(1, len(b) + 1) for b in bins]) if bins else np.zeros(0, np.int64)
    begin = np.cumsum(lengths) - lengths
    row_begin = begin[segment == 1][row] if bins else begin
    position = np.arange(lengths.sum()) - np.repeat(begin, lengths)
    place = np.repeat(row * length + begin - row_begin, lengths) + position

    def flat(values: Sequence, dtype: type) -> np.ndarray:
        return np.concatenate([np.asarray(values[i]) for i in order]).astype(dtype) if bins else np.zeros(0, dtype)

    def shifted(values: np.ndarray) -> np.ndarray:
        """Each position gets its sequence's next value; the last gets 0."""
        return np.where(position + 1 < np.repeat(lengths, lengths), np.append(values[1:], 0), 0).astype(values.dtype)

    def laid(values: np.ndarray, dtype: type) -> np.ndarray:
        out = np.zeros(total * rows * length, dtype)
        out[place] = values
        return out.reshape(total, rows, length)

    tokens, mask = flat(sequences, np.int32), shifted(flat(trained, bool))
    if normalize == "sequence":
        name = np.repeat(np.arange(len(order)), lengths)
        count = np.bincount(name, mask, minlength=len(order))
        weights = mask / np.maximum(count, 1)[name]
    else:
        weights = mask
    batch = PackedBatch(
        tokens=laid(tokens, np.int32),
        positions=laid(position, np.int32),
        segments=laid(np.repeat(segment, lengths), np.int32),
        targets=laid(shifted(tokens), np.int32),
        mask=laid(mask, bool),
        weights=laid(weights, np.float32),
        advantages=None
        if advantages is None
        else laid(np.where(mask, np.repeat(np.asarray(advantages, np.float32)[order], lengths), 0), np.float32),
        sampler_logprobs=None
        if sampler_logprobs is None
        else laid(np.where(mask, shifted(flat(sampler_logprobs, np.float32)), 0), np.float32),
    )
    return batch, filled


def _same_lengths(lengths: np.ndarray, name: str, values: Sequence) -> None:
    if len(values) != len(lengths):
        raise ValueError(f"{name} holds {len(values)} rows for {len(lengths)} sequences; there must be one each")
    for index, (length, value) in enumerate(zip(lengths, values, strict=True)):
        if len(value) != length:
            raise ValueError(f"{name} {index} has {len(value)} entries for {length} tokens; it must be aligned to the tokens")
