"""On-policy distillation: the policy's own tokens, judged by a teacher's log-probs."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def teacher_advantages(
    old_logprobs: jax.Array, teacher_logprobs: jax.Array, mask: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """``log pi_teacher - log pi_old`` of every sampled token, a constant.

    Over tokens that the policy samples its mean is ``-KL(pi || pi_teacher)``, and as the advantage of a token it gives the
    gradient of that KL, token by token, with the later tokens' left out: GKD's on-policy reverse KL (arXiv 2306.13649, section
    3) by its sampled tokens, as in "On-Policy Distillation" (Thinking Machines 2025).

    Args:
      old_logprobs, teacher_logprobs: float32[B, T], log-probs of the sampled tokens; anything outside ``mask``.
      mask: bool[B, T].

    Returns:
      float32[B, T], 0 outside ``mask``, and the sum over the masked tokens ``teacher_kl``, of the opposite, in nats.
    """
    apart = jax.lax.stop_gradient(jnp.where(mask, teacher_logprobs - old_logprobs, 0.0))
    return apart, {"teacher_kl": -jnp.sum(apart)}
