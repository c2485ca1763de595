"""Cross-entropy of supervised fine-tuning."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp


def cross_entropy(logprobs: jax.Array, mask: jax.Array, weights: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """``-sum_t w_t log pi(target_t)`` over the masked positions.

    Args:
      logprobs: float32[..., T], of the targets.
      mask: bool[..., T], the targets that are trained on; what other positions hold has no effect, NaN included.
      weights: float32[..., T], what each target counts.

    Returns:
      The sum, float32[], and float32[] sums: ``nll``, the unweighted negative log-likelihood in nats, and ``tokens``, the
      number of masked positions.
    """
    chex.assert_equal_shape([logprobs, mask, weights])
    nll = -jnp.where(mask, logprobs, 0.0)
    weights = jnp.where(mask, weights, 0.0)
    sums = {"nll": jnp.sum(nll), "tokens": jnp.sum(mask, dtype=jnp.float32)}
    return jnp.sum(weights * nll), jax.lax.stop_gradient(sums)
