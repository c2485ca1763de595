"""Rotary positions (Su et al. 2021) with YaRN's (Peng et al. 2023) and Llama 3's frequency scaling."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from r1jax import config


def mscale(factor: float, scale: float) -> float:
    """YaRN's attention temperature, ``0.1 * scale * ln(factor) + 1``; 1 where the context is not extended."""
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def inverse_frequencies(dim: int, rope: config.Rope) -> np.ndarray:
    """float32[dim / 2] radians per token."""
    base = 1.0 / rope.theta ** (np.arange(0, dim, 2, dtype=np.float64) / dim)
    if rope.scaling == "yarn":
        # The channel that turns `beta` times over the original length; those below `fast` are kept, those above `slow`
        # interpolated.
        def channel(beta):
            return dim * math.log(rope.original_length / (beta * 2 * math.pi)) / (2 * math.log(rope.theta))

        low, high = max(math.floor(channel(rope.beta_fast)), 0), min(math.ceil(channel(rope.beta_slow)), dim - 1)
        interpolated = np.clip((np.arange(dim // 2) - low) / max(high - low, 0.001), 0, 1)
        base = base / rope.factor * interpolated + base * (1 - interpolated)
    elif rope.scaling == "llama3":
        turns = rope.original_length * base / (2 * math.pi)
        kept = np.clip((turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor), 0, 1)
        base = base / rope.factor * (1 - kept) + base * kept
    return base.astype(np.float32)


def angles(positions: jax.Array, dim: int, rope: config.Rope) -> tuple[jax.Array, jax.Array]:
    """(cos, sin), float32[B, T, dim / 2] for int32 positions[B, T], with YaRN's factor m(mscale)/m(mscale_all_dim) in them."""
    turned = positions[..., None].astype(jnp.float32) * inverse_frequencies(dim, rope)
    factor = 1.0
    if rope.scaling == "yarn":
        factor = mscale(rope.factor, rope.mscale) / mscale(rope.factor, rope.mscale_all_dim)
    return jnp.cos(turned) * factor, jnp.sin(turned) * factor


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array, interleaved: bool) -> jax.Array:
    """Turns pairs of channels of x[B, T, N, dim] by the angles[B, T, dim / 2]; in float32, returned in x's dtype."""
    y = x.astype(jnp.float32)
    cos, sin = cos[:, :, None], sin[:, :, None]
    if interleaved:
        a, b = y[..., 0::2], y[..., 1::2]
        out = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(y.shape)
    else:
        a, b = jnp.split(y, 2, axis=-1)
        out = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return out.astype(x.dtype)
