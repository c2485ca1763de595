"""One decoder for every family: segments of equal layers, each stacked and scanned.

``forward`` ends at hidden states: logits exist only in vocabulary chunks (``logprobs.py``) or for one token per row (in the
sampler). Rollout and training call the same function.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from r1jax import config
from r1jax.models import halves
from r1jax.nn import gqa, mla, norms, rope
from r1jax.nn import mlp as dense
from r1jax.nn import moe as sparse
from r1jax.nn.attention import Packed
from r1jax.nn.matmul import Turned, project
from r1jax.nn.quantized import quantized_spec
from r1jax.params import ParamSpec, is_spec, path_name, stack
from r1jax.sharding import constrain, one_device, platform


class Aux(NamedTuple):
    """What the layers say of themselves. A tuple holds an entry per segment; a dense segment's is None."""

    load: tuple[jax.Array | None, ...]
    """float32[L, E]: tokens that chose each expert, padding not counted."""
    routes: tuple[jax.Array | None, ...]
    """int32[L, B, T, K]: the chosen experts, in the form that ``forward(routes=...)`` replays."""
    balance: jax.Array
    """float32[]: V3's sequence-wise balance loss, summed over sequences and MoE layers; divide by both."""
    disagreement: tuple[jax.Array | None, ...]
    """float32[L, 2]: replayed choices that the layer would not have made by itself, and all of them; None without replay."""
    dropped: tuple[jax.Array | None, ...]
    """float32[L]: choices of an expert for which it had no room, see ``config.Model.capacity_factor``."""


def layer_specs(model: config.Model, ff: str) -> dict:
    return {
        "attention_norm": norms.specs(model.d_model, model.param_dtype),
        "attention": _attention(model).specs(model),
        "ff_norm": norms.specs(model.d_model, model.param_dtype),
        "ff": sparse.specs(model) if ff == "moe" else dense.specs(model, model.d_ff),
    }


def specs(model: config.Model) -> dict:
    """The tree of ParamSpecs; with an MTP module only if the config has one."""
    kernel = partial(ParamSpec, std=model.init_std, dtype=model.param_dtype)
    out = {
        "embed": {"table": kernel((model.vocab_size, model.d_model), ("vocab", "embed"))},
        "segments": tuple(stack(layer_specs(model, s.ff), s.count) for s in model.segments),
        "final_norm": norms.specs(model.d_model, model.param_dtype),
    }
    if not model.tied:
        out["head"] = {"kernel": kernel((model.d_model, model.vocab_size), ("embed", "vocab"), inputs=1)}
    if model.mtp_depth:
        out["mtp"] = {
            "embed_norm": norms.specs(model.d_model, model.param_dtype),
            "hidden_norm": norms.specs(model.d_model, model.param_dtype),
            "merge": kernel((2 * model.d_model, model.d_model), (None, "embed"), inputs=1),
            "layer": layer_specs(model, model.segments[-1].ff),
            "final_norm": norms.specs(model.d_model, model.param_dtype),
        }
    return out


def recomputed(layer: Callable, remat: config.model.Remat) -> Callable:
    """``layer`` whose gradient makes again what ``remat`` says. Names are given to arrays where they are made."""
    policies = jax.checkpoint_policies
    if remat == "none":
        return layer
    if remat == "dots":
        return jax.checkpoint(layer, policy=policies.dots_with_no_batch_dims_saveable)
    if remat == "attention":
        return jax.checkpoint(layer, policy=policies.save_only_these_names("attention"))
    if remat == "offload":
        host = policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=["layer_input"],
            offload_src="device",
            offload_dst="pinned_host",
        )
        return jax.checkpoint(layer, policy=host)
    return jax.checkpoint(layer)


def embed(params, tokens: jax.Array, model: config.Model) -> jax.Array:
    """int32[B, T] -> [B, T, D]. A product with a one-hot row, so rounded as an operand: a sampler that holds its kernels in
    ``head_dtype`` then sees what the trainer sees. Where its channels are split the table is gathered: else the gradients of
    all tokens would be."""
    table = constrain(params["embed"]["table"], "vocab", None)
    return jnp.take(table, tokens, axis=0).astype(model.head_dtype).astype(model.dtype)


def head_kernel(params) -> jax.Array:
    """[D, V]: the output head, or the embedding's transpose when they are tied."""
    return params["head"]["kernel"] if "head" in params else params["embed"]["table"].T


def logits(params, hidden: jax.Array, model: config.Model) -> jax.Array:
    """float32[..., V] of hidden[..., D]: for a token or a few, never for a training batch."""
    kernel = params["head"]["kernel"] if "head" in params else Turned(params["embed"]["table"])
    return project(hidden.astype(jnp.float32), kernel, model.head_dtype)  # as logprobs.py does: no logit is rounded


def read_specs(model: config.Model, weights: Literal["same", "int8", "fp8"] = "same") -> dict:
    """``specs(model)`` with kernels in the type that the matrix products read, for a loop that reads them once per token.
    Norms, biases and the router keep ``param_dtype``.

    Args:
      weights: int8 and fp8 hold the layers' kernels as ``nn.quantized.Quantized``; embedding and output head stay.
    """

    def one(path, spec):
        name = path_name(path)
        if any(word in name for word in ("norm", "bias", "router")):
            return spec
        if weights == "same" or name.startswith(("embed", "head")) or name.endswith("merge"):
            return dataclasses.replace(spec, dtype=model.head_dtype)
        return quantized_spec(spec, weights, contract=2 if name.endswith("attention/o") else 1)

    return jax.tree_util.tree_map_with_path(one, specs(model), is_leaf=is_spec)


def unstack(params) -> dict:
    """Parameters with a tuple of layers in the place of each stacked segment. A loop that takes one token at a time reads its
    weights where they lie, while a scan would copy every layer's out of the stack."""

    def layers(segment):
        if isinstance(segment, tuple):
            return segment
        return tuple(jax.tree.map(lambda x, i=i: x[i], segment) for i in range(jax.tree.leaves(segment)[0].shape[0]))

    return {**params, "segments": tuple(layers(s) for s in params["segments"])}


def forward(
    params, tokens, positions, segments, *, model: config.Model, prefix=None, cache=None, keep=False, routes=None,
    absorbed=None, angles=None
) -> tuple[jax.Array, Aux, Any]:  # fmt: skip
    """Hidden states after the last norm.

    Args:
      params: the tree of ``specs(model)``, or of ``unstack``.
      tokens: int32[B, T].
      positions: int32[B, T], each row with its own; rotary angles come from them, and with a cache also the places written.
      segments: int32[B, T]: without a cache, a token sees the earlier tokens of its row with the same number. 0 is padding:
        it counts in no expert's load.
      prefix: None, or int32[B, T]: the segment that a token sees beside its own, a prompt shared by several answers; 0 is none.
      cache: None, or a ``models.cache``. Row b's keys are written at ``positions[b]``, which are consecutive, and a query at
        position p sees the row's places 0..p. Donate it to have it updated in place.
      keep: return the keys of these tokens as a cache of one block of T positions.
      routes: None, or ``Aux.routes`` of an earlier call to choose the same experts again; see also ``split_routes``.
      absorbed: path of latent attention (see ``nn.mla``); None lets it choose.
      angles: of every place, as ``angles_of`` makes them; None makes those of ``positions``.

    Returns:
      (hidden [B, T, D], Aux, cache).
    """
    angles = _angles(positions, angles, model)
    x = constrain(embed(params, tokens, model), "batch", "sequence", None)
    rows = {"angles": angles, "packed": Packed(segments, prefix), "positions": positions, "segments": segments}
    parts, xs = [rows], (x,)
    if overlapped := model.overlap == 2 and cache is None and not keep and halves.divides(tokens.shape[0]):
        parts, xs = halves.split_tree(rows), halves.split_tree(x)
    apply = partial(_layers, parts=parts, model=model, absorbed=absorbed)
    if cache is not None or keep:
        params = unstack(params)
    balance, loads, chosen, apart, lost, kept = jnp.zeros((), jnp.float32), [], [], [], [], []
    for i, segment in enumerate(model.segments):
        layer = partial(apply, ff=segment.ff)
        stacked, replayed = params["segments"][i], (None,) if routes is None else (routes[i],)
        if overlapped:
            replayed = (None, None) if replayed[0] is None else tuple(halves.split(replayed[0], 1))
        if isinstance(stacked, tuple):
            said = []
            for j, own in enumerate(stacked):
                one = tuple(None if r is None else r[j] for r in replayed)
                held = None if cache is None else cache[len(kept)]
                (xs, balance), (*told, held) = layer((xs, balance), (own, one), cache=held, keep=keep)
                said.append(told)
                kept.append(held)
            load, experts, differ, dropped = jax.tree.map(lambda *xs: jnp.stack(xs), *said)
        else:
            (xs, balance), (load, experts, differ, dropped, _) = jax.lax.scan(
                recomputed(layer, model.remat), (xs, balance), (stacked, replayed), unroll=in_a_row(model)
            )
        loads.append(load)
        chosen.append(experts)
        apart.append(differ)
        lost.append(dropped)
    x = halves.join(xs) if overlapped else xs[0]
    hidden = norms.rms_norm(x, params["final_norm"]["scale"], model.norm_eps)
    aux = Aux(tuple(loads), tuple(chosen), balance, tuple(apart), tuple(lost))
    return hidden, aux, tuple(kept) if cache is not None or keep else None


def angles_of(places: int, model: config.Model) -> tuple[jax.Array, jax.Array]:
    """Rotary (cos, sin) of the positions below ``places``, float32[places, dim / 2] each, for a loop to make once. Made in the
    loop, XLA:CPU takes sines and cosines anew in every layer and for every head."""
    return rope.angles(jnp.arange(places), _rotary_dim(model), model.rope)


def _angles(positions: jax.Array, table: tuple[jax.Array, jax.Array] | None, model: config.Model):
    if table is None:
        return rope.angles(positions, _rotary_dim(model), model.rope)
    return tuple(jnp.take(x, positions, axis=0, mode="clip") for x in table)


def join_routes(routes: tuple[jax.Array | None, ...], model: config.Model) -> jax.Array:
    """``Aux.routes`` as they are recorded, in ``nn.moe.route_dtype``: [B, T, L * K] over all MoE layers. Flat, for an
    accelerator pads the last two axes of an array, and K alone to many times its size."""
    layers = jnp.concatenate([r for r in routes if r is not None])
    flat = jnp.moveaxis(layers, 0, 2).reshape(*layers.shape[1:3], -1)
    return flat.astype(sparse.route_dtype(model.moe))


def split_routes(recorded: jax.Array, model: config.Model) -> tuple[jax.Array | None, ...]:
    """What ``join_routes`` made, [B, T, L * K], in the form that ``forward(routes=...)`` replays."""
    layers = jnp.moveaxis(recorded.reshape(*recorded.shape[:2], -1, model.moe.top_k), 2, 0)
    out, start = [], 0
    for segment in model.segments:
        count = segment.count if segment.ff == "moe" else 0
        out.append(layers[start : start + count] if count else None)
        start += count
    return tuple(out)


def mtp(params, hidden, tokens, positions, segments, *, model: config.Model, prefix=None) -> tuple[jax.Array, Aux]:
    """Multi-token prediction over whole sequences.

    Args:
      hidden: [B, T, D] from ``forward``. Stop its gradient to train the module alone.
      tokens: int32[B, T], the trunk's input; the module looks one ahead within a segment.

    Returns:
      ([B, T, D], Aux of the one layer). The last token of a segment has no successor, so its output means nothing.
    """
    last = segments != jnp.pad(segments, ((0, 0), (0, 1)))[:, 1:]  # sees a neighbour's token: it counts nowhere
    hidden, aux, _ = look_ahead(
        params, hidden, jnp.roll(tokens, -1, axis=1), positions, jnp.where(last, 0, segments), model=model,
        packed=Packed(segments, prefix),
    )  # fmt: skip
    return hidden, aux


def look_ahead(
    params, hidden, following, positions, segments, *, model: config.Model, packed=None, cache=None, keep=False, angles=None
) -> tuple[jax.Array, Aux, Any]:
    """Multi-token prediction (V3, eq. 21-23): hidden states that predict, at t, the token t + 2.

    ``h' = layer(merge([norm(embed(token t+1)); norm(h_t)]))``. The order of the two
    halves and the use of the trunk's *normalised* last hidden state follow the released weights. Embedding and head are the
    trunk's.

    Args:
      hidden: [B, T, D] from ``forward``.
      following: int32[B, T], the token after each.
      segments: int32[B, T]; 0 counts in no expert's load.
      packed: which sequence each token is of, an ``nn.attention.Packed``; read without a cache.
      cache, keep: as for ``forward``, of this one layer: an entry of a ``models.cache``.
      angles: as for ``forward``.

    Returns:
      ([B, T, D], Aux of the one layer, its cache).
    """
    m = params["mtp"]
    x = jnp.concatenate(
        [
            norms.rms_norm(embed(params, following, model), m["embed_norm"]["scale"], model.norm_eps),
            norms.rms_norm(hidden, m["hidden_norm"]["scale"], model.norm_eps),
        ],
        axis=-1,
    )
    x = project(x, m["merge"], model.head_dtype)  # not in FP8 in the released weights either
    (x, balance), (load, experts, _, dropped, cache) = _layer(
        (x, jnp.zeros((), jnp.float32)),
        (m["layer"], None),
        angles=_angles(positions, angles, model),
        packed=packed,
        positions=positions,
        segments=segments,
        ff=model.segments[-1].ff,
        model=model,
        absorbed=None,
        cache=cache,
        keep=keep,
    )
    hidden = norms.rms_norm(x, m["final_norm"]["scale"], model.norm_eps)
    return hidden, Aux((load,), (experts,), balance, (None,), (dropped,)), cache


def in_a_row(model: config.Model) -> bool:
    """Whether the layers of a segment are compiled one after the other. A CPU copies the weights and gradients of each turn of
    a loop, a fifth of an update's time; but without a loop XLA undoes recomputation."""
    return model.remat == "none" and one_device() and platform() == "cpu"


def _attention(model: config.Model):
    return mla if model.attention.kind == "mla" else gqa


def _rotary_dim(model: config.Model) -> int:
    return model.attention.rope_dim if model.attention.kind == "mla" else model.attention.head_dim


def _layers(carry, inputs, *, parts, **options):
    """``_layer`` for each part of the rows, one or two halves, and what it says of them together."""
    (xs, balance), (params, routes) = carry, inputs
    out, said = [], []
    for x, rows, replayed in zip(xs, parts, routes, strict=True):
        (x, balance), told = _layer((x, balance), (params, replayed), **rows, **options)
        out.append(x)
        said.append(told)
    if len(said) == 1:
        return (tuple(out), balance), said[0]
    load, experts, differ, dropped, _ = zip(*said, strict=True)
    load, differ, dropped = (None if a is None else a + b for a, b in (load, differ, dropped))
    return (tuple(out), balance), (load, None if experts[0] is None else halves.join(experts), differ, dropped, None)


def _layer(
    carry, inputs, *, angles, packed, positions, segments, ff: str, model: config.Model, absorbed, cache=None, keep=False
):  # fmt: skip
    """Pre-norm attention and feed-forward with residuals: a scan body, or one layer of those that hold a cache."""
    x, balance = carry
    x = checkpoint_name(x, "layer_input")
    params, routes = inputs
    options = {"absorbed": absorbed} if model.attention.kind == "mla" else {}
    y = norms.rms_norm(x, params["attention_norm"]["scale"], model.norm_eps)
    y, cache = _attention(model).attend(
        params["attention"], y, angles, packed, model=model, cache=cache, positions=positions, keep=keep, **options
    )
    x = constrain(x + y, "batch", "sequence", None)
    y = norms.rms_norm(x, params["ff_norm"]["scale"], model.norm_eps)
    if ff == "dense":
        x = constrain(x + dense.mlp(params["ff"], y, model), "batch", "sequence", None)
        return (x, balance), (None, None, None, None, cache)
    y, routing, dropped = sparse.moe(params["ff"], y, model, routes)
    balance = balance + sparse.balance_loss(routing, segments, model.moe.top_k)
    differ = None if routes is None else sparse.disagreement(params["ff"], routing, routes, model.moe)
    x = constrain(x + y, "batch", "sequence", None)
    return (x, balance), (sparse.load(routing, segments > 0), routing.experts, differ, dropped, cache)
