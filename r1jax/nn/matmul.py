"""Matrix products: operands in one type, sums in float32."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp


def precision(dtype: str) -> str | None:
    """Of a product asked for in ``dtype``. TPUs multiply float32 as bfloat16, and NVIDIA GPUs as TF32, unless they are told
    otherwise."""
    return "highest" if dtype == "float32" else None


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
    y = jnp.matmul(x.astype(dtype), w.astype(dtype), precision=precision(dtype), preferred_element_type=jnp.float32)
    return y.astype(x.dtype)


def _dot_forward(x, w, dtype):
    return _dot(x, w, dtype), (x, w)


def _dot_backward(dtype, saved, g):
    x, w = saved
    g, rows = g.astype(dtype), tuple(range(x.ndim - 1))
    dot = partial(jax.lax.dot_general, precision=precision(dtype), preferred_element_type=jnp.float32)
    dx = dot(g, w.astype(dtype), (((g.ndim - 1,), (1,)), ((), ())))
    dw = dot(x.astype(dtype), g, ((rows, rows), ((), ())))
    return dx.astype(x.dtype), dw.astype(w.dtype)


_dot.defvjp(_dot_forward, _dot_backward)


def einsum(equation: str, x: jax.Array, y: jax.Array, dtype: str) -> jax.Array:
    """Of activations, which keep the type they have, at the precision of products in ``dtype``: float32."""
    return jnp.einsum(equation, x, y, precision=precision(dtype), preferred_element_type=jnp.float32)
