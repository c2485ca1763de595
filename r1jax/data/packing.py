"""Sequences of many lengths laid into rows of one length.

R1's trainer sorts a batch by length, deals it to the ranks, fills rows by best fit on each, and makes their number equal
(arXiv 2501.12948v2, B.1). Here best fit is over all ranks, which leaves fewer rows, and the filled rows are dealt; every rank
has as many rows of each micro-batch by construction.
"""

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


def deal(loads: Sequence[int], rows: int, ways: int) -> list[int]:
    """Where each filled row goes: place p is row ``p % rows`` of micro-batch ``p // rows``.

    They are taken by falling number of tokens, so that those of one micro-batch are alike, and dealt to its devices there and
    back. Of the real tokens in a micro-batch no device then has more than another by more than its fullest row has over its
    emptiest.

    Args:
      loads: real tokens of the filled rows.
      rows: of a micro-batch.
      ways: devices that share them, ``rows / ways`` next to each other on each.
    """
    each = rows // ways
    turns = [d * each + k for k in range(each) for d in (range(ways) if k % 2 == 0 else reversed(range(ways)))]
    places = [0] * len(loads)
    for number, row in enumerate(sorted(range(len(loads)), key=lambda i: -loads[i])):
        places[row] = number // rows * rows + turns[number % rows]
    return places


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
    ways: int = 1,
    group: int = 1,
    prompt_length: Sequence[int] | np.ndarray | None = None,
    routes: Sequence[np.ndarray] | None = None,
) -> tuple[PackedBatch, int]:
    """Packs N sequences of token ids.

    A sequence's first token is nobody's target, so it is never trained on, whatever ``trained`` says.

    With ``group`` above 1 the answers to a question share their prompt: all of it but its last two tokens is laid once, in
    front of the answers, which see it through ``PackedBatch.prefix``. The last two stand before each answer, for they predict
    its first token: the last by the head, the one before it by the multi-token-prediction module.

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
      ways: devices that share a micro-batch's rows, a divisor of ``rows``; they get about as many real tokens each.
      group: this many sequences one after the other begin with the same prompt, and share it.
      prompt_length: int[N], tokens of each sequence's prompt; needed for ``group`` above 1.
      routes: N of uint8 or uint16[n, L, K], the experts of each token (``Trajectories.routes``), or None. Those of a shared
        prompt are its first answer's.

    Returns:
      A ``PackedBatch`` of numpy arrays [M, B, T], and the number of micro-batches that are not empty; these come first.

    Raises:
      ValueError: a sequence is empty or longer than T, arguments disagree in length, M micro-batches do not suffice, or
        ``ways`` does not divide ``rows``.
    """
    if normalize not in ("sequence", "token", "constant"):
        raise ValueError(f"normalize is {normalize!r}; use 'sequence', 'token' or 'constant'")
    lengths = np.array([len(s) for s in sequences], np.int64)
    _same_lengths(lengths, "trained", trained)
    if sampler_logprobs is not None:
        _same_lengths(lengths, "sampler_logprobs", sampler_logprobs)
    if routes is not None:
        _same_lengths(lengths, "routes", routes)
    if advantages is not None and len(advantages) != len(sequences):
        raise ValueError(f"{len(advantages)} advantages for {len(sequences)} sequences; there must be one each")
    bundles = _bundles(lengths, group, prompt_length, length)
    if rows % ways:
        raise ValueError(f"{rows} rows do not divide among {ways} devices")
    sizes = [sum(stop - start for _, start, stop in bundle) for bundle in bundles]
    bins = pack(sizes, length)
    filled = -(-len(bins) // rows)
    total = max(filled, 1) if micro_batches is None else micro_batches
    if filled > total:
        raise ValueError(f"{len(bins)} packed rows need {filled} micro-batches of {rows} rows, more than micro_batches={total}")

    # A piece is a stretch of one sequence. From here on one flat array per field, over the tokens of all pieces in the bins'
    # order.
    pieces, row, segment, prefix = [], [], [], []
    places = deal([sum(sizes[i] for i in members) for members in bins], rows, ways)
    for number, members in sorted(zip(places, bins, strict=True)):
        used = 0
        for bundle in (bundles[i] for i in members):
            pieces += bundle
            row += [number] * len(bundle)
            segment += range(used + 1, used + len(bundle) + 1)
            # The first piece of a shared bundle is the prompt, and the others see it.
            prefix += [0] + [used + 1] * (len(bundle) - 1)
            used += len(bundle)
    sequence, start, stop = np.array(pieces, np.int64).reshape(-1, 3).T
    size = stop - start
    row, segment, prefix = (np.array(x, np.int64) for x in (row, segment, prefix))
    before = np.cumsum(size) - size  # tokens of all pieces before this one
    row_begin = before[np.searchsorted(row, row)] if len(row) else before
    position = np.arange(size.sum()) - np.repeat(before - start, size)
    place = np.repeat(row * length - row_begin, size) + np.arange(size.sum())

    owner = np.repeat(sequence, size)
    here = np.repeat((np.cumsum(lengths) - lengths)[sequence], size) + position  # index into all sequences one after the other
    has_next = position + 1 < lengths[owner]

    def flat(values: Sequence, dtype: type) -> np.ndarray:
        """One value more than there are tokens: the last token's next is never used."""
        return np.append(np.concatenate([np.asarray(v) for v in values]) if len(values) else [], 0).astype(dtype)

    def following(values: Sequence, dtype: type) -> np.ndarray:
        return np.where(has_next, flat(values, dtype)[here + 1], 0)

    def laid(values: np.ndarray, dtype: type) -> np.ndarray:
        out = np.zeros(total * rows * length, dtype)
        out[place] = values
        return out.reshape(total, rows, length)

    mask = following(trained, bool)
    weights = mask / np.maximum(np.bincount(owner, mask, minlength=len(lengths)), 1)[owner] if normalize == "sequence" else mask

    def laid_routes() -> np.ndarray:
        every = np.concatenate(routes)
        out = np.full((total * rows * length, *every.shape[1:]), np.iinfo(every.dtype).max, every.dtype)
        out[place] = every[here]
        return out.reshape(total, rows, length, -1)

    def at_targets(values: np.ndarray) -> np.ndarray:
        return laid(np.where(mask, values, 0), np.float32)

    batch = PackedBatch(
        tokens=laid(flat(sequences, np.int32)[here], np.int32),
        positions=laid(position, np.int32),
        segments=laid(np.repeat(segment, size), np.int32),
        prefix=laid(np.repeat(prefix, size), np.int32) if group > 1 else None,
        targets=laid(following(sequences, np.int32), np.int32),
        mask=laid(mask, bool),
        weights=laid(weights, np.float32),
        advantages=None if advantages is None else at_targets(np.asarray(advantages, np.float32)[owner]),
        sampler_logprobs=None if sampler_logprobs is None else at_targets(following(sampler_logprobs, np.float32)),
        routes=None if routes is None else laid_routes(),
    )
    return batch, filled


def _bundles(lengths: np.ndarray, group: int, prompt_length, capacity: int) -> list[list[tuple[int, int, int]]]:
    """What must lie in one row, as pieces (sequence, start, stop): each sequence alone; or a prompt and as many of its
    answers as fit."""
    if group <= 1:
        return [[(i, 0, int(n))] for i, n in enumerate(lengths)]
    if prompt_length is None or len(prompt_length) != len(lengths) or len(lengths) % group:
        raise ValueError(f"{len(lengths)} sequences in groups of {group} need as many prompt lengths, and whole groups")
    bundles = []
    for first in range(0, len(lengths), group):
        shared = int(prompt_length[first]) - 2
        if shared < 1:  # nothing is left to share
            bundles += [[(i, 0, int(lengths[i]))] for i in range(first, first + group)]
            continue
        bundle, used = [], capacity + 1
        for i in range(first, first + group):
            answer = int(lengths[i]) - shared
            if used + answer > capacity:
                bundle, used = [(first, 0, shared)], shared
                bundles.append(bundle)
            bundle.append((i, shared, int(lengths[i])))
            used += answer
    return bundles


def _same_lengths(lengths: np.ndarray, name: str, values: Sequence) -> None:
    if len(values) != len(lengths):
        raise ValueError(f"{name} holds {len(values)} rows for {len(lengths)} sequences; there must be one each")
    for index, (length, value) in enumerate(zip(lengths, values, strict=True)):
        if len(value) != length:
            raise ValueError(f"{name} {index} has {len(value)} entries for {length} tokens; it must be aligned to the tokens")
