"""What reward models learn from: which of two answers is better, or whether one is good."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp


def pairwise(
    chosen: jax.Array, rejected: jax.Array, mask: jax.Array, margins: jax.Array | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """``-sum log sigmoid(v_chosen - v_rejected - margin)`` over the masked pairs: the likelihood of Bradley and Terry 1952
    (Ouyang et al. 2022, arXiv 2203.02155, eq. 1); with margins as in Llama 2 (arXiv 2307.09288, eq. 2).

    Args:
      chosen, rejected: float32[...], the values of a pair's better and worse answer.
      mask: bool[...], where a pair is; what other places hold has no effect, NaN included.
      margins: float32[...], by how much the better must be ahead, or None.

    Returns:
      The sum, float32[], and float32[] sums over the pairs: ``judged``, their number; ``right``, those whose better answer has
      the higher value; ``margin``, ``v_chosen - v_rejected``; ``good`` and ``bad``, the values of either.
    """
    chex.assert_equal_shape([chosen, rejected, mask])
    good, bad = (jnp.where(mask, x, 0.0) for x in (chosen, rejected))
    ahead = good - bad
    loss = -jax.nn.log_sigmoid(ahead if margins is None else ahead - jnp.where(mask, margins, 0.0))
    sums = {
        "judged": jnp.sum(mask, dtype=jnp.float32),
        "right": jnp.sum(mask & (ahead > 0), dtype=jnp.float32),
        "margin": jnp.sum(ahead),
        "good": jnp.sum(good),
        "bad": jnp.sum(bad),
    }
    return jnp.sum(jnp.where(mask, loss, 0.0)), jax.lax.stop_gradient(sums)


def pointwise(values: jax.Array, labels: jax.Array, mask: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Binary cross-entropy ``-sum y log sigmoid(v) + (1 - y) log sigmoid(-v)`` over the masked answers, the loss of R1's safety
    reward model (Nature 2025, Methods: pointwise).

    Args:
      values: float32[...], log-odds that an answer is good.
      labels: float32[...], 1 good, 0 bad.
      mask: bool[...], where an answer is; what other places hold has no effect, NaN included.

    Returns:
      The sum, float32[], and float32[] sums: ``judged``, the number of answers; ``right``, those on whose side of 0 the value
      is; ``positive``, the good ones; ``good`` and ``bad``, the values of either kind.
    """
    chex.assert_equal_shape([values, labels, mask])
    values, labels = jnp.where(mask, values, 0.0), jnp.where(mask, labels, 0.0)
    loss = -labels * jax.nn.log_sigmoid(values) - (1 - labels) * jax.nn.log_sigmoid(-values)
    sums = {
        "judged": jnp.sum(mask, dtype=jnp.float32),
        "right": jnp.sum(mask & jnp.where(labels > 0.5, values > 0, values < 0), dtype=jnp.float32),
        "positive": jnp.sum(labels),
        "good": jnp.sum(labels * values),
        "bad": jnp.sum((1 - labels) * values),
    }
    return jnp.sum(jnp.where(mask, loss, 0.0)), jax.lax.stop_gradient(sums)
