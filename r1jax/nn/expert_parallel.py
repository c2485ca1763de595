"""Experts over devices: a token travels to those that its experts lie on, and what they say of it travels back.

Each device routes its own tokens and sends a token once to every device that has some of its experts, however many
(DeepSeek-V3, arXiv 2412.19437, section 3.2, limits these by the groups that a token may choose from). There the rows meet the
experts by ``nn.grouped``; their gated sum goes back as one row, and where the token came from all devices' rows are added.

Nothing is dropped unless ``capacity_factor`` says so. Shapes are static, so without it there is room for the worst case, all
tokens of all devices on one. The tokens of a device are then worked on after those of another, for the gradient once more.
Experts' weights stay on their devices; only what fsdp splits of these is gathered.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from r1jax import config
from r1jax.lora import Adapted, is_adapted
from r1jax.nn import fp8, grouped
from r1jax.nn.copies import Copies
from r1jax.nn.quantized import Quantized
from r1jax.sharding import mesh_axes, on_each_device, platform, ways

SMALL = 4096
"""Choices of a device's own tokens up to which those of all devices are worked on at once, so that weights are read once."""
KERNELS = {"gate": ("experts", "embed", "mlp"), "up": ("experts", "embed", "mlp"), "down": ("experts", "mlp", "embed")}
"""Logical axes of the experts' kernels."""


# -- Rows that move


class Moves(NamedTuple):
    """Which of n rows stand at S places. Each row stands at M places at the most."""

    source: jax.Array
    """int32[S]: the row at each place; n where there is none."""
    places: jax.Array
    """int32[n, M]: the places of each row; S where there are fewer."""


@jax.custom_vjp
def spread(x: jax.Array, moves: Moves) -> jax.Array:
    """x[n, D] at its places: [S, D], zeros where nothing is."""
    return x.at[moves.source].get(mode="fill", fill_value=0)


@jax.custom_vjp
def collect(y: jax.Array, moves: Moves) -> jax.Array:
    """The sum of y[S, D] over the places of each row: [n, D]."""
    parts = (y.at[moves.places[:, m]].get(mode="fill", fill_value=0).astype(jnp.float32) for m in range(moves.places.shape[1]))
    return sum(parts).astype(y.dtype)


# Each is the other's transpose, and both are gathers: the gradient that jax takes of one is a scatter.
spread.defvjp(lambda x, moves: (spread(x, moves), moves), lambda moves, g: (collect(g, moves), None))
collect.defvjp(lambda y, moves: (collect(y, moves), moves), lambda moves, g: (spread(g, moves), None))


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def exchange(x: jax.Array, sizes: jax.Array, returned: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """All-to-all between the devices of ``axes``: x[ways, C, ...] has a block for each of them; returned are the blocks that
    they have for this one.

    A CPU sends whole blocks, as ``ragged_all_to_all`` is not implemented there. Accelerators send the rows that are real.

    Args:
      sizes: int32[ways], the real rows of each block. The others are 0, here and in what is returned.
      returned: int32[ways], ``sizes`` of the blocks that come.
    """
    if platform() == "cpu":
        return jax.lax.all_to_all(x, axes, 0, 0, tiled=True)
    count, room = x.shape[:2]
    rows, starts = x.reshape(count * room, *x.shape[2:]), jnp.arange(count, dtype=jnp.int32) * room
    mine = jnp.full(count, jax.lax.axis_index(axes) * room, jnp.int32)
    out = jax.lax.ragged_all_to_all(rows, jnp.zeros_like(rows), starts, sizes, mine, returned, axis_name=axes)
    return out.reshape(x.shape)


exchange.defvjp(
    lambda x, sizes, returned, axes: (exchange(x, sizes, returned, axes), (sizes, returned)),
    lambda axes, saved, g: (exchange(g, saved[1], saved[0], axes), None, None),
)


# -- Experts


def why_not(params, x: jax.Array, model: config.Model) -> str:
    """Why ``experts_parallel`` cannot be used here; empty if it can."""
    if x.shape[0] % ways("batch") or x.shape[1] % ways("sequence"):
        return f"{x.shape[:2]} rows and positions do not divide over the devices"
    tiles = model.matmul_dtype == "fp8" or any(_is_fp8(params[name]) for name in KERNELS)
    if tiles and ways("mlp") > 1 and model.moe.d_ff % (fp8.TILE * ways("mlp")):
        return f"a tile of FP8 would lie on two devices: d_ff {model.moe.d_ff} is split into {ways('mlp')}"
    return ""


def _is_fp8(kernel) -> bool:
    kernel = kernel.base if is_adapted(kernel) else kernel
    return isinstance(kernel, Quantized) and kernel.values.dtype == fp8.E4M3


def most_devices(moe: config.MoE, devices: int) -> int:
    """The most devices that the router sends a token to: its experts come from ``top_groups`` groups, which lie on some devices
    each."""
    group = -(-devices // moe.n_groups)  # devices that a group touches, if it does not begin amid one
    whole = devices % moe.n_groups == 0 or moe.n_groups % devices == 0
    return min(moe.top_k, devices, moe.top_groups * group if whole else devices)


def rooms(model: config.Model, tokens: int, devices: int) -> tuple[int, int]:
    """(the most tokens that a device sends to each of ``devices``, the most choices that a device's experts work on), where
    each has so many tokens. With a ``capacity_factor`` it multiplies what they are when loads are even; without, nothing is
    dropped."""
    moe, factor = model.moe, model.capacity_factor
    inside = min(moe.top_k, moe.n_experts // devices)
    if factor is None:
        return tokens, devices * tokens * inside
    sent = min(tokens, math.ceil(factor * tokens * most_devices(moe, devices) / devices))
    return sent, min(devices * sent * inside, math.ceil(factor * tokens * moe.top_k))


def experts_parallel(params, x: jax.Array, routing, model: config.Model) -> tuple[jax.Array, jax.Array]:
    """``nn.moe.experts`` with each expert on its device: (x's shape and dtype, float32[]: choices that were dropped)."""
    kernels, copies = {name: params[name] for name in KERNELS}, params.get("copies")
    leaves, tree = jax.tree.flatten([kernels, copies])
    lie = [{name: _axes(kernels[name], KERNELS[name]) for name in KERNELS}]
    if copies is not None:
        lie.append(Copies({n: _axes(copies.kernels[n], KERNELS[n]) for n in KERNELS}, (None, None), (None,)))
    axes = jax.tree.leaves(lie, is_leaf=lambda a: type(a) is tuple)
    embed = tuple(a for a in mesh_axes("embed") if a not in mesh_axes("experts"))

    def local(x, experts, gates, *leaves):
        lie = zip(leaves, axes, strict=True)
        whole = [_gather(k, embed, names.index("embed")) if "embed" in names else k for k, names in lie]
        rows, ids, gates = (a.reshape(-1, a.shape[-1]) for a in (x, experts, gates))
        shared = tuple(a for a in mesh_axes("batch") if a in mesh_axes("mlp"))  # these have a part of every expert
        rows, ids, gates = (_gather(a, shared, 0) for a in (rows, ids, gates))
        out, dropped = _on_device(*tree.unflatten(whole), rows, ids, gates, model)
        if shared:
            out = jax.lax.psum_scatter(out, shared, scatter_dimension=0, tiled=True)
        if rest := tuple(a for a in mesh_axes("mlp") if a not in shared):
            out = jax.lax.psum(out, rest)
        apart = tuple(a for a in (*mesh_axes("batch"), *mesh_axes("sequence")) if a not in shared)
        return [out.reshape(x.shape), jax.lax.psum(dropped, apart) if apart else dropped]

    token = ("batch", "sequence", None)
    form = on_each_device(local, (token, token, token, *axes), [token, ()])
    return tuple(form(x, routing.experts, routing.gates, *leaves))


def _axes(kernel: Any, axes: tuple[str, ...]) -> Any:
    """Logical axes in the place of each array of a kernel; its first axis is of the experts, and a product sums over the
    second."""
    if is_adapted(kernel):
        return Adapted(_axes(kernel.base, axes), (*axes[:2], None), (axes[0], None, axes[2]), kernel.scale)
    if isinstance(kernel, Quantized):
        of_scales = [name if size > 1 else None for name, size in zip(axes, kernel.scales.shape, strict=True)]
        return kernel.replace(values=axes, scales=tuple(of_scales))
    return axes


def _gather(x: jax.Array, axes: tuple[str, ...], axis: int) -> jax.Array:
    return jax.lax.all_gather(x, axes, axis=axis, tiled=True) if axes else x


def _on_device(kernels, copies: Copies | None, x, ids, gates, model: config.Model):
    """What a device does with its own tokens x[n, D], int32 ids[n, K], float32 gates[n, K], and with those that come to it."""
    axes, n = mesh_axes("experts"), x.shape[0]
    devices = ways("experts")
    mine = per = model.moe.n_experts // devices
    sent, worked = rooms(model, n, devices)
    block = grouped.block_size(ids.size, per)
    if devices == 1:
        return _products(kernels, x, ids, gates, per, worked, block, model)
    if copies is not None:
        ids, per = copies.share_out(ids, jax.lax.axis_index(axes) * n), per + copies.here
    wanted = (ids[:, :, None] // per == jnp.arange(devices)).any(1)
    count = wanted.sum(0, dtype=jnp.int32)
    place = jnp.cumsum(wanted, axis=0, dtype=jnp.int32) - 1
    kept = wanted & (place < sent)
    # Tokens in the order of each device's block, and of each token the devices that it goes to.
    order = jnp.argsort(~wanted.T, axis=1, stable=True)[:, :sent].astype(jnp.int32)
    source = jnp.where(jnp.arange(sent) < count[:, None], order, n)
    _, goes = jax.lax.top_k(kept.astype(jnp.int32), min(ids.shape[1], devices))  # replayed choices know no groups
    at = goes * sent + jnp.take_along_axis(place, goes, axis=1)
    moves = Moves(source.reshape(-1), jnp.where(jnp.take_along_axis(kept, goes, axis=1), at, devices * sent))

    sizes = jnp.minimum(count, sent)
    back = jax.lax.all_to_all(sizes, axes, 0, 0, tiled=True)
    own = ids.at[source].get(mode="fill", fill_value=-1) - jnp.arange(devices)[:, None, None] * per
    own = jnp.where((own >= 0) & (own < per), own, per)
    travel = partial(exchange, axes=axes)
    came, weigh = (travel(spread(a, moves).reshape(devices, sent, -1), sizes, back) for a in (x, gates))
    real = jnp.arange(sent) < back[:, None]
    own = jnp.where(real[:, :, None], travel(own, sizes, back), per)
    parts = devices if model.capacity_factor is None and ids.size > SMALL else 1
    came, own, weigh = (a.reshape(parts, devices // parts * sent, -1) for a in (came, own, weigh))

    def work(rows):
        came, own, weigh = rows
        out, dropped = _products(kernels, came, jnp.minimum(own, mine), weigh, mine, worked // parts, block, model)
        if copies is None:
            return out, dropped
        few, room = copies.here, devices // parts * sent * min(own.shape[1], copies.here)
        others = jnp.where(own < mine, few, own - mine)
        more, also = _products(copies.kernels, came, others, weigh, few, room, block, model)
        return out + more, dropped + also

    if parts == 1:
        out, dropped = work((came[0], own[0], weigh[0]))
    else:
        out, dropped = jax.lax.map(jax.checkpoint(work), (came, own, weigh))
    out = travel(out.reshape(devices, sent, -1), back, sizes)
    unsent = (wanted & ~kept)[jnp.arange(n)[:, None], ids // per].sum()
    return collect(out.reshape(devices * sent, -1), moves), dropped.sum() + unsent.astype(jnp.float32)


def _products(kernels, x, ids, gates, n_experts: int, room: int, block: int, model: config.Model):
    """The gated sums [R, D] of x[R, D] over its experts among these, int32 ids[R, K] with ``n_experts`` for none, and how many
    choices found no room."""
    (n, k), dtype = ids.shape, model.matmul_dtype
    groups = grouped.group(ids.reshape(-1), n_experts, room=room, block=block)
    real = jnp.arange(groups.order.size) < groups.total
    place = jnp.where(groups.place < groups.total, groups.place, real.size)
    moves = Moves(jnp.where(real, groups.order // k, n), place.reshape(n, k))
    each = Moves(jnp.where(real, groups.order, n * k), place.reshape(n * k, 1))

    def product(rows, kernel):  # a kernel may leave anything behind the last expert's rows
        return jnp.where(real[:, None], grouped.project(rows, kernel, groups, dtype), 0)

    rows = spread(x, moves)
    weight = spread(gates.reshape(-1, 1), each).astype(x.dtype)
    hidden = jax.nn.silu(product(rows, kernels["gate"]).astype(x.dtype)) * product(rows, kernels["up"]).astype(x.dtype) * weight
    dropped = (ids < n_experts).sum() - groups.total
    return collect(product(hidden, kernels["down"]), moves).astype(x.dtype), dropped.astype(jnp.float32)
