"""Matrix products: operands in one type, sums in float32."""

from __future__ import annotations

from collections.abc import Sequence
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
    return _project(x, kernel, jnp.dtype(dtype).name, contract)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _project(x: jax.Array, w: jax.Array, dtype: str, contract: int) -> jax.Array:
    return _forward(x, w, dtype, contract)[0]


def _forward(x, w, dtype, contract):
    # The product itself and not _project, which would hide it from a policy of jax.checkpoint.
    return dot(x, w, dtype, range(x.ndim - contract, x.ndim), range(contract)).astype(x.dtype), (x, w)


def _backward(dtype, contract, saved, g):
    x, w = saved
    rows = x.ndim - contract
    dx = dot(g, w, dtype, range(rows, g.ndim), range(contract, w.ndim))
    dw = dot(x, g, dtype, range(rows), range(rows))
    return dx.astype(x.dtype), dw.astype(w.dtype)


_project.defvjp(_forward, _backward)


def dot(x: jax.Array, y: jax.Array, dtype: str, of_x: Sequence[int], of_y: Sequence[int]) -> jax.Array:
    """Sums over these axes. No axes are merged: a merged one could not stay split over two axes of a mesh."""
    return jax.lax.dot_general(
        x.astype(dtype), y.astype(dtype), ((of_x, of_y), ((), ())),
        precision=precision(dtype), preferred_element_type=jnp.float32,
    )  # fmt: skip


def einsum(equation: str, x: jax.Array, y: jax.Array, dtype: str) -> jax.Array:
    """Of activations, which keep the type they have, at the precision of products in ``dtype``: float32."""
    return jnp.einsum(equation, x, y, precision=precision(dtype), preferred_element_type=jnp.float32)
