"""Products of rows that are sorted by expert: rows meet the weights of their expert only.

The work grows with the rows, not with the experts times the rows, and nothing is dropped. On a CPU the rows go block by block:
shapes are static, the number of blocks that are visited is not, so the loops run as far as the routing asks. An accelerator has
kernels for such products: tokamax's, or on a TPU XLA's where that is not installed. Reverse-mode gradients only.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import struct

from r1jax.lora import Adapted, is_adapted
from r1jax.nn import fp8
from r1jax.nn import kernels as libraries
from r1jax.nn.matmul import beside, precision
from r1jax.nn.quantized import Quantized, plain
from r1jax.sharding import platform


@struct.dataclass
class Groups:
    """R choices of an expert, in the order of the experts. The first ``count`` blocks of b rows hold them all: a block has
    rows of one expert, and at its end rows of those that follow, or of the b that pad the R. With ``room`` it stands for R, and
    choices that are sorted behind it are left out."""

    order: jax.Array
    """int32[R + b]: the choice at each sorted place; padding repeats the first."""
    place: jax.Array
    """int32[R]: the sorted place of each choice, also of those that are left out."""
    expert: jax.Array
    """int32[blocks]"""
    start: jax.Array
    """int32[blocks]: first row."""
    rows: jax.Array
    """int32[blocks]: how many of the block's rows are its expert's."""
    count: jax.Array
    """int32[]"""
    sizes: jax.Array
    """int32[E]: rows of each expert. The b that pad the R count as the last one's."""
    block: int = struct.field(pytree_node=False)
    """b"""

    @property
    def total(self) -> jax.Array:
        """int32[]: the sorted rows that are some expert's; what lies behind means nothing."""
        return self.sizes.sum() - self.block


def block_size(rows: int, n_experts: int) -> int:
    """Rows of a block: a power of two, about half of what an expert gets. Larger ones are faster per row, but an expert's last
    block is half empty."""
    return min(128, max(8, 1 << max(0, (rows // (2 * n_experts)).bit_length() - 1)))


def group(experts: jax.Array, n_experts: int, *, room: int | None = None, block: int | None = None) -> Groups:
    """Sorts int32 experts[R]. Rows of one expert keep their order. ``n_experts`` stands for none, and is sorted last.

    Args:
      room: the most choices that are kept, the first in sorted order; None keeps all.
      block: rows of a block, see ``block_size``; None fits R.
    """
    n = experts.size if room is None else room
    b = block or block_size(experts.size, n_experts)
    order = jnp.argsort(experts, stable=True).astype(jnp.int32)
    ends = jnp.minimum(jnp.cumsum(jnp.zeros(n_experts, jnp.int32).at[experts].add(1, mode="drop")), n)
    sizes = jnp.diff(ends, prepend=0)
    blocks = -(-sizes // b)
    last = jnp.cumsum(blocks)
    index = jnp.arange(n // b + min(n, n_experts), dtype=jnp.int32)
    expert = jnp.minimum((index[:, None] >= last).sum(1, dtype=jnp.int32), n_experts - 1)
    start = (ends - sizes)[expert] + (index - (last - blocks)[expert]) * b
    rows = jnp.minimum(ends[expert] - start, b)
    place = jnp.zeros(experts.size, jnp.int32).at[order].set(jnp.arange(experts.size, dtype=jnp.int32), unique_indices=True)
    return Groups(jnp.pad(order[:n], (0, b)), place, expert, start, rows, last[-1], sizes.at[-1].add(b), b)


@jax.custom_vjp
def sort(x: jax.Array, groups: Groups) -> jax.Array:
    """x[R, D] as sorted rows [R + b, D]."""
    return x[groups.order]


@jax.custom_vjp
def unsort(x: jax.Array, groups: Groups) -> jax.Array:
    """Sorted rows [R + b, D] as they were: [R, D]."""
    return x[groups.place]


# Gathers both ways: the gradient that jax takes of one is a scatter.
sort.defvjp(lambda x, groups: (sort(x, groups), groups), lambda groups, g: (unsort(g, groups), None))
unsort.defvjp(lambda x, groups: (unsort(x, groups), groups), lambda groups, g: (_sort_gradient(g, groups), None))


def _sort_gradient(g: jax.Array, groups: Groups) -> jax.Array:
    return sort(g, groups).at[groups.place.size :].set(0)


def project(x: jax.Array, kernels: jax.Array | Adapted | Quantized, groups: Groups, dtype: str) -> jax.Array:
    """Sorted rows x[R + b, D] times kernels[E, D, F] of their experts: float32[R + b, F]. Its last b rows mean nothing.

    Operands are cast to ``dtype`` and products accumulate in float32, forward and backward, as in ``nn.matmul.project``. In
    ``fp8`` a block's rows are a tile of the kernels' gradient.
    """
    if is_adapted(kernels):
        small = beside(dtype)
        low = _project(x, kernels.a, groups, small).astype(x.dtype) * kernels.scale
        return _project(x, kernels.base, groups, dtype) + _project(low, kernels.b, groups, small)
    return _project(x, kernels, groups, dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _project(x: jax.Array, kernels: jax.Array | Quantized, groups: Groups, dtype: str) -> jax.Array:
    return _forward(x, kernels, groups, dtype)[0]


def _forward(x, kernels, groups, dtype):
    of_rows, _ = _products(kernels, dtype)
    return of_rows(x, kernels, groups, dtype, 0), (x, kernels, groups)


def _backward(dtype, saved, g):
    x, kernels, groups = saved
    of_rows, of_kernels = _products(kernels, dtype)
    dx = of_rows(g, kernels, groups, dtype, 1).astype(x.dtype)
    if isinstance(kernels, Quantized):
        return dx, None, None
    return dx, of_kernels(x, g, groups, kernels.shape[0], dtype).astype(kernels.dtype), None


_project.defvjp(_forward, _backward)


def _products(kernels, dtype):
    """(rows times kernels, rows times rows) in the form of the platform. Where operands have factors of their own there is one
    form."""
    scaled = dtype == "fp8" or isinstance(kernels, Quantized)
    return (_ragged_rows, _ragged_kernels) if not scaled and _has_kernels() else (_rows, _kernels)


def _has_kernels() -> bool:
    """Of XLA's own a GPU's are dense products, with an array of experts x rows x width."""
    return platform() == "tpu" or platform() == "gpu" and libraries.tokamax() is not None


def _ragged(x, y, sizes, of_x, of_y, groups, dtype):
    """Sums over the axes ``of_x`` and ``of_y``; ``groups`` are y's axes of experts."""
    library = libraries.tokamax() or jax.lax
    numbers = jax.lax.RaggedDotDimensionNumbers(
        dot_dimension_numbers=(((of_x,), (of_y,)), ((), ())), lhs_ragged_dimensions=(0,), rhs_group_dimensions=groups
    )
    return library.ragged_dot_general(
        x.astype(dtype), y.astype(dtype), sizes, numbers,
        precision=precision(dtype), preferred_element_type=jnp.float32,
    )  # fmt: skip


def _ragged_rows(x, w, groups, dtype, contract):
    return _ragged(x, w, groups.sizes, 1, 1 + contract, (0,), dtype)


def _ragged_kernels(x, g, groups, n_experts, dtype):
    return _ragged(x, g, groups.sizes, 0, 0, (), dtype)


def _rows(x, kernels, groups, dtype, contract):
    """float32 x[R + b, :] times its expert's kernel over the kernel's axis ``contract``."""
    b = groups.block
    width = (kernels.values if isinstance(kernels, Quantized) else kernels).shape[2 - contract]

    def block(i, out):
        rows = jax.lax.dynamic_slice_in_dim(x, groups.start[i], b)
        # XLA:CPU widens bfloat16 to slice it, and would do so to all kernels before the loop if they did not depend on i.
        held, i = jax.lax.optimization_barrier((kernels, i))
        kernel = jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, groups.expert[i], keepdims=False), held)
        y = _one(rows, kernel, contract, dtype)
        # The rows of the experts that follow are wrong until their own block comes.
        return jax.lax.dynamic_update_slice_in_dim(out, y, groups.start[i], 0)

    return jax.lax.fori_loop(0, groups.count, block, jnp.zeros((x.shape[0], width), jnp.float32))


def _one(rows, kernel, contract, dtype):
    """float32 rows[b, :] times one expert's kernel over its axis ``contract``: 1 for the gradient of the rows."""
    stored = kernel.values.dtype if isinstance(kernel, Quantized) else kernel.dtype
    if dtype == "fp8" and stored != jnp.int8:
        weights = fp8.Blocks(kernel.values, kernel.scales) if stored == fp8.E4M3 else fp8.blocks(kernel)
        found = fp8.tiles(rows, floor=fp8.NO_FLOOR if contract else fp8.FLOOR)
        return fp8.product(found, fp8.tiles_of_blocks(weights, contract))
    dtype = "bfloat16" if dtype == "fp8" else dtype
    return _dot(rows, plain(kernel, dtype), 1, contract, dtype)


def _kernels(x, g, groups, n_experts, dtype):
    """float32[E, D, F]: x's rows times g's, summed over the rows of each expert."""
    b = groups.block

    def block(i, out):
        rows, down = (jax.lax.dynamic_slice_in_dim(a, groups.start[i], b) for a in (x, g))
        mine = jnp.arange(b)[:, None] < groups.rows[i]
        down = jnp.where(mine, down, 0)
        if dtype == "fp8":  # the others' rows would take part in the factors
            y = fp8.product(fp8.tiles(jnp.where(mine, rows, 0), 0), fp8.tiles(down, 0, fp8.NO_FLOOR))
        else:
            y = _dot(rows, down, 0, 0, dtype)
        return out.at[groups.expert[i]].add(y)

    return jax.lax.fori_loop(0, groups.count, block, jnp.zeros((n_experts, x.shape[1], g.shape[1]), jnp.float32))


def _dot(x, y, left, right, dtype):
    x, y, contract = x.astype(dtype), y.astype(dtype), (((left,), (right,)), ((), ()))
    return jax.lax.dot_general(x, y, contract, precision=precision(dtype), preferred_element_type=jnp.float32)
