"""What a device does at best, measured on it: matrix products of the model's shapes, and a copy."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from r1jax import config
from r1jax.bench.fastest import fastest
from r1jax.bench.results import Limits, Product
from r1jax.nn.matmul import project

UPDATE_ROWS = 2048
"""Of a product as an update has it."""
COPIED = 1 << 28
"""Bytes of the array that is copied: more than the caches of a CPU hold."""


def probe(model: config.Model, mesh: jax.sharding.Mesh, rows: int) -> Limits:
    """The limits of the mesh's devices, probed on its first.

    Args:
      rows: of a product as decoding has it.
    """
    device = mesh.devices.flat[0]
    inner, outer = model.d_model, widest(model)
    shapes = [(dtype, n) for dtype in ("float32", "bfloat16") for n in dict.fromkeys((rows, UPDATE_ROWS))]
    with jax.default_device(device):
        products = [Product("jax", d, n, inner, outer, product_rate(d, n, inner, outer)) for d, n in shapes]
        copied = 2 * COPIED / copy_seconds(COPIED)
    return Limits(device.device_kind, mesh.size, tuple(products), copied)


def best(first: Limits, again: Limits) -> Limits:
    """The faster of two probes, each product by itself: what one reached is no limit, though something disturbed the other."""
    rates = {p.shape: p.flops_per_s for p in again.products}
    products = (dataclasses.replace(p, flops_per_s=max(p.flops_per_s, rates.get(p.shape, 0.0))) for p in first.products)
    return dataclasses.replace(first, products=tuple(products), bytes_per_s=max(first.bytes_per_s, again.bytes_per_s))


def widest(model: config.Model) -> int:
    """Columns of the widest kernel of a layer."""
    return model.d_ff if any(s.ff == "dense" for s in model.segments) or model.moe is None else model.moe.d_ff


def product_rate(dtype: str, rows: int, inner: int, outer: int) -> float:
    """FLOP/s of [rows, inner] x [inner, outer]."""
    x, w = jnp.ones((rows, inner), dtype), jnp.ones((inner, outer), dtype)
    multiply = jax.jit(lambda x, w: project(x, w, dtype))
    return 2 * rows * inner * outer / fastest(lambda _: multiply(x, w), x, jax.block_until_ready)


def copy_seconds(size: int) -> float:
    """Of reading and writing ``size`` bytes each."""
    return fastest(jax.jit(lambda x: x + 1, donate_argnums=0), jnp.zeros(size // 4, jnp.float32), jax.block_until_ready)
