"""AdamW, its schedule, and which parameters decay. optax lives in this folder only."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from r1jax import config
from r1jax.params import path_name

NO_DECAY = ("norm", "bias", "embed")  # decaying a scale or an embedding pulls towards zero what has no reason to be small


def schedule(c: config.Optimizer, steps: int) -> optax.Schedule:
    """Learning rate of update i = 0, 1, ...: linear warm-up to ``lr``, then a cosine to ``lr_end`` at the last step, or
    constant."""

    def rate(i):
        i = jnp.asarray(i, jnp.float32)
        lr = jnp.full((), c.lr, jnp.float32)
        if c.lr_end is not None:
            progress = jnp.clip((i - c.warmup_steps) / max(steps - 1 - c.warmup_steps, 1), 0, 1)
            lr = c.lr_end + (c.lr - c.lr_end) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        return lr * jnp.minimum(1.0, (i + 1) / max(c.warmup_steps, 1))

    return rate


class Rates(NamedTuple):
    """What every number of an update is multiplied by, float32[] each."""

    lr: jax.Array
    first: jax.Array
    """``1 / (1 - b1^(i + 1))``, Adam's correction of the first moment."""
    second: jax.Array
    """``1 / (1 - b2^(i + 1))``"""


def rates_of(c: config.Optimizer, steps: int, i: jax.Array) -> Rates:
    """Of update i = 0, 1, ..."""
    return Rates(schedule(c, steps)(i), *(1 / (1 - jnp.float32(b) ** (jnp.asarray(i, jnp.float32) + 1)) for b in (c.b1, c.b2)))


def optimizer(c: config.Optimizer, steps: int) -> optax.GradientTransformationExtraArgs:
    """AdamW (arXiv 1711.05101): decoupled decay, times the learning rate, on matrices only. Clipping is the update's own.

    ``update`` takes ``rates`` from who has made them already, outside: XLA rearranges the divisions by what optax makes beside
    the moments, and so rounds them, differently for arrays that come alone.
    """
    parts = adam(c), optax.add_decayed_weights(c.weight_decay, decay_mask), descent(c, steps)
    adamw = optax.chain(*parts)
    return adamw if c.moments_dtype == "float32" else held_in(adamw, c.moments_dtype)


def adam(c: config.Optimizer) -> optax.GradientTransformationExtraArgs:
    """``optax.scale_by_adam``, whose corrections may be given."""
    plain = optax.scale_by_adam(c.b1, c.b2, c.eps)

    def update(grads, state, params=None, *, rates: Rates | None = None, **_):
        if rates is None:
            return plain.update(grads, state, params)
        mu = optax.tree.update_moment(grads, state.mu, c.b1, 1)
        nu = optax.tree.update_moment_per_elem_norm(grads, state.nu, c.b2, 2)
        out = jax.tree.map(lambda m, v: m * rates.first / (jnp.sqrt(v * rates.second) + c.eps), mu, nu)
        return out, optax.ScaleByAdamState(optax.safe_increment(state.count), mu, nu)

    return optax.GradientTransformationExtraArgs(plain.init, update)


def descent(c: config.Optimizer, steps: int) -> optax.GradientTransformationExtraArgs:
    """``optax.scale_by_learning_rate`` of the schedule, whose rate may be given."""
    plain = optax.scale_by_learning_rate(schedule(c, steps))

    def update(updates, state, params=None, *, rates: Rates | None = None, **_):
        if rates is None:
            return plain.update(updates, state, params)
        count = optax.safe_increment(state.count)
        return jax.tree.map(lambda u: -rates.lr * u, updates), optax.ScaleByScheduleState(count)

    return optax.GradientTransformationExtraArgs(plain.init, update)


def held_in(tx: optax.GradientTransformationExtraArgs, dtype: str) -> optax.GradientTransformationExtraArgs:
    """``tx`` with the floating-point part of its state held in ``dtype``. It computes in float32 from what was held, and the
    step is made from the moments before they are rounded."""

    def cast(state: Any, to: str) -> Any:
        return jax.tree.map(lambda x: x.astype(to) if jnp.issubdtype(x.dtype, jnp.floating) else x, state)

    def update(grads, state, params=None, **more):
        steps, state = tx.update(grads, cast(state, "float32"), params, **more)
        return steps, cast(state, dtype)

    return optax.GradientTransformationExtraArgs(lambda params: cast(tx.init(params), dtype), update)


def decay_mask(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: not any(word in path_name(path) for word in NO_DECAY), params)


def global_norm(grads: Any, limit: float) -> tuple[jax.Array, jax.Array]:
    """The joint norm of all gradients, float32[], and what brings it down to ``limit`` where it is above (0: no limit),
    float32[]."""
    norm = optax.tree.norm(jax.tree.map(lambda g: g.astype(jnp.float32), grads))
    return norm, jnp.minimum(1.0, limit / jnp.maximum(norm, 1e-30)) if limit else jnp.ones((), jnp.float32)


def scaled(grads: Any, factor: jax.Array) -> Any:
    return jax.tree.map(lambda g: g * factor, grads)
