"""FLOPs and bytes that a model's arithmetic needs, counted from its config, whatever a program makes of it.

A multiplication with an addition is 2 FLOPs, and only matrix products count, as in model FLOPs utilisation (PaLM, arXiv
2204.02311, appendix B). Masked pairs, padding, experts that were not chosen and what is computed a second time are not needed.
"""

from __future__ import annotations

import functools
import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from r1jax import config
from r1jax.models import decoder
from r1jax.params import ParamSpec, is_spec, path_name

GRADIENT = 3
"""Forward passes that a forward and backward pass cost: the backward pass multiplies twice where the forward does once."""


@functools.cache
def token_flops(model: config.Model) -> int:
    """Of one token through all layers, without attention's scores and sums and without the head."""
    layers = [(path, spec) for path, spec in leaves(decoder.specs(model)) if path.startswith("segments/")]
    kernels = [spec for path, spec in layers if not any(word in path for word in ("norm", "bias"))]
    return 2 * sum(round(math.prod(spec.shape) * _chosen(model, spec)) for spec in kernels)


def pair_flops(model: config.Model, absorbed: bool = False) -> int:
    """Of one query that sees one key, in all layers: the score, and the value's part of the sum.

    Args:
      absorbed: latent attention's form for decoding, where keys and values are the latents (see ``nn.mla``).
    """
    a = model.attention
    if a.kind == "gqa":
        channels = 2 * a.head_dim
    else:
        channels = 2 * a.kv_rank + a.rope_dim if absorbed else a.nope_dim + a.rope_dim + a.v_dim
    return 2 * a.n_heads * channels * model.n_layers


def head_flops(model: config.Model) -> int:
    """Of one prediction: the logits of the whole vocabulary."""
    return 2 * model.d_model * model.vocab_size


def forward_flops(model: config.Model, tokens: int, pairs: int, predictions: int, *, absorbed: bool = False) -> int:
    """Of a forward pass.

    Args:
      tokens: that go through the layers.
      pairs: of a query and a key that it sees, itself included: ``n (n + 1) / 2`` for a sequence of n.
      predictions: tokens whose successor's distribution is wanted.
    """
    return tokens * token_flops(model) + pairs * pair_flops(model, absorbed) + predictions * head_flops(model)


def causal_pairs(tokens: int, seen: int = 0) -> int:
    """(query, key) pairs of ``tokens`` in a row, each of which sees itself, those before it, and ``seen`` more."""
    return tokens * (tokens + 1) // 2 + tokens * seen


def weight_bytes(model: config.Model, tokens: int) -> float:
    """Read by a pass of ``tokens``, by a sampler: each weight once, of the experts those that are chosen on average when all
    are equally likely, and of an embedding that is no head as well nothing."""
    total = 0.0
    for path, spec in leaves(decoder.read_specs(model)):
        if path.startswith("mtp/") or path == "embed/table" and not model.tied:
            continue
        read = 1 - (1 - _chosen(model, spec)) ** tokens
        total += math.prod(spec.shape) * read * jnp.dtype(spec.dtype).itemsize
    return total


def cache_bytes(model: config.Model) -> int:
    """Of one token in the cache of all layers, in the narrower of the types that hold and multiply it."""
    a = model.attention
    numbers = a.kv_rank + a.rope_dim if a.kind == "mla" else 2 * a.n_kv_heads * a.head_dim
    return model.n_layers * numbers * min(jnp.dtype(t).itemsize for t in (model.dtype, model.matmul_dtype))


@dataclass(frozen=True)
class Steps:
    """Passes of a sampler, one after the other."""

    tokens: np.ndarray
    """int64[n]: that go through the layers."""
    pairs: np.ndarray
    """int64[n]"""
    predictions: np.ndarray
    """int64[n]"""
    cached: np.ndarray
    """int64[n]: tokens of the cache that are read or written."""
    absorbed: bool

    def flops(self, model: config.Model) -> np.ndarray:
        """float64[n]"""
        each = (token_flops(model), pair_flops(model, self.absorbed), head_flops(model))
        return sum(n.astype(float) * cost for n, cost in zip((self.tokens, self.pairs, self.predictions), each, strict=True))

    def bytes(self, model: config.Model) -> np.ndarray:
        """float64[n]: weights and cache."""
        weights = {int(n): weight_bytes(model, int(n)) for n in np.unique(self.tokens)}
        return np.array([weights[int(n)] for n in self.tokens]) + self.cached.astype(float) * cache_bytes(model)

    def bound(self, model: config.Model, flops_per_s: float, bytes_per_s: float) -> float:
        """Seconds below which a machine cannot make them: each the longer of its arithmetic and its memory."""
        return float(np.maximum(self.flops(model) / flops_per_s, self.bytes(model) / bytes_per_s).sum())


def prefill_steps(prompts: Sequence[int], together: int) -> Steps:
    """Prompts of so many tokens, ``together`` in one pass; each predicts its answer's first token."""
    parts = [np.array(prompts[i : i + together], np.int64) for i in range(0, len(prompts), together)]
    tokens = np.array([part.sum() for part in parts])
    pairs = np.array([(part * (part + 1) // 2).sum() for part in parts])
    return Steps(tokens, pairs, np.array([len(part) for part in parts]), tokens, absorbed=False)


def decode_steps(prompts: Sequence[int], answers: Sequence[int], slots: int) -> Steps:
    """Answers of so many tokens behind prompts of so many, decoded in ``slots`` rows, each of which takes the next answer as
    soon as its own has ended. The first token of an answer comes of the prefill, and the last is not run."""
    free = [0] * slots
    begin = []
    for n in answers:
        begin.append(heapq.heappop(free))
        heapq.heappush(free, begin[-1] + n - 1)
    rows, seen = (np.zeros(max(free), np.int64) for _ in range(2))
    for start, prompt, n in zip(begin, prompts, answers, strict=True):
        rows[start : start + n - 1] += 1
        seen[start : start + n - 1] += prompt + 1 + np.arange(n - 1)  # the row's own token is written, and read
    return Steps(rows, seen, rows, seen, absorbed=True)


def leaves(specs) -> list[tuple[str, ParamSpec]]:
    return [(path_name(path), spec) for path, spec in jax.tree_util.tree_leaves_with_path(specs, is_leaf=is_spec)]


def _chosen(model: config.Model, spec: ParamSpec) -> float:
    """The share of an array that one token is multiplied with."""
    return model.moe.top_k / model.moe.n_experts if "experts" in spec.axes else 1.0
