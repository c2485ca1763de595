"""One decoder for every family: segments of equal layers, each stacked and scanned.

``forward`` ends at hidden states: logits exist only in vocabulary chunks (``logprobs.py``) or for one token per row (in the
sampler). Rollout and training call the same function.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from r1jax import config
from r1jax.nn import gqa, mla, norms, rope
from r1jax.nn import mlp as dense
from r1jax.nn import moe as sparse
from r1jax.nn.attention import Packed, cache_mask
from r1jax.nn.matmul import project
from r1jax.params import ParamSpec, is_spec, path_name, stack
from r1jax.sharding import constrain


class Aux(NamedTuple):
    """What the layers say of themselves. A tuple holds an entry per segment; a dense segment's is None."""

    load: tuple[jax.Array | None, ...]
    """float32[L, E]: tokens that chose each expert, padding not counted."""
    routes: tuple[jax.Array | None, ...]
    """int32[L, B, T, K]: the chosen experts, in the form that ``forward(routes=...)`` replays."""
    balance: jax.Array
    """float32[]: V3's sequence-wise balance loss, summed over sequences and MoE layers; divide by both."""


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
        out["head"] = {"kernel": kernel((model.d_model, model.vocab_size), ("embed", "vocab"))}
    if model.mtp_depth:
        out["mtp"] = {
            "embed_norm": norms.specs(model.d_model, model.param_dtype),
            "hidden_norm": norms.specs(model.d_model, model.param_dtype),
            "merge": kernel((2 * model.d_model, model.d_model), (None, "embed")),
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
    ``matmul_dtype`` then sees what the trainer sees."""
    return jnp.take(params["embed"]["table"], tokens, axis=0).astype(model.matmul_dtype).astype(model.dtype)


def head_kernel(params) -> jax.Array:
    """[D, V]: the output head, or the embedding's transpose when they are tied."""
    return params["head"]["kernel"] if "head" in params else params["embed"]["table"].T


def read_specs(model: config.Model) -> dict:
    """``specs(model)`` with kernels in the type that the matrix products read, for a loop that reads them once per token.
    Norms, biases and the router keep ``param_dtype``."""

    def one(path, spec):
        kept = any(word in path_name(path) for word in ("norm", "bias", "router"))
        return spec if kept else dataclasses.replace(spec, dtype=model.matmul_dtype)

    return jax.tree_util.tree_map_with_path(one, specs(model), is_leaf=is_spec)


def forward(
    params, tokens, positions, segments, *, model: config.Model, prefix=None, cache=None, routes=None, absorbed=None
) -> tuple[jax.Array, Aux, Any]:
    """Hidden states after the last norm.

    Args:
      params: the tree of ``specs(model)``.
      tokens: int32[B, T].
      positions: int32[B, T], each row with its own; rotary angles come from them, and with a cache also the slots written.
      segments: int32[B, T]: without a cache, a token sees the earlier tokens of its row with the same number. 0 is padding:
        it counts in no expert's load.
      prefix: None, or int32[B, T]: the segment that a token sees beside its own, a prompt shared by several answers; 0 is none.
      cache: None, or the arrays of ``cache.create``. Row b's keys are written at ``positions[b, 0]`` and on, and a query at
        position p sees the row's slots 0..p. Donate it to have it updated in place.
      routes: None, or ``Aux.routes`` of an earlier call to choose the same experts again.
      absorbed: path of latent attention (see ``nn.mla``); None lets it choose.

    Returns:
      (hidden [B, T, D], Aux, cache).
    """
    angles = rope.angles(positions, _rotary_dim(model), model.rope)
    mask = None if cache is None else cache_mask(positions, cache[0].shape[2])
    x = constrain(embed(params, tokens, model), "batch", "sequence", None)
    loads, chosen, balance, caches = [], [], jnp.zeros((), jnp.float32), []
    for i, segment in enumerate(model.segments):
        layer = partial(
            _layer,
            angles=angles,
            mask=mask,
            packed=Packed(segments, prefix),
            segments=segments,
            start=positions[:, 0],
            ff=segment.ff,
            model=model,
            absorbed=absorbed,
        )
        layer = recomputed(layer, model.remat)
        carry = (x, None if cache is None else cache[i], balance)
        inputs = (params["segments"][i], jnp.arange(segment.count), None if routes is None else routes[i])
        (x, segment_cache, balance), (load, experts) = jax.lax.scan(layer, carry, inputs)
        loads.append(load)
        chosen.append(experts)
        caches.append(segment_cache)
    hidden = norms.rms_norm(x, params["final_norm"]["scale"], model.norm_eps)
    return hidden, Aux(tuple(loads), tuple(chosen), balance), None if cache is None else tuple(caches)


def mtp(params, hidden, tokens, positions, segments, *, model: config.Model, prefix=None) -> tuple[jax.Array, Aux]:
    """Multi-token prediction (V3, eq. 21-23): hidden states that predict, at t, the token t + 2.

    ``h' = layer(merge([norm(embed(token t+1)); norm(h_t)]))``. The order of the two
    halves and the use of the trunk's *normalised* last hidden state follow the released weights. Embedding and head are the
    trunk's.

    Args:
      hidden: [B, T, D] from ``forward``. Stop its gradient to train the module alone.
      tokens: int32[B, T], the trunk's input; the module looks one ahead within a segment.

    Returns:
      ([B, T, D], Aux of the one layer). The last token of a segment has no successor, so its output means nothing.
    """
    m = params["mtp"]
    ahead = embed(params, jnp.roll(tokens, -1, axis=1), model)
    x = jnp.concatenate(
        [
            norms.rms_norm(ahead, m["embed_norm"]["scale"], model.norm_eps),
            norms.rms_norm(hidden, m["hidden_norm"]["scale"], model.norm_eps),
        ],
        axis=-1,
    )
    x = project(x, m["merge"], model.matmul_dtype)
    ff = model.segments[-1].ff
    last = segments != jnp.pad(segments, ((0, 0), (0, 1)))[:, 1:]  # sees a neighbour's token: it counts nowhere
    carry = (x, None, jnp.zeros((), jnp.float32))
    (x, _, balance), (load, experts) = _layer(
        carry,
        (m["layer"], 0, None),
        angles=rope.angles(positions, _rotary_dim(model), model.rope),
        mask=None,
        packed=Packed(segments, prefix),
        segments=jnp.where(last, 0, segments),
        start=None,
        ff=ff,
        model=model,
        absorbed=None,
    )
    hidden = norms.rms_norm(x, m["final_norm"]["scale"], model.norm_eps)
    return hidden, Aux((load,), (experts,), balance)


def _attention(model: config.Model):
    return mla if model.attention.kind == "mla" else gqa


def _rotary_dim(model: config.Model) -> int:
    return model.attention.rope_dim if model.attention.kind == "mla" else model.attention.head_dim


def _layer(carry, inputs, *, angles, mask, packed, segments, start, ff: str, model: config.Model, absorbed):
    """Pre-norm attention and feed-forward with residuals. A scan body: the cache is a carry, so that it is updated in place."""
    x, cache, balance = carry
    x = checkpoint_name(x, "layer_input")
    params, index, routes = inputs
    options = {"absorbed": absorbed} if model.attention.kind == "mla" else {}
    y = norms.rms_norm(x, params["attention_norm"]["scale"], model.norm_eps)
    y, cache = _attention(model).attend(
        params["attention"], y, angles, model=model, packed=packed, mask=mask, cache=cache, layer=index, start=start, **options
    )
    x = constrain(x + y, "batch", "sequence", None)
    y = norms.rms_norm(x, params["ff_norm"]["scale"], model.norm_eps)
    if ff == "dense":
        return (constrain(x + dense.mlp(params["ff"], y, model), "batch", "sequence", None), cache, balance), (None, None)
    y, routing = sparse.moe(params["ff"], y, model, routes)
    balance = balance + sparse.balance_loss(routing, segments, model.moe.top_k)
    return (constrain(x + y, "batch", "sequence", None), cache, balance), (sparse.load(routing, segments > 0), routing.experts)
