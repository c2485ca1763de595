"""Log-probabilities and entropy from hidden states, in vocabulary chunks: ``[B, T, V]`` never exists."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from r1jax.lora import columns
from r1jax.nn.matmul import project

CHUNK = 16_384  # the most vocabulary entries at a time


def chunk_size(vocab: int) -> int:
    """Entries in each of the fewest equal chunks; where they do not divide ``vocab``, the last overlaps the one before."""
    return -(-vocab // -(-vocab // CHUNK))


def token_logprobs(hidden, kernel, targets, *, temperature: float = 1.0, dtype: str = "float32") -> tuple[jax.Array, jax.Array]:
    """Log-probability of each target, and entropy of its distribution, in nats.

    One pass over the vocabulary keeps a running maximum m, ``sum exp(l - m)`` and ``sum exp(l - m) l`` of the logits l; the
    entropy is ``log Z - E[l]``. The backward pass makes each chunk's logits again.

    Args:
      hidden: [B, T, D].
      kernel: [D, V], or an ``Adapted`` one.
      targets: int32[B, T].
      temperature: divides the logits; the rollout's, so that ratios compare the distributions that were sampled.
      dtype: operand type of the product.

    Returns:
      (float32[B, T], float32[B, T]).
    """
    vocab = kernel.shape[1]
    size = chunk_size(vocab)

    @partial(jax.checkpoint, prevent_cse=False)
    def step(carry, start):
        top, total, weighted, target = carry
        begin = jnp.minimum(start, vocab - size)
        logits = (
            project(hidden, columns(kernel, begin, size), dtype).astype(jnp.float32) / temperature
        )
        if vocab % size:  # what the last chunk shares with the one before counts once
            logits = jnp.where(begin + jnp.arange(size) >= start, logits, -1e30)
        # The maximum only keeps exp in range; its gradient cancels.
        new_top = jnp.maximum(top, jax.lax.stop_gradient(logits.max(-1)))
        scale, e = jnp.exp(top - new_top), jnp.exp(logits - new_top[..., None])
        here = (targets >= start) & (targets < start + size)
        index = jnp.clip(targets - begin, 0, size - 1)[..., None]
        target = jnp.where(here, jnp.take_along_axis(logits, index, axis=-1)[..., 0], target)
        return (new_top, total * scale + e.sum(-1), weighted * scale + (e * logits).sum(-1), target), None

    zero = jnp.zeros(targets.shape, jnp.float32)
    carry, _ = jax.lax.scan(step, (zero - 1e30, zero, zero, zero), jnp.arange(0, vocab, size))
    top, total, weighted, target = carry
    log_z = top + jnp.log(total)
    return target - log_z, log_z - weighted / total
