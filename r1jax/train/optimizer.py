"""AdamW, its schedule, and which parameters decay. optax lives in this folder only."""

from __future__ import annotations

from typing import Any

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


def optimizer(c: config.Optimizer, steps: int) -> optax.GradientTransformation:
    """AdamW (arXiv 1711.05101): decoupled decay, times the learning rate, on matrices only. Clipping is the update's own."""
    adamw = optax.adamw(schedule(c, steps), b1=c.b1, b2=c.b2, eps=c.eps, weight_decay=c.weight_decay, mask=decay_mask)
    return adamw if c.moments_dtype == "float32" else held_in(adamw, c.moments_dtype)


def held_in(tx: optax.GradientTransformation, dtype: str) -> optax.GradientTransformation:
    """``tx`` with the floating-point part of its state held in ``dtype``. It computes in float32 from what was held, and the
    step is made from the moments before they are rounded."""

    def cast(state: Any, to: str) -> Any:
        return jax.tree.map(lambda x: x.astype(to) if jnp.issubdtype(x.dtype, jnp.floating) else x, state)

    def update(grads, state, params=None):
        steps, state = tx.update(grads, cast(state, "float32"), params)
        return steps, cast(state, dtype)

    return optax.GradientTransformation(lambda params: cast(tx.init(params), dtype), update)


def decay_mask(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: not any(word in path_name(path) for word in NO_DECAY), params)


def clip_by_global_norm(grads: Any, limit: float) -> tuple[Any, jax.Array]:
    """Scales all gradients so that their joint norm is at most ``limit`` (0: no limit). Returns them and the norm before,
    float32[]."""
    norm = optax.tree.norm(jax.tree.map(lambda g: g.astype(jnp.float32), grads))
    if not limit:
        return grads, norm
    scale = jnp.minimum(1.0, limit / jnp.maximum(norm, 1e-30))
    return jax.tree.map(lambda g: g * scale, grads), norm
