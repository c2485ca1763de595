"""Matrix products in FP8 as DeepSeek-V3 trains with them (arXiv 2412.19437, section 3.3).

Operands are float8_e4m3fn, in all three products of a layer: forward, gradient of the input, gradient of the kernel. An
activation or its gradient has a factor for each 1 x 128 numbers along the axis that is summed over, a kernel one for each
128 x 128, found from the numbers themselves: ``max(largest magnitude, 1e-4) / 448``. The sum over a tile's 128 products is
scaled and added up in float32. A kernel's axes are merged into inputs and outputs before they are cut, so its blocks are those
of the released weights; an expert's are its own. A last tile may be short.

Departures: a gradient's tile has no floor of 1e-4, for a mean over many tokens puts whole tiles below it; tiles along tokens
end where a row of the batch ends; and the gradient of the kernel tiles its operands anew from what the activations were, where
V3 keeps them in FP8 and turns the tiles.

These are plain products, for jax would take a wrong derivative of the rounding: only ``project`` may be differentiated.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from r1jax import sharding

E4M3 = jnp.float8_e4m3fn
PER_LARGEST = 1 / 448  # a factor, for compiled or not a product is the same: XLA makes one of a division by a constant
TILE = 128
FLOOR = 1e-4  # of DeepSeek's kernels
NO_FLOOR = 1e-30  # only keeps a tile of zeros from dividing by 0


class Tiles(NamedTuple):
    """An operand, cut into n tiles along the axis that is summed over; zeros fill the last."""

    values: jax.Array
    """float8_e4m3fn[n, *rest, t], t <= 128."""
    scales: jax.Array
    """float32[n, *rest]"""


class Blocks(NamedTuple):
    """A kernel, in blocks of 128 x 128."""

    values: jax.Array
    """float8_e4m3fn[..., K, N]"""
    scales: jax.Array
    """float32[..., ceil(K / 128), ceil(N / 128)]"""


def tiles(x: jax.Array, axis: int = -1, floor: float = FLOOR) -> Tiles:
    """x with a factor for each 1 x 128 numbers along ``axis``."""
    x = _cut(jnp.moveaxis(x.astype(jnp.float32), axis, -1))
    scales = jnp.maximum(jnp.abs(x).max(-1), floor) * PER_LARGEST
    return Tiles((x / scales[..., None]).astype(E4M3), scales)


def tiles_of_tokens(x: jax.Array, floor: float = FLOOR) -> Tiles:
    """x[*B, T, D] with a factor for each 128 tokens of a row and channel, to be summed over all tokens."""
    found = tiles(x.reshape(-1, *x.shape[-2:]), 1, floor)  # [n, B, D, t]
    # Rows first: they are split over devices.
    return Tiles(*(a.swapaxes(0, 1).reshape(-1, *a.shape[2:]) for a in found))


def blocks(kernel: jax.Array) -> Blocks:
    """float[..., K, N] with a factor for each 128 x 128 numbers."""
    kernel = kernel.astype(jnp.float32)
    k, n = kernel.shape[-2:]
    padded = jnp.pad(jnp.abs(kernel), (*[(0, 0)] * (kernel.ndim - 2), (0, -k % TILE), (0, -n % TILE)))
    cut = padded.reshape(*kernel.shape[:-2], -(-k // TILE), TILE, -(-n // TILE), TILE)
    scales = jnp.maximum(cut.max((-3, -1)), FLOOR) * PER_LARGEST
    return Blocks((kernel / spread(scales, k, n)).astype(E4M3), scales)


def spread(scales: jax.Array, k: int, n: int) -> jax.Array:
    """The factor of each number of a kernel [..., k, n]."""
    return scales.repeat(TILE, -2)[..., :k, :].repeat(TILE, -1)[..., :n]


def tiles_of_blocks(kernel: Blocks, axis: int) -> Tiles:
    """A kernel [K, N] as an operand that is summed over ``axis``, 0 or 1."""
    values, scales = (a if axis else a.T for a in kernel)
    return Tiles(_cut(values), scales.T.repeat(TILE, 1)[:, : values.shape[0]])


def _cut(x: jax.Array) -> jax.Array:
    """[*rest, K] -> [n, *rest, t], filled up with zeros."""
    size = x.shape[-1]
    t = min(TILE, size)
    padded = jnp.pad(x, (*[(0, 0)] * (x.ndim - 1), (0, -size % t)))
    return jnp.moveaxis(padded.reshape(*x.shape[:-1], -1, t), -2, 0)


def product(a: Tiles, b: Tiles, ways: int = 1) -> jax.Array:
    """Sum over tiles and within them: float32[*rest of a, *rest of b].

    Tile after tile, so that no more than the result is held. Tiles that lie on ``ways`` devices are taken one from each at a
    time: a loop over all of them would fetch them from each other.
    """
    n = len(a.values)
    ways = math.gcd(n, ways)

    @jax.vmap
    def part(a: Tiles, b: Tiles):
        last = ((a.values.ndim - 1,), (b.values.ndim - 1,))
        sums = jax.lax.dot_general(a.values, b.values, (last, ((), ())), preferred_element_type=jnp.float32)
        return sums * a.scales.reshape(*a.scales.shape, *(1,) * b.scales.ndim) * b.scales

    def step(total, tiles):
        return total + part(*tiles), None

    in_turn = jax.tree.map(lambda x: x.reshape(ways, n // ways, *x.shape[1:]).swapaxes(0, 1), (a, b))
    start = jnp.zeros((ways, *a.scales.shape[1:], *b.scales.shape[1:]), jnp.float32)
    return jax.lax.scan(step, start, in_turn)[0].sum(0)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def project(x: jax.Array, kernel: jax.Array | Blocks, contract: int) -> jax.Array:
    """``x[..., *K] @ kernel[*K, *N] -> [..., *N]`` over the last ``contract`` axes of x, in x's dtype.

    Args:
      kernel: an array, or Blocks whose ``values`` have these axes; Blocks get no gradient.
    """
    _, inputs, outputs = _axes(x, kernel, contract)
    weights = tiles_of_blocks(_as_blocks(kernel, contract), 0)
    y = product(tiles(_merge(x, inputs)), weights, sharding.ways("mlp"))
    return y.reshape(*x.shape[: -len(inputs)], *outputs).astype(x.dtype)


def _forward(x, kernel, contract):
    return project(x, kernel, contract), (x, kernel)


def _backward(contract, saved, g):
    x, kernel = saved
    shape, inputs, outputs = _axes(x, kernel, contract)
    rows, g = _merge(x, inputs), _merge(g, outputs)
    weights = tiles_of_blocks(_as_blocks(kernel, contract), 1)
    dx = product(tiles(g, floor=NO_FLOOR), weights, sharding.ways("mlp")).reshape(x.shape).astype(x.dtype)
    if isinstance(kernel, Blocks):
        return dx, None
    dw = product(tiles_of_tokens(rows), tiles_of_tokens(g, NO_FLOOR), sharding.ways("batch"))
    return dx, dw.reshape(shape).astype(kernel.dtype)


project.defvjp(_forward, _backward)


def _axes(x, kernel, contract: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """(the kernel's shape, of it inputs, outputs)"""
    shape = kernel.values.shape if isinstance(kernel, Blocks) else kernel.shape
    return shape, shape[:contract], shape[contract:]


def _merge(x: jax.Array, last: tuple[int, ...]) -> jax.Array:
    return x.reshape(*x.shape[: x.ndim - len(last)], math.prod(last))


def _as_blocks(kernel: jax.Array | Blocks, contract: int) -> Blocks:
    if isinstance(kernel, Blocks):
        return Blocks(two_axes(kernel.values, contract), kernel.scales)
    return blocks(two_axes(kernel, contract))


def two_axes(kernel: jax.Array, contract: int, lead: int = 0) -> jax.Array:
    """[*lead, *K, *N] -> [*lead, K, N]"""
    shape = kernel.shape[lead:]
    return kernel.reshape(*kernel.shape[:lead], math.prod(shape[:contract]), math.prod(shape[contract:]))
