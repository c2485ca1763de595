"""Kernels held in 8 bits, for a loop that reads each of them once per token.

``Quantized`` stands in the place of a kernel in the tree of parameters. ``quantized_specs`` and ``read`` make such trees;
``nn.matmul.project`` and ``nn.grouped.project`` take them.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct

from r1jax.nn import fp8
from r1jax.params import ParamSpec, is_spec

Form = Literal["int8", "fp8"]
STACKED = ("layers", "experts")
"""Leading axes along which kernels stand side by side."""


@struct.dataclass
class Quantized:
    """A kernel [*lead, *K, *N] as ``values * scales``; ``lead`` are layers and experts. Also its ParamSpecs."""

    values: jax.Array
    """[*lead, *K, *N], int8 or float8_e4m3fn."""
    scales: jax.Array
    """float32. Of int8 one for each output, [*lead, *1, *N] with as many ones as there are axes K; of float8_e4m3fn one for
    each block of 128 x 128 of the merged axes, [*lead, ceil(K / 128), ceil(N / 128)]."""
    contract: int = struct.field(pytree_node=False)
    """How many axes K there are."""


def is_quantized(x) -> bool:
    return isinstance(x, Quantized)


def quantized_spec(spec: ParamSpec, form: Form, contract: int) -> Quantized:
    """Of the kernel that ``spec`` describes."""
    lead = _lead(spec)
    if form == "int8":
        ones = range(lead, lead + contract)
        shape = tuple(1 if i in ones else size for i, size in enumerate(spec.shape))
        axes = tuple(None if i in ones else name for i, name in enumerate(spec.axes))
    else:
        sizes = spec.shape[lead:]
        merged = (math.prod(sizes[:contract]), math.prod(sizes[contract:]))
        shape = (*spec.shape[:lead], *(-(-size // fp8.TILE) for size in merged))
        axes = (*spec.axes[:lead], None, None)
    values = dataclasses.replace(spec, dtype="int8" if form == "int8" else "float8_e4m3fn", inputs=0)
    return Quantized(values, dataclasses.replace(spec, shape=shape, axes=axes, dtype="float32", inputs=0), contract)


def _lead(spec: ParamSpec) -> int:
    return sum(name in STACKED for name in spec.axes)


def read(params, specs):
    """Parameters in the types of ``specs``; kernels are quantised where ``specs`` has a Quantized.

    int8: a factor is the largest magnitude of its output / 127, and the nearest integer is taken. fp8: ``nn.fp8.blocks``.
    """

    def one(spec, x):
        if is_spec(spec):
            return x.astype(spec.dtype)
        lead = _lead(spec.values)
        if spec.values.dtype == "int8":
            x = x.astype(jnp.float32)
            largest = jnp.abs(x).max(tuple(range(lead, lead + spec.contract)), keepdims=True)
            scales = jnp.where(largest > 0, largest * (1 / 127), 1)
            return spec.replace(values=jnp.round(x / scales).astype(jnp.int8), scales=scales)
        values, scales = fp8.blocks(fp8.two_axes(x, spec.contract, lead))
        return spec.replace(values=values.reshape(x.shape), scales=scales)

    return jax.tree.map(one, specs, params, is_leaf=lambda x: is_spec(x) or is_quantized(x))


def plain(kernel: jax.Array | Quantized, dtype) -> jax.Array:
    """A kernel as an array in ``dtype``; one that is quantised is multiplied out in float32."""
    if not is_quantized(kernel):
        return kernel.astype(dtype)
    values, scales = kernel.values.astype(jnp.float32), kernel.scales
    if kernel.values.dtype == fp8.E4M3:
        flat = fp8.two_axes(values, kernel.contract, scales.ndim - 2)
        scales = fp8.spread(scales, *flat.shape[-2:]).reshape(values.shape)
    return (values * scales).astype(dtype)
