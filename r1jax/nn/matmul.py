"""The matrix product of every projection: operands in one type, sums in float32."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp


def project(x: jax.Array, kernel: jax.Array, dtype: str, contract: int = 1) -> jax.Array:
    """``x[..., *K] @ kernel[*K, *out] -> [..., *out]`` over the last ``contract`` axes of x, in x's dtype.

    Operands are cast to ``dtype`` and products accumulate in float32. So are the two products of the backward pass, whose
    cotangents jax would otherwise leave in float32.
    """
    k = kernel.shape[:contract]
    out = kernel.shape[contract:]
    flat = x.reshape(*x.shape[: x.ndim - contract], math.prod(k))
    y = _dot(flat, kernel.reshape(math.prod(k), math.prod(out)), jnp.dtype(dtype).name)
    return y.reshape(*y.shape[:-1], *out)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dot(x: jax.Array, w: jax.Array, dtype: str) -> jax.Array:
    return jnp.matmul(x.astype(dtype), w.astype(dtype), preferred_element_type=jnp.float32).astype(x.dtype)


def _dot_forward(x, w, dtype):
    return _dot(x, w, dtype), (x, w)


def _dot_backward(dtype, saved, g):
    x, w = saved
    g, rows = g.astype(dtype), tuple(range(x.ndim - 1))
    dx = jax.lax.dot_general(g, w.astype(dtype), (((g.ndim - 1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    dw = jax.lax.dot_general(x.astype(dtype), g, ((rows, rows), ((), ())), preferred_element_type=jnp.float32)
    return dx.astype(x.dtype), dw.astype(w.dtype)


_dot.defvjp(_dot_forward, _dot_backward)
