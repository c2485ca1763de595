"""Root-mean-square normalisation (Zhang and Sennrich 2019)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from r1jax.params import ParamSpec


def specs(width: int, dtype: str, axis: str | None = None) -> dict:
    return {"scale": ParamSpec((width,), (axis,), "ones", dtype=dtype)}


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """``x / sqrt(mean(x^2) + eps) * scale`` over the last axis, in float32, returned in x's dtype."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
    return (y * scale.astype(jnp.float32)).astype(x.dtype)
