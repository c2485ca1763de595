"""Mixture of experts: DeepSeek-V3's router (arXiv 2412.19437, section 2.1.2), softmax routing, and the experts' product."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from r1jax import config
from r1jax.lora import Adapted, is_adapted
from r1jax.nn import expert_parallel, grouped
from r1jax.nn import mlp as dense
from r1jax.nn.matmul import beside, einsum, kernel_of, project
from r1jax.nn.quantized import Quantized
from r1jax.params import ParamSpec
from r1jax.sharding import constrain, has_rules, on_each_device, one_device, ways


class Routing(NamedTuple):
    """Where tokens go."""

    experts: jax.Array
    """int32[B, T, K]"""
    gates: jax.Array
    """float32[B, T, K]: weight of each chosen expert's output."""
    scores: jax.Array
    """float32[B, T, E]: affinities in (0, 1), without bias."""


def specs(model: config.Model) -> dict:
    m, d = model.moe, model.d_model

    def kernel(shape, axes, inputs=1):
        return ParamSpec(shape, axes, std=model.init_std, dtype=model.param_dtype, inputs=inputs)

    out = {
        "router": kernel((d, m.n_experts), ("embed", None)),
        "gate": kernel((m.n_experts, d, m.d_ff), ("experts", "embed", "mlp")),
        "up": kernel((m.n_experts, d, m.d_ff), ("experts", "embed", "mlp")),
        "down": kernel((m.n_experts, m.d_ff, d), ("experts", "mlp", "embed")),
    }
    if m.bias:
        out["router_bias"] = ParamSpec((m.n_experts,), (None,), "zeros", dtype="float32", trainable=False)
    if m.n_shared:
        out["shared"] = dense.specs(model, m.n_shared * m.d_ff)
    return out


def route(params, x: jax.Array, moe: config.MoE, routes: jax.Array | None = None) -> Routing:
    """Chooses experts for x[B, T, D], in float32.

    ``s = sigmoid(x e_i)`` or ``softmax(x e)``, and ``choose``. Gates are the unbiased scores of the chosen, renormalised and
    scaled.

    Args:
      routes: integers [B, T, K] replay recorded choices, whatever the bias says now; gates are still computed from x. A token
        that is not ``recorded`` chooses by itself.
    """
    logits = jnp.matmul(x.astype(jnp.float32), kernel_of(params["router"], jnp.float32), precision="highest")
    scores = jax.nn.sigmoid(logits) if moe.scoring == "sigmoid" else jax.nn.softmax(logits, axis=-1)
    chosen = choose(params, scores, moe)
    if routes is not None:
        chosen = jnp.where(recorded(routes)[..., None], routes.astype(jnp.int32), chosen)
    gates = jnp.take_along_axis(scores, chosen, axis=-1)
    if moe.renormalize:
        gates = gates / (gates.sum(-1, keepdims=True) + 1e-20)
    return Routing(chosen, gates * moe.scale, scores)


def choose(params, scores: jax.Array, moe: config.MoE) -> jax.Array:
    """int32[B, T, K]: the experts with the highest scores[B, T, E]. The bias takes part in choosing only; a group's score is
    the sum of its two best biased scores, and experts outside the best ``top_groups`` groups cannot be chosen."""
    biased = jax.lax.stop_gradient(scores + params["router_bias"] if moe.bias else scores)
    token = ("batch", "sequence", None)
    divides = biased.shape[0] % ways("batch") == 0 and biased.shape[1] % ways("sequence") == 0
    # The compiler would gather the scores of all tokens for ``top_k``.
    form = partial(_best, moe=moe)
    return on_each_device(form, (token,), token)(biased) if divides else form(biased)


def _best(biased: jax.Array, moe: config.MoE) -> jax.Array:
    if moe.n_groups > 1:
        grouped = biased.reshape(*biased.shape[:-1], moe.n_groups, -1)
        group_score = jax.lax.top_k(grouped, 2)[0].sum(-1)
        best = jax.lax.top_k(group_score, moe.top_groups)[1]
        allowed = jax.nn.one_hot(best, moe.n_groups, dtype=jnp.bool_).any(-2)
        biased = jnp.where(allowed[..., None], grouped, -jnp.inf).reshape(biased.shape)
    return jax.lax.top_k(biased, moe.top_k)[1]


def route_dtype(moe: config.MoE) -> jnp.dtype:
    """In which routes are recorded: one byte where every expert and the mark of ``unrecorded`` fit into it. The mark may be
    an expert's number if a token has several: they are never all the same one."""
    return jnp.dtype(jnp.uint8 if moe.n_experts < 256 or (moe.n_experts == 256 and moe.top_k > 1) else jnp.uint16)


def unrecorded(dtype: jnp.dtype) -> int:
    """All K entries of a token whose choice was not recorded: the largest number."""
    return int(jnp.iinfo(dtype).max)


def recorded(routes: jax.Array) -> jax.Array:
    """bool[B, T] of routes[B, T, K]."""
    return (routes != unrecorded(routes.dtype)).any(-1)


def disagreement(params, routing: Routing, routes: jax.Array, moe: config.MoE) -> jax.Array:
    """float32[2]: how many of the recorded choices the router would not make now, and how many there are."""
    own = choose(params, routing.scores, moe)
    apart = ~(routes[..., :, None] == own[..., None, :]).any(-1)
    real = jnp.broadcast_to(recorded(routes)[..., None], apart.shape)
    return jnp.stack([(apart & real).sum(), real.sum()]).astype(jnp.float32)


def moe(
    params, x: jax.Array, model: config.Model, routes: jax.Array | None = None
) -> tuple[jax.Array, Routing, jax.Array]:
    """Shared experts plus the gated sum of the chosen ones, for x[B, T, D]; and float32[], how many choices were dropped."""
    routing = route(params, x, model.moe, routes)
    out, dropped = experts(params, x, routing, model)
    if model.moe.n_shared:
        out = out + dense.mlp(params["shared"], x, model)
    return out, routing, dropped


def experts(params, x: jax.Array, routing: Routing, model: config.Model) -> tuple[jax.Array, jax.Array]:
    """The gated sum over the chosen experts, in the form that is faster here: the same sums in another order. And float32[],
    how many choices were dropped, 0 unless ``capacity_factor`` is set.

    Choices are grouped by expert where at most a quarter of the experts is chosen: with half of them the grouped form gains
    nothing on narrow layers, and every expert sees every token. Over several devices tokens are sent to their experts. Where
    experts are neither split nor grouped, or ``expert_parallel.why_not`` has a reason, every expert sees every token there too.
    """
    few = 4 * model.moe.top_k <= model.moe.n_experts
    if (ways("experts") > 1 or few and has_rules()) and not expert_parallel.why_not(params, x, model):
        return expert_parallel.experts_parallel(params, x, routing, model)
    form = experts_grouped if few and one_device() else experts_dense
    return form(params, x, routing, model), jnp.zeros((), jnp.float32)


def experts_dense(params, x: jax.Array, routing: Routing, model: config.Model) -> jax.Array:
    """``experts`` as one SwiGLU of width E * F whose channels are weighted by their expert's gate. The cost grows with E."""
    e, dtype = model.moe.n_experts, model.matmul_dtype
    weight = einsum("btk,btke->bte", routing.gates, jax.nn.one_hot(routing.experts, e, dtype=jnp.float32), "float32")
    gate, up = (_into_each(x, params[name], dtype) for name in ("gate", "up"))
    hidden = jax.nn.silu(gate) * up
    hidden = constrain(hidden * weight[..., None].astype(hidden.dtype), "batch", "sequence", "experts", "mlp")
    return _out_of_all(hidden, params["down"], dtype)


def _is_scaled(kernels: jax.Array | Quantized, dtype: str) -> bool:
    """Factors of scaled operands are an expert's own, so there each expert has its own product."""
    return dtype == "fp8" or isinstance(kernels, Quantized)


def _into_each(x: jax.Array, kernels: jax.Array | Adapted | Quantized, dtype: str) -> jax.Array:
    """x[B, T, D] times each of kernels[E, D, F]: [B, T, E, F]."""
    if is_adapted(kernels):
        low = _into_each(x, kernels.a, beside(dtype)) * kernels.scale
        return _into_each(x, kernels.base, dtype) + _within_each(low, kernels.b, beside(dtype))
    if _is_scaled(kernels, dtype):
        return jax.vmap(lambda kernel: project(x, kernel, dtype), out_axes=2)(kernels)
    return project(x, jnp.moveaxis(kernels, 0, 1), dtype)


def _out_of_all(x: jax.Array, kernels: jax.Array | Adapted | Quantized, dtype: str) -> jax.Array:
    """x[B, T, E, F] times kernels[E, F, D], summed over the experts: [B, T, D]."""
    if is_adapted(kernels):
        low = _within_each(x, kernels.a, beside(dtype)) * kernels.scale
        return _out_of_all(x, kernels.base, dtype) + _out_of_all(low, kernels.b, beside(dtype))
    if _is_scaled(kernels, dtype):
        out = jax.vmap(lambda h, kernel: project(h, kernel, dtype), (2, 0))(x, kernels)
        return out.sum(0, dtype=jnp.float32).astype(x.dtype)
    return project(x, kernels, dtype, contract=2)


def _within_each(x: jax.Array, kernels: jax.Array, dtype: str) -> jax.Array:
    """x[B, T, E, F] times kernels[E, F, G], each expert's by its own: [B, T, E, G]."""
    # "ebtg" and not "bteg": XLA:CPU cannot run the transposed bfloat16 product with float32 sums.
    out = einsum("btef,efg->ebtg", x.astype(dtype), kernels.astype(dtype), dtype)
    return jnp.moveaxis(out, 0, 2).astype(x.dtype)


def experts_grouped(params, x: jax.Array, routing: Routing, model: config.Model) -> jax.Array:
    """``experts`` as products over the B * T * K choices, sorted by expert. The cost grows with K and not with E."""
    m = model.moe
    groups = grouped.group(routing.experts.reshape(-1), m.n_experts)
    rows = jnp.broadcast_to(x[:, :, None], (*routing.experts.shape, x.shape[-1]))
    rows = grouped.sort(rows.reshape(-1, x.shape[-1]), groups)
    gate, up = (grouped.project(rows, params[n], groups, model.matmul_dtype).astype(x.dtype) for n in ("gate", "up"))
    weight = grouped.sort(routing.gates.reshape(-1, 1), groups)
    hidden = jax.nn.silu(gate) * up * weight.astype(x.dtype)
    out = grouped.unsort(grouped.project(hidden, params["down"], groups, model.matmul_dtype), groups)
    return out.reshape(*routing.experts.shape, -1).sum(2).astype(x.dtype)


def load(routing: Routing, real: jax.Array) -> jax.Array:
    """float32[E]: how often each expert was chosen by the tokens where bool real[B, T]."""
    chosen = jax.nn.one_hot(routing.experts, routing.scores.shape[-1], dtype=jnp.float32)
    return einsum("btke,bt->e", chosen, real.astype(jnp.float32), "float32")


def balance_loss(routing: Routing, segments: jax.Array, top_k: int) -> jax.Array:
    """V3's sequence-wise balance loss (eq. 17-20) without its weight, summed over sequences: float32[].

    For each sequence of T tokens, ``sum_i f_i P_i`` with ``f_i = E / (K T) * (times i was chosen)`` and ``P_i`` the mean
    over tokens of ``s_i / sum_j s_j``; 1 when perfectly even.
    """
    n = routing.scores.shape[-1]
    chosen = jax.nn.one_hot(routing.experts, n, dtype=jnp.float32).sum(-2)
    share = routing.scores / routing.scores.sum(-1, keepdims=True)

    def row(segments, chosen, share):
        def per_sequence(values):
            return jax.ops.segment_sum(values, segments, num_segments=segments.shape[0] + 1)[1:]

        tokens = jnp.maximum(per_sequence(jnp.ones(segments.shape, jnp.float32)), 1)[:, None]
        return ((n / top_k) * per_sequence(chosen) / tokens * per_sequence(share) / tokens).sum()

    return jax.vmap(row)(segments, chosen, share).sum()
