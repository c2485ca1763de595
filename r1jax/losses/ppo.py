"""Proximal policy optimization's critic: rewards of tokens, generalised advantages, and the loss of the values.

The policy's clipped objective is GRPO's (``losses.grpo``), with these advantages.
"""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp


def token_rewards(scores: jax.Array, mask: jax.Array, kl: jax.Array | None = None, beta: float = 0.0) -> jax.Array:
    """The reward of every token (InstructGPT, arXiv 2203.02155, eq. 2): an answer's score at its last one, and at each
    ``-beta (log pi_old - log pi_ref)``.

    Args:
      scores: float32[..., T], an answer's score at each of its tokens.
      mask: bool[..., T], the answers' tokens. Two answers never lie next to each other: a prompt's token stands between.
      kl: float32[..., T], log pi_old - log pi_ref; None without a KL term.

    Returns:
      float32[..., T], 0 outside ``mask``.
    """
    rewards = jnp.where(mask & ~_next(mask), scores, 0.0)
    return rewards if kl is None else rewards - beta * jnp.where(mask, kl, 0.0)


def gae(
    rewards: jax.Array, values: jax.Array, mask: jax.Array, *, gamma: float = 1.0, lam: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """Generalised advantage estimates (Schulman et al. 2016, arXiv 1506.02438, eq. 11-16) of every token of every answer::

        delta_t = r_t + gamma V_{t+1} - V_t
        A_t     = delta_t + gamma lam A_{t+1}
        R_t     = A_t + V_t

    After an answer's last token the value is 0 and nothing follows, also where it was cut at the cap.

    Args:
      rewards: float32[..., T].
      values: float32[..., T], V_t, of the tokens before the one that position t predicts.
      mask: bool[..., T], as for ``token_rewards``; what lies outside may hold anything.

    Returns:
      (A, R), float32[..., T], 0 outside ``mask``.
    """
    chex.assert_equal_shape([rewards, values, mask])
    rewards, values = (jnp.where(mask, x, 0.0) for x in (rewards, values))
    delta = rewards + gamma * _next(values) - values

    def step(later, at):
        delta, mask = at
        advantage = jnp.where(mask, delta + gamma * lam * later, 0.0)
        return advantage, advantage

    along = [jnp.moveaxis(x, -1, 0) for x in (delta, mask)]
    _, advantages = jax.lax.scan(step, jnp.zeros(delta.shape[:-1], delta.dtype), along, reverse=True)
    advantages = jnp.moveaxis(advantages, 0, -1)
    return advantages, advantages + values


def whiten(advantages: Any, masks: Any, eps: float = 1e-8) -> Any:
    """Mean 0 and variance 1 over all masked positions, as in TRL and verl: ``(A - mean) / sqrt(var + eps)``.

    Args:
      advantages: a tree of float32 arrays, which are whitened together.
      masks: a tree alike of bool arrays.

    Returns:
      A tree alike, 0 outside the masks.
    """

    def total(values: Any) -> jax.Array:
        return sum(jnp.sum(x) for x in jax.tree.leaves(jax.tree.map(lambda x, m: jnp.where(m, x, 0.0), values, masks)))

    count = jnp.maximum(total(jax.tree.map(jnp.ones_like, advantages)), 1.0)
    mean = total(advantages) / count
    apart = jax.tree.map(lambda x: x - mean, advantages)
    scale = jax.lax.rsqrt(total(jax.tree.map(jnp.square, apart)) / count + eps)
    return jax.tree.map(lambda x, m: jnp.where(m, x * scale, 0.0), apart, masks)


def value_loss(
    values: jax.Array, *, old_values: jax.Array, returns: jax.Array, mask: jax.Array, clip: float = 0.0
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Half the squared error of the values, a sum over the masked tokens; clipped, as OpenAI's baselines, TRL and verl do::

        L = 1/2 sum_t max((V_t - R_t)^2, (clip(V_t, V_old - clip, V_old + clip) - R_t)^2)

    Args:
      values: float32[..., T]. The only argument that receives a gradient.
      old_values: float32[..., T], those of the rollout.
      returns: float32[..., T], R.
      mask: bool[..., T].
      clip: 0 takes the plain squared error.

    Returns:
      ``L``, float32[], and float32[] sums over the masked tokens without gradient: ``values``, which is ``L``;
      ``tokens``; ``value``; ``value_error``, (V - R)^2; ``value_clipped``, tokens where the clip takes the gradient away;
      ``return`` and ``return_square``.
    """
    values = jnp.where(mask, values, 0.0)
    old_values, returns = (jax.lax.stop_gradient(jnp.where(mask, x, 0.0)) for x in (old_values, returns))
    error = jnp.square(values - returns)
    worst, held = error, jnp.zeros_like(mask)
    if clip:
        near = jnp.clip(values, old_values - clip, old_values + clip)
        held = (jnp.square(near - returns) > error) & (near != values)
        worst = jnp.where(held, jnp.square(jax.lax.stop_gradient(near) - returns), error)
    loss = 0.5 * jnp.sum(worst)
    sums = {
        "values": loss,
        "tokens": jnp.sum(mask, dtype=jnp.float32),
        "value": jnp.sum(values),
        "value_error": jnp.sum(error),
        "value_clipped": jnp.sum(held, dtype=jnp.float32),
        "return": jnp.sum(returns),
        "return_square": jnp.sum(jnp.square(returns)),
    }
    return loss, jax.lax.stop_gradient(sums)


def _next(x: jax.Array) -> jax.Array:
    """What stands at the next position; 0 or False after the last."""
    return jnp.concatenate([x[..., 1:], jnp.zeros_like(x[..., :1])], axis=-1)
