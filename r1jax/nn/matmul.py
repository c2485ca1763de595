"""Matrix products: operands in one type, sums in float32."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp

from r1jax.nn import fp8
from r1jax.nn.quantized import Quantized, plain


def precision(dtype: str) -> str | None:
    """Of a product asked for in ``dtype``. TPUs multiply float32 as bfloat16, and NVIDIA GPUs as TF32, unless they are told
    otherwise."""
    return "highest" if dtype == "float32" else None


def project(x: jax.Array, kernel: jax.Array | Quantized, dtype: str, contract: int = 1) -> jax.Array:
    """``x[..., *K] @ kernel[*K, *out] -> [..., *out]`` over the last ``contract`` axes of x, in x's dtype.

    Operands are cast to ``dtype`` and products accumulate in float32. So are the two products of the backward pass, whose
    cotangents jax would otherwise leave in float32. ``fp8`` operands are scaled in tiles: see ``nn.fp8``. A kernel that is held
    in 8 bits gets no gradient.
    """
    if isinstance(kernel, Quantized):
        return _quantized(x, kernel, dtype, contract)
    if dtype == "fp8":
        return fp8.project(x, kernel, contract)
    return _project(x, kernel, jnp.dtype(dtype).name, contract)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _project(x: jax.Array, w: jax.Array, dtype: str, contract: int) -> jax.Array:
    return _dot(x, w, dtype, range(x.ndim - contract, x.ndim), range(contract)).astype(x.dtype)


def _forward(x, w, dtype, contract):
    return _project(x, w, dtype, contract), (x, w)


def _backward(dtype, contract, saved, g):
    x, w = saved
    rows = x.ndim - contract
    dx = _dot(g, w, dtype, range(rows, g.ndim), range(contract, w.ndim))
    dw = _dot(x, g, dtype, range(rows), range(rows))
    return dx.astype(x.dtype), dw.astype(w.dtype)


_project.defvjp(_forward, _backward)


def _dot(x: jax.Array, y: jax.Array, dtype: str, of_x: Sequence[int], of_y: Sequence[int]) -> jax.Array:
    """Sums over these axes. No axes are merged: a merged one could not stay split over two axes of a mesh."""
    return jax.lax.dot_general(
        x.astype(dtype), y.astype(dtype), ((of_x, of_y), ((), ())),
        precision=precision(dtype), preferred_element_type=jnp.float32,
    )  # fmt: skip


def _quantized(x: jax.Array, kernel: Quantized, dtype: str, contract: int) -> jax.Array:
    """A product in FP8 where kernel and ``dtype`` are; else the kernel alone is in 8 bits, and ``fp8`` means bfloat16."""
    in_fp8 = kernel.values.dtype == fp8.E4M3
    if in_fp8 and dtype == "fp8":
        return fp8.project(x, fp8.Blocks(kernel.values, kernel.scales), contract)
    dtype = "bfloat16" if dtype == "fp8" else dtype
    if in_fp8:
        return _project(x, plain(kernel, dtype), dtype, contract)
    # bfloat16 holds every int8. An output's factor comes after its sum.
    sums = _project(x.astype(jnp.float32), kernel.values.astype(dtype), dtype, contract)
    return (sums * kernel.scales.reshape(kernel.scales.shape[contract:])).astype(x.dtype)


def einsum(equation: str, x: jax.Array, y: jax.Array, dtype: str) -> jax.Array:
    """Of activations, which keep the type they have, at the precision of products in ``dtype``: float32."""
    return jnp.einsum(equation, x, y, precision=precision(dtype), preferred_element_type=jnp.float32)
