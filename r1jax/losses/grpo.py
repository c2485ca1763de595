"""Group relative policy optimization: the clipped objective, the KL term, and what is measured on the way."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

MAX_LOG_RATIO = 20.0
"""Log-ratios above this count as this, without a gradient: e^20 = 4.9e8 is far past every clip, and e^89 overflows float32."""


def grpo_loss(
    logprobs: jax.Array,
    *,
    old_logprobs: jax.Array | None,
    advantages: jax.Array,
    mask: jax.Array,
    weights: jax.Array,
    segments: jax.Array,
    ratio_level: str = "token",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    kl_beta: float = 0.0,
    ref_logprobs: jax.Array | None = None,
    sampler_logprobs: jax.Array | None = None,
    importance_cap: float = 0.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Sum over the trained tokens of GRPO's loss (DeepSeekMath, arXiv 2402.03300, eq. 3; R1, Nature 2025, eq. 1-2)::

        L = -sum_t w_t ( c_t min(rho_t A_t, clip(rho_t, 1 - clip_low, 1 + clip_high) A_t) - beta k3_t )
        rho_t = pi(o_t) / pi_old(o_t)
        k3_t  = pi_ref(o_t) / pi(o_t) - log(pi_ref(o_t) / pi(o_t)) - 1
        c_t   = min(pi_old(o_t) / pi_sampler(o_t), importance_cap), a constant; 1 when importance_cap is 0

    The weights ``w_t`` and the number that the caller divides by (``losses.sums.denominator``) make it the objective of GRPO,
    DAPO or Dr. GRPO. ``clip_high`` apart from ``clip_low`` is DAPO's clip-higher (arXiv 2503.14476, section 3.1).

    ``ratio_level='sequence'`` is GSPO (arXiv 2507.18071, eq. 5 and 7): every token of an answer has the ratio
    ``s = exp(mean_t log rho_t)``, with its gradient through all of the answer's tokens. With ``w_t = 1/|o|`` the sum over an
    answer is GSPO's ``min(s A, clip(s) A)``; with ``w_t = 1`` it counts ``|o|`` times. KL and ``c_t`` stay per token.

    ``c_t`` is truncated importance sampling between the engine that sampled and the trainer; it weights the policy term only,
    as in verl and TRL.

    Where this departs: R1 prints ``rho`` of a whole answer without its length normalisation; DeepSeekMath's per-token ratio is
    used. Log-ratios above ``MAX_LOG_RATIO`` are held there. Positions outside ``mask`` may hold anything, NaN and inf included.

    Args:
      logprobs: float32[B, T], log pi of the targets. The only argument that receives a gradient.
      old_logprobs: float32[B, T], log pi_old; None stands for ``stop_gradient(logprobs)``, a ratio of exactly 1.
      advantages: float32[B, T], each answer's advantage at its tokens.
      mask: bool[B, T], the tokens that are trained on.
      weights: float32[B, T], ``w_t``.
      segments: int32[B, T], 0..T, names the answer within its row; only read for ``ratio_level='sequence'``.
      ratio_level: ``token`` or ``sequence``.
      clip_low: no gradient where A < 0 and the ratio is below 1 - clip_low. From 1 on it never binds.
      clip_high: no gradient where A > 0 and the ratio is above 1 + clip_high.
      kl_beta: beta.
      ref_logprobs: float32[B, T], log pi_ref; may be None when ``kl_beta`` is 0.
      sampler_logprobs: float32[B, T], as the sampler recorded them; may be None when ``importance_cap`` is 0.
      importance_cap: 0 switches ``c_t`` off.

    Returns:
      ``L``, float32[], and float32[] sums over the masked tokens, without gradient. Sums of micro-batches are joined by
      ``losses.sums.combine``. A mean is a sum over ``tokens``, but the parts of the loss are divided as the loss is.

      - ``policy``, ``kl``: the two parts of ``L``; ``kl`` only with ``ref_logprobs``
      - ``tokens``: the number of masked tokens
      - ``ratio``: rho
      - ``clipped_low``, ``clipped_high``: tokens where the clip takes the gradient away, that is rho < 1 - clip_low with A < 0,
        and rho > 1 + clip_high with A > 0
      - ``kl_tokens``: k3; only with ``ref_logprobs``

      and only with ``sampler_logprobs``, where pi_old is compared with the sampler (all trivial if they are the same array):

      - ``logprob_diff``, ``max/logprob_diff``: |log pi_old - log pi_sampler|, its sum and its largest value, in nats
      - ``sampler_ratio``: pi_old / pi_sampler
      - ``importance_capped``: tokens whose pi_old / pi_sampler is above the cap; only with ``importance_cap``

    Raises:
      ValueError: an unknown ``ratio_level``, or a term is switched on whose log-probs are None.
    """
    if ratio_level not in ("token", "sequence"):
        raise ValueError(f"ratio_level is {ratio_level!r}; use 'token' or 'sequence'")
    if kl_beta and ref_logprobs is None:
        raise ValueError(f"kl_beta is {kl_beta} but ref_logprobs is None; give the reference's log-probs or set kl_beta to 0")
    if importance_cap and sampler_logprobs is None:
        raise ValueError(f"importance_cap is {importance_cap} but sampler_logprobs is None; give them or set the cap to 0")
    arrays = [logprobs, old_logprobs, advantages, mask, weights, segments, ref_logprobs, sampler_logprobs]
    chex.assert_equal_shape([a for a in arrays if a is not None])

    def masked(x: jax.Array) -> jax.Array:
        # Before anything is computed from it: 0 * NaN is NaN, in the value and in the gradient.
        return jnp.where(mask, x, 0.0)

    def constant(x: jax.Array) -> jax.Array:
        return jax.lax.stop_gradient(masked(x))

    logprobs, advantages, weights = masked(logprobs), constant(advantages), constant(weights)
    old = jax.lax.stop_gradient(logprobs) if old_logprobs is None else constant(old_logprobs)

    log_ratio = logprobs - old
    if ratio_level == "sequence":
        log_ratio = _segment_mean(log_ratio, mask, segments)
    ratio = _exp(log_ratio)
    low = (ratio < 1.0 - clip_low) & (advantages < 0)
    high = (ratio > 1.0 + clip_high) & (advantages > 0)
    # The minimum, written as a choice: jnp.minimum and jnp.clip would halve the gradient of a ratio that lies on a bound.
    clipped = jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
    objective = jnp.where(low | high, clipped, ratio) * advantages

    sums = {
        "tokens": jnp.sum(mask, dtype=jnp.float32),
        "ratio": jnp.sum(masked(ratio)),
        "clipped_low": jnp.sum(low, dtype=jnp.float32),
        "clipped_high": jnp.sum(high, dtype=jnp.float32),
    }
    if sampler_logprobs is not None:
        difference = old - constant(sampler_logprobs)
        sampler_ratio = _exp(difference)
        sums["logprob_diff"] = jnp.sum(jnp.abs(difference))
        sums["max/logprob_diff"] = jnp.max(jnp.abs(difference))
        sums["sampler_ratio"] = jnp.sum(masked(sampler_ratio))
        if importance_cap:
            objective *= jnp.minimum(sampler_ratio, importance_cap)
            sums["importance_capped"] = jnp.sum(masked(sampler_ratio) > importance_cap, dtype=jnp.float32)
    loss = sums["policy"] = -jnp.sum(weights * objective)
    if ref_logprobs is not None:
        kl = k3(logprobs, constant(ref_logprobs))
        sums["kl"] = kl_beta * jnp.sum(weights * kl)
        sums["kl_tokens"] = jnp.sum(kl)
        loss += sums["kl"]
    return loss, jax.lax.stop_gradient(sums)


def k3(logprobs: jax.Array, ref_logprobs: jax.Array) -> jax.Array:
    """Estimate of KL(pi || pi_ref) from tokens sampled by pi: ``r - log r - 1`` with ``r = pi_ref / pi`` (GRPO, eq. 4).

    Unbiased and never negative (Schulman, "Approximating KL divergence", 2020). Its gradient in ``logprobs`` is ``1 - r``, as
    GRPO differentiates it, which is not an unbiased estimate of the KL's gradient.

    Args:
      logprobs, ref_logprobs: float32[...], of the sampled tokens.

    Returns:
      float32[...] in nats.
    """
    # The whole log-ratio is held, not only the exponent, for then the linear term would turn the gradient's sign around.
    log_ratio = jnp.minimum(ref_logprobs - logprobs, MAX_LOG_RATIO)
    return jnp.expm1(log_ratio) - log_ratio


def _exp(log_ratio: jax.Array) -> jax.Array:
    return jnp.exp(jnp.minimum(log_ratio, MAX_LOG_RATIO))


def _segment_mean(x: jax.Array, mask: jax.Array, segments: jax.Array) -> jax.Array:
    """float32[B, T]: at each position the mean of ``x`` over the masked positions of its segment; 0 where there are none."""

    def row(x: jax.Array, mask: jax.Array, segments: jax.Array) -> jax.Array:
        count = x.shape[0] + 1  # segments are 0 (padding) to at most one per token
        total = jax.ops.segment_sum(jnp.where(mask, x, 0.0), segments, count)
        tokens = jax.ops.segment_sum(mask.astype(x.dtype), segments, count)
        return (total / jnp.maximum(tokens, 1.0))[segments]

    return jax.vmap(row)(x, mask, segments)
