"""Matrix products: operands in one type, sums in float32."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import struct

from r1jax.lora import Adapted, is_adapted, merged
from r1jax.nn import fp8
from r1jax.nn.quantized import Quantized, plain
from r1jax.sharding import one_device, platform

FEW = 128  # rows up to which a CPU packs these sooner than a kernel


@struct.dataclass
class Turned:
    """A kernel [*K, *out] that is held as [*out, *K]. For the few rows of a decode step XLA:CPU reads it up to twice as fast
    this way, and a tied output head is the embedding as it lies."""

    array: jax.Array


Kernel = jax.Array | Turned | Adapted | Quantized


def kernel_of(kernel: Kernel, dtype) -> jax.Array:
    """[K, *out] in ``dtype``, for a product that is not ``project``."""
    if isinstance(kernel, Turned):
        return jnp.moveaxis(kernel.array, -1, 0).astype(dtype)
    if is_adapted(kernel):
        return merged(kernel.replace(base=kernel_of(kernel.base, jnp.float32)), dtype)
    return plain(kernel, dtype)


def beside(dtype: str) -> str:
    """Operands of the products that are not in FP8 where the others are."""
    return "bfloat16" if dtype == "fp8" else dtype

def precision(dtype: str) -> str | None:
    """Of a product asked for in ``dtype``. TPUs multiply float32 as bfloat16, and NVIDIA GPUs as TF32, unless they are told
    otherwise."""
    return "highest" if dtype == "float32" else None


def project(x: jax.Array, kernel: Kernel, dtype: str, contract: int = 1) -> jax.Array:
    """``x[..., *K] @ kernel[*K, *out] -> [..., *out]`` over the last ``contract`` axes of x, in x's dtype.

    Operands are cast to ``dtype`` and products accumulate in float32. So are the two products of the backward pass, whose
    cotangents jax would otherwise leave in float32. ``fp8`` operands are scaled in tiles: see ``nn.fp8``. An ``Adapted`` kernel
    adds ``scale * (x @ a) @ b``, never in FP8. A kernel that is held in 8 bits gets no gradient, and of a ``Turned`` one, which
    only a sampler holds, it is jax's own.
    """
    if is_adapted(kernel):
        low = project(x, kernel.a, beside(dtype), contract) * kernel.scale
        return project(x, kernel.base, dtype, contract) + project(low, kernel.b, beside(dtype))
    if isinstance(kernel, Quantized):
        return _quantized(x, kernel, dtype, contract)
    if isinstance(kernel, Turned):
        # In FP8 the bfloat16 kernel is cut into the blocks of the trainer's.
        if dtype == "fp8":
            w = kernel.array
            return fp8.project(x, jnp.moveaxis(w, range(w.ndim - contract, w.ndim), range(contract)), contract)
        return _project_turned(x, kernel.array, dtype, contract)
    if dtype == "fp8":
        return fp8.project(x, kernel, contract)
    return _project(x, kernel, jnp.dtype(dtype).name, contract)


def _project_turned(x: jax.Array, w: jax.Array, dtype: str, contract: int) -> jax.Array:
    # As two matrices: of a product with more axes XLA:CPU turns the kernel around first.
    rows, out = x.shape[: x.ndim - contract], w.shape[: w.ndim - contract]
    x2, w2 = (a.reshape(-1, math.prod(w.shape[len(out) :])) for a in (x, w))
    if platform() == "cpu" and one_device() and dtype == "bfloat16" and len(x2) <= FEW:
        y = _kernel_first(x2, w2, dtype)
    else:
        y = dot(x2, w2, dtype, (1,), (1,))
    return y.reshape(*rows, *out).astype(x.dtype)


def _kernel_first(x: jax.Array, w: jax.Array, dtype: str) -> jax.Array:
    """x[B, K] @ w[out, K].T. XLA:CPU packs the second operand of a product anew each time, here the few rows and not the
    kernel, which is read as it lies. But for the barrier the compiler would swap them back. A lone row gets one more beside it,
    for a product with a vector is taken in float32, by one core."""
    lone = len(x) == 1
    y = dot(w, jnp.pad(x, ((0, 1), (0, 0))) if lone else x, dtype, (1,), (1,))
    y = jax.lax.optimization_barrier(jax.lax.optimization_barrier(y).T)  # turned once, and not by each that reads it
    return y[:1] if lone else y


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
