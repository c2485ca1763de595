"""From logits to one token per row."""

from __future__ import annotations

import jax
import jax.numpy as jnp

DRAFT, ACCEPT = 1, 2
"""What a random number is for, beside the token itself: to draft one, and to keep the draft."""


def row_keys(seed: int, round: jax.Array, prompt_id: jax.Array, sample: jax.Array) -> jax.Array:
    """A key per row, folded from what the row is and never from where it lies: slot, bucket, batch and process leave no trace.

    Args:
      round: int32[] or int32[S], the rollout in which the answer began.
      prompt_id, sample: int32[S].
    """

    def one(round, prompt_id, sample):
        key = jax.random.key(seed)
        for part in (round, prompt_id, sample):
            key = jax.random.fold_in(key, part)
        return key

    return jax.vmap(one)(jnp.broadcast_to(round, prompt_id.shape), prompt_id, sample)


def sample_tokens(logits, keys, position, *, temperature, greedy: bool, top_p: float) -> tuple[jax.Array, jax.Array]:
    """One token per row of float32 logits[S, V].

    Args:
      keys: S typed keys; ``position`` is folded in.
      position: int32[S], index of each row's token within its answer.
      temperature: float32[]; ignored when greedy.
      greedy: take the most likely token.
      top_p: keep the smallest set of tokens with at least this probability (Holtzman et al. 2019); 1 keeps all.

    Returns:
      (tokens int32[S], float32[S] their log-probabilities under ``softmax(logits / temperature)``, or ``softmax(logits)``
      when greedy, over the
      whole vocabulary: what the trainer computes too).
    """
    scaled = logits if greedy else logits / temperature
    token = scaled.argmax(-1).astype(jnp.int32) if greedy else _inverse_cdf(_nucleus(scaled, top_p), uniforms(keys, position))
    return token, log_prob(scaled, token)


def draft_tokens(logits, keys, position, *, temperature, greedy: bool, top_p: float) -> jax.Array:
    """int32[S]: a token per row, drawn as by ``sample_tokens`` with a random number of its own."""
    if greedy:
        return logits.argmax(-1).astype(jnp.int32)
    return _inverse_cdf(_nucleus(logits / temperature, top_p), uniforms(keys, position, DRAFT))


def verify_tokens(
    draft, guess, first, second, keys, position, *, temperature, greedy: bool, top_p: float
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array], jax.Array]:
    """Two tokens per row from one draft, by speculative sampling (Leviathan et al. 2023, arXiv 2211.17192, section 2.3).

    With p and q the distributions that ``sample_tokens`` would draw from ``first`` and the draft came from, the draft is kept
    with probability ``min(1, p / q)`` and else replaced by a token of ``max(p - q, 0)``: it then is distributed as p.

    Args:
      draft: int32[S], drawn from ``guess`` by ``draft_tokens`` for the same positions.
      guess: float32[S, V], logits that the draft was drawn from.
      first: float32[S, V], logits at the draft's position.
      second: float32[S, V], logits at the position behind it, given the draft.
      keys, position, temperature, greedy, top_p: as for ``sample_tokens``; ``position`` is that of the first token.

    Returns:
      ((tokens int32[S], their log-probs float32[S]) of the first, the same of the second, bool[S] whether the draft was kept).
      Where it was not, the second means nothing.
    """
    how = {"temperature": temperature, "greedy": greedy, "top_p": top_p}
    then = sample_tokens(second, keys, position + 1, **how)
    if greedy:
        now = sample_tokens(first, keys, position, **how)
        return now, then, now[0] == draft
    scaled = first / temperature
    p, q = _nucleus(scaled, top_p), _nucleus(guess / temperature, top_p)
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    of_p, of_q = (jnp.take_along_axis(x, draft[:, None], axis=-1)[:, 0] for x in (p, q))
    kept = uniforms(keys, position, ACCEPT) * of_q < of_p
    rest = jnp.maximum(p - q, 0.0)
    rest = jnp.where(rest.sum(-1, keepdims=True) > 0, rest, p)  # p and q are the same but for rounding
    token = jnp.where(kept, draft, _inverse_cdf(rest, uniforms(keys, position)))
    return (token, log_prob(scaled, token)), then, kept


def uniforms(keys: jax.Array, position: jax.Array, purpose: int | None = None) -> jax.Array:
    """float32[S] in [0, 1), one for each row's key, the index of its token and what it is for; None is the token itself."""

    def one(key, at):
        key = jax.random.fold_in(key, at)
        return jax.random.uniform(key if purpose is None else jax.random.fold_in(key, purpose))

    return jax.vmap(one)(keys, position)


def log_prob(scaled: jax.Array, token: jax.Array) -> jax.Array:
    """float32[S]: of ``token``[S] under softmax(``scaled``[S, V])."""
    top = scaled.max(-1, keepdims=True)
    chosen = jnp.take_along_axis(scaled, token[:, None], axis=-1)[:, 0]
    return chosen - top[:, 0] - jnp.log(jnp.exp(scaled - top).sum(-1))


def _nucleus(scaled: jax.Array, top_p: float) -> jax.Array:
    """[S, V]: in proportion to softmax(``scaled``), and 0 outside the nucleus. Tokens as likely as the last one kept are kept
    too."""
    p = jnp.exp(scaled - scaled.max(-1, keepdims=True))
    if top_p == 1:
        return p
    ordered = jnp.sort(p, axis=-1, descending=True)
    before = jnp.cumsum(ordered, axis=-1) - ordered
    kept = (before < top_p * p.sum(-1, keepdims=True)).sum(-1, keepdims=True)
    return jnp.where(p >= jnp.take_along_axis(ordered, kept - 1, axis=-1), p, 0.0)


def _inverse_cdf(p: jax.Array, uniform: jax.Array) -> jax.Array:
    """The first index at which the running sum of p[S, V] passes ``uniform * sum(p)``: int32[S].

    One random number per row instead of one per vocabulary entry. The running sum is taken over blocks, then within one
    block: two short sums are cheaper than one long one, and more exact.
    """
    rows, vocab = p.shape
    root = max(1, round(vocab**0.5))
    width = next((w for w in range(root, root // 2, -1) if vocab % w == 0), root)  # one that needs no padding, which is a copy
    blocks = jnp.pad(p, ((0, 0), (0, -vocab % width))).reshape(rows, -1, width)
    sums = blocks.sum(-1)
    ends = jnp.cumsum(sums, axis=-1)
    target = uniform[:, None] * ends[:, -1:]
    block = _first_above(ends, target, sums)
    inside = jnp.take_along_axis(blocks, block[:, :, None], axis=1)[:, 0]
    rest = target - jnp.take_along_axis(ends - sums, block, axis=1)
    return (block * width + _first_above(jnp.cumsum(inside, axis=-1), rest, inside))[:, 0].astype(jnp.int32)


def _first_above(ends: jax.Array, target: jax.Array, sizes: jax.Array) -> jax.Array:
    """int32[S, 1]: the first entry of size above 0 whose end passes ``target``, or the last one of such a size.

    Rounding can make ``ends`` fall or ``target`` negative; an entry of size 0 is not chosen even then.
    """
    held = sizes > 0
    passed = held & (ends > target)
    last = sizes.shape[-1] - 1 - jnp.argmax(held[:, ::-1], axis=-1, keepdims=True)
    return jnp.where(passed.any(-1, keepdims=True), jnp.argmax(passed, axis=-1, keepdims=True), last)
