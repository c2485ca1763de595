"""The arrays that cross between rooms."""

from __future__ import annotations

import jax
import numpy as np
from flax import struct

Array = jax.Array | np.ndarray

FINISH = ("length", "stop", "stop_string")
"""Meaning of ``Trajectories.finish``: reached the cap; sampled an end token; wrote a stop string."""
GOING = -1
"""``Trajectories.finish`` of an answer that has not ended: of ``Sampler.stream``, and of one that is kept for a later round."""


@struct.dataclass
class Trajectories:
    """Sampled answers on the host, one row per answer, the answers to a question side by side.

    ``T`` is the longest row. Positions past ``length`` hold 0.
    """

    tokens: Array
    """int32[N, T]: prompt, then answer, e.g. [5, 9, 2, 7, 1, 0, 0] for the prompt [5, 9]."""
    prompt_length: Array
    """int32[N]: e.g. 2."""
    length: Array
    """int32[N]: prompt and answer with its end token, e.g. 5."""
    loss_mask: Array
    """bool[N, T]: the tokens the policy sampled, e.g. [0, 0, 1, 1, 1, 0, 0]."""
    logprobs: Array
    """float32[N, T]: log-probability of each sampled token under the sampler at its temperature, 0 elsewhere."""
    finish: Array
    """int8[N]: index into ``FINISH``, e.g. 1."""
    prompt_id: Array
    """int32[N]: which question, e.g. 17; with ``sample`` it names the random stream."""
    sample: Array
    """int32[N]: 0..G-1, which of the question's answers."""
    routes: Array | None = None
    """uint8 (uint16 past 256 experts)[N, T, L, K]: the experts that each token went to in the L layers that have some, e.g.
    [3, 0]. None if they were not recorded. What the sampler never read, an answer's last token and what lies past it, holds
    the type's largest number K times (``nn.moe.unrecorded``)."""
    version: Array | None = None
    """int32[N, T]: of the weights that sampled each token, as ``Sampler.load`` was told, e.g. [0, 0, 4, 4, 6, 0, 0] where an
    answer went on under newer ones; 0 elsewhere."""


@struct.dataclass
class PackedBatch:
    """Sequences packed into rows, on the device or the host. ``M`` micro-batches of ``B`` rows of ``T`` tokens.

    Position t stands for predicting ``targets[t]`` from the tokens up to and including t. Nothing is attended to, and
    nothing is trained on, across sequences. For SFT the fields after ``weights`` are None.
    """

    tokens: Array
    """int32[M, B, T]; 0 where there is none."""
    positions: Array
    """int32[M, B, T]: 0, 1, 2, ... within each sequence."""
    segments: Array
    """int32[M, B, T]: 1, 2, ... names the sequence within its row; 0 is padding."""
    targets: Array
    """int32[M, B, T]: the sequence's next token; 0 at its last token."""
    mask: Array
    """bool[M, B, T]: the target is trained on (sampled by the policy, or part of the completion)."""
    weights: Array
    """float32[M, B, T]: what the target counts in the loss before the division by the batch's denominator; 0 outside ``mask``.
    ``1/|o|`` for ``normalize='sequence'``, else 1."""
    prefix: Array | None = None
    """int32[M, B, T]: the segment that a token sees beside its own, the prompt that it shares with other answers; 0 is none.
    None when no prompt is shared."""
    advantages: Array | None = None
    """float32[M, B, T]: the answer's advantage at each of its sampled tokens."""
    sampler_logprobs: Array | None = None
    """float32[M, B, T]: what the sampler recorded."""
    old_logprobs: Array | None = None
    """float32[M, B, T]: pi_old; None stands for the policy itself (a ratio of 1)."""
    ref_logprobs: Array | None = None
    """float32[M, B, T]: the reference's; None without a KL term, and where the policy is the reference (a KL of 0)."""
    teacher_logprobs: Array | None = None
    """float32[M, B, T]: the teacher's; None without one."""
    values: Array | None = None
    """float32[M, B, T]: the critic's, of the tokens up to each position, at the round's beginning. For its update alone."""
    returns: Array | None = None
    """float32[M, B, T]: what the critic is to say. For its update alone."""
    routes: Array | None = None
    """uint8 or uint16[M, B, T, L * K]: the experts that the update sends the tokens to, as ``models.decoder.join_routes`` lays
    ``Trajectories.routes``; a token that was not recorded, and padding, chooses by itself. None: all tokens do."""


@struct.dataclass
class JudgedBatch:
    """Answers with what is thought of them, packed into rows as in a ``PackedBatch``; the two of a pair lie in one row."""

    tokens: Array
    """int32[M, B, T]: prompt, answer, end token; 0 where there is none."""
    positions: Array
    """int32[M, B, T]: 0, 1, 2, ... within each sequence."""
    segments: Array
    """int32[M, B, T]: 1, 2, ... names the sequence within its row; 0 is padding."""
    mask: Array
    """bool[M, B, T]: the last token of an answer, where its value is read; of a pair that of the better one."""
    targets: Array
    """float32[M, B, T]: where ``mask`` is true, the margin of a pair, or an answer's label, 1 good or 0 bad."""
    against: Array | None = None
    """int32[M, B, T]: where ``mask`` is true, the place in its row of the worse answer's last token. None without pairs."""
