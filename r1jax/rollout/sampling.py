"""From logits to one token per row."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def row_keys(seed: int, round: jax.Array, prompt_id: jax.Array, sample: jax.Array) -> jax.Array:
    """A key per row, folded from what the row is and never from where it lies: slot, bucket, batch and process leave no trace.

    Args:
      round: int32[], which rollout.
      prompt_id, sample: int32[S].
    """

    def one(prompt_id, sample):
        key = jax.random.key(seed)
        for part in (round, prompt_id, sample):
            key = jax.random.fold_in(key, part)
        return key

    return jax.vmap(one)(prompt_id, sample)


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
    top = scaled.max(-1, keepdims=True)
    p = jnp.exp(scaled - top)
    if greedy:
        token = scaled.argmax(-1).astype(jnp.int32)
    else:
        uniform = jax.vmap(lambda k, at: jax.random.uniform(jax.random.fold_in(k, at)))(keys, position)
        token = _inverse_cdf(_nucleus(p, top_p) if top_p < 1 else p, uniform)
    chosen = jnp.take_along_axis(scaled, token[:, None], axis=-1)[:, 0]
    return token, chosen - top[:, 0] - jnp.log(p.sum(-1))


def _nucleus(p: jax.Array, top_p: float) -> jax.Array:
    """p[S, V] with everything outside the nucleus set to 0. Tokens as likely as the last one kept are kept too."""
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
    width = max(1, round(vocab**0.5))
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
