"""The losses of a micro-batch: a forward pass joined to a function of arrays."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from r1jax import config
from r1jax.losses.distillation import teacher_advantages
from r1jax.losses.grpo import grpo_loss
from r1jax.losses.ppo import value_loss
from r1jax.losses.preference import pairwise, pointwise
from r1jax.losses.sft import cross_entropy
from r1jax.models import decoder, scalar
from r1jax.models.logprobs import token_logprobs
from r1jax.types import JudgedBatch, PackedBatch


def specs(stage: config.Stage, model: config.Model) -> dict:
    """The ParamSpecs of what a stage trains."""
    if stage.kind == "reward_model":
        return scalar.specs(model, std=(model.d_model + 1) ** -0.5)
    return decoder.specs(model)


def moe_layers(model: config.Model) -> int:
    return sum(s.count for s in model.segments if s.ff == "moe")


def logprobs(params, batch: PackedBatch, *, model: config.Model, temperature: float) -> tuple[jax.Array, jax.Array, tuple]:
    """(log-probs float32[B, T] of the targets, entropies float32[B, T], (hidden, Aux)) of one micro-batch. Where ``batch.mask``
    is false they mean nothing."""
    routes = None if batch.routes is None else decoder.split_routes(batch.routes, model)
    hidden, aux, _ = decoder.forward(
        params, batch.tokens, batch.positions, batch.segments, prefix=batch.prefix, model=model, routes=routes
    )
    kernel = decoder.head_kernel(params)
    values, entropy = token_logprobs(
        hidden, kernel, batch.targets, mask=batch.mask, temperature=temperature, dtype=model.head_dtype
    )
    return values, entropy, (hidden, aux)


def score(params, batch: PackedBatch, count, *, model: config.Model, temperature: float) -> jax.Array:
    """``logprobs`` of the first ``count`` micro-batches of a batch, float32[M, B, T]."""

    def body(i, out):
        micro = jax.tree.map(lambda x: x[i], batch)
        values, _, _ = logprobs(params, micro, model=model, temperature=temperature)
        return out.at[i].set(values)

    return jax.lax.fori_loop(0, count, body, jnp.zeros(batch.tokens.shape, jnp.float32))


def loss(
    params,
    batch: PackedBatch,
    totals: dict[str, jax.Array],
    own: dict[str, jax.Array] | None = None,
    *,
    stage: config.Stage,
    model: config.Model,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """A micro-batch's part of the loss, and the sums it adds to the metrics.

    Args:
      totals: denominators over the *whole* batch, float32[]: ``loss``, ``sequences``, ``mtp``. They make value and gradient
        independent of how rows are split into micro-batches, packed or laid over devices.
      own: for ``old_logprobs`` and ``ref_logprobs``, bool[]: the policy's own stand for what the batch holds.
    """
    rl = stage.kind == "grpo"
    values, entropy, (hidden, aux) = logprobs(params, batch, model=model, temperature=stage.sampling.temperature if rl else 1.0)
    if rl:
        kept = jax.lax.stop_gradient(values)
        batch = batch.replace(**{name: jnp.where(same, kept, vars(batch)[name]) for name, same in (own or {}).items()})
        advantages, of_teacher = batch.advantages, {}
        if stage.teacher:
            old = kept if batch.old_logprobs is None else batch.old_logprobs
            apart, of_teacher = teacher_advantages(old, batch.teacher_logprobs, batch.mask)
            advantages = jnp.where(batch.mask, advantages, 0.0) + stage.teacher_weight * apart
        main, sums = grpo_loss(
            values,
            old_logprobs=batch.old_logprobs,
            advantages=advantages,
            mask=batch.mask,
            weights=batch.weights,
            segments=batch.segments,
            ratio_level=stage.ratio_level,
            clip_low=stage.clip_low,
            clip_high=stage.clip_high,
            kl_beta=0.0 if stage.kl_in_reward else stage.kl_beta,
            ref_logprobs=batch.ref_logprobs,
            sampler_logprobs=batch.sampler_logprobs,
            importance_cap=stage.importance_cap,
        )
        sums |= of_teacher
    else:
        main, sums = cross_entropy(values, batch.mask, batch.weights)
    sums["entropy"] = jnp.where(batch.mask, entropy, 0.0).sum()
    total = main / totals["loss"]
    total += balance_loss(aux, batch, totals, sums, stage=stage, model=model)
    if batch.routes is not None:
        sums["routes_apart"], sums["routes"] = sum(d.sum(0) for d in aux.disagreement if d is not None)
    if model.mtp_depth:
        nll, load = mtp_loss(params, hidden, batch, model=model, stop_trunk=rl)
        sums |= {"mtp": nll / totals["mtp"], "mtp_load": load}
        total += stage.mtp_weight * nll / totals["mtp"]
    return total, jax.lax.stop_gradient(sums | {"loss": total})


def values_loss(
    params, batch: PackedBatch, totals: dict[str, jax.Array], own=None, *, stage: config.GRPO, model: config.Model
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """As ``loss``, of a critic; ``own`` is not read."""
    values, aux = scalar.values(params, batch.tokens, batch.positions, batch.segments, prefix=batch.prefix, model=model)
    main, sums = value_loss(values, old_values=batch.values, returns=batch.returns, mask=batch.mask, clip=stage.critic.clip)
    total = main / totals["loss"] + balance_loss(aux, batch, totals, sums, stage=stage, model=model)
    return total, jax.lax.stop_gradient(sums | {"loss": total})


def preference_loss(
    params,
    batch: JudgedBatch,
    totals: dict[str, jax.Array],
    own: dict[str, jax.Array] | None = None,
    *,
    stage: config.RewardModel,
    model: config.Model,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """As ``loss``, of a reward model; ``own`` is empty."""
    values, aux = scalar.values(params, batch.tokens, batch.positions, batch.segments, model=model)
    if stage.form == "pairwise":
        worse = jnp.take_along_axis(values, batch.against, axis=1)
        main, sums = pairwise(values, worse, batch.mask, stage.margin * batch.targets if stage.margin else None)
    else:
        main, sums = pointwise(values, batch.targets, batch.mask)
    sums["tokens"] = (batch.segments > 0).sum().astype(jnp.float32)
    total = main / totals["loss"] + balance_loss(aux, batch, totals, sums, stage=stage, model=model)
    return total, jax.lax.stop_gradient(sums | {"loss": total})


def balance_loss(
    aux: decoder.Aux,
    batch: PackedBatch | JudgedBatch,
    totals: dict[str, jax.Array],
    sums: dict,
    *,
    stage: config.Stage,
    model: config.Model,
) -> jax.Array | float:
    """The balance loss of the experts, weighted; what is measured of them joins ``sums``."""
    layers = moe_layers(model)
    if not layers:
        return 0.0
    balance = aux.balance / (totals["sequences"] * layers)
    sums |= {"balance": balance, "load": tuple(aux.load)}
    if model.capacity_factor is not None:
        sums["dropped"] = sum(d.sum() for d in aux.dropped if d is not None)
        sums["choices"] = jnp.float32(batch.tokens.size * model.moe.top_k * layers)
    return stage.balance_weight * balance


def mtp_mask(batch: PackedBatch) -> jax.Array:
    """bool[..., T]: the token after the target is trained on too, in the same sequence; position t predicts it from t + 1
    tokens."""
    follows = jnp.roll(batch.segments, -1, axis=-1) == batch.segments
    return (jnp.roll(batch.mask, -1, axis=-1) & follows & (batch.segments > 0)).at[..., -1].set(False)


def mtp_loss(params, hidden, batch: PackedBatch, *, model: config.Model, stop_trunk: bool) -> tuple[jax.Array, tuple]:
    """Summed cross-entropy of the token after next (V3, eq. 24), and the module's expert load.

    Args:
      stop_trunk: the module learns and trunk, embedding and head do not: under RL they follow the policy's objective alone.
    """
    if stop_trunk:
        module = params["mtp"]
        params, hidden = jax.lax.stop_gradient((params, hidden))
        params = {**params, "mtp": module}
    ahead, aux = decoder.mtp(params, hidden, batch.tokens, batch.positions, batch.segments, prefix=batch.prefix, model=model)
    targets = jnp.roll(batch.targets, -1, axis=-1)
    mask = mtp_mask(batch)
    values, _ = token_logprobs(ahead, decoder.head_kernel(params), targets, mask=mask, dtype=model.head_dtype)
    return -jnp.where(mask, values, 0.0).sum(), aux.load


def objective(stage: config.Stage, model: config.Model):
    return partial(preference_loss if stage.kind == "reward_model" else loss, stage=stage, model=model)
