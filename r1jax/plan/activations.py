"""What the backward pass of a micro-batch keeps, in bytes: read off the traced loss."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from r1jax import config, lora, sharding
from r1jax import params as parameters
from r1jax.models import decoder
from r1jax.models.logprobs import ROWS, chunk_size
from r1jax.nn import expert_parallel
from r1jax.nn.attention import LONG
from r1jax.nn.chunked_attention import block
from r1jax.nn.moe import route_dtype
from r1jax.plan.sampling import route_bytes
from r1jax.train import objectives
from r1jax.types import JudgedBatch, PackedBatch

F32 = 4


def activations(stage: config.Stage, model: config.Model, mesh: sharding.AnyMesh, mask: Any) -> int:
    """Bytes per device of one micro-batch: what the forward pass keeps for the backward pass, and the latter's working set.

    Without remat that is two layers' attention scores, or the logits of a chunk of the vocabulary. With remat a layer keeps
    what the policy says and makes the rest again while its gradient is taken: the working set is then a layer's, and that of
    every layer that is a segment by itself too, for XLA makes no loop of it and undoes the remat.
    """
    local = local_model(model, mesh)
    shape = (stage.micro_batch // sharding.batch_ways(mesh, sharding.TRAIN), stage.sequence_length)
    kept = kept_by_loss(stage, local, mask, shape)
    working = 2 * shape[0] * local.attention.n_heads * scores(model, shape[1]) * F32
    if model.remat != "none":
        layers = [(kept_by_layer(local, s.ff, shape), s.count) for s in local.segments]
        looped = max((size for size, count in layers if count > 1), default=0)
        working = looped + sum(size for size, count in layers if count == 1)
        trunk = dataclasses.replace(local, mtp_depth=0)
        kept_by_trunk = kept_by_loss(stage, trunk, {name: m for name, m in mask.items() if name != "mtp"}, shape)
        # The MTP module comes last and its backward pass first: it is gone when the trunk's begins.
        kept, working = kept_by_trunk, max(working, kept - kept_by_trunk)
    rows = min(math.prod(shape), ROWS) if mesh.size == 1 else math.prod(shape)
    logits = 2 * rows * chunk_size(model.vocab_size) * F32
    mine = (kept + max(working + travelling(local, mesh, math.prod(shape)), logits)) // mesh.shape["context"]
    return mine + whole_rows(local, mesh, math.prod(shape))


def travelling(local: config.Model, mesh: sharding.AnyMesh, tokens: int) -> int:
    """Bytes that a layer's exchange with the experts of other devices holds beside its own choices, for each of which the
    traced loss has a row: rows that come and go, and room for choices beyond even loads. Twice, with the gradients.

    Args:
      local: a device's part of the model.
      tokens: of a device, on all devices of the context axis.
    """
    if local.moe is None or mesh.shape["expert"] == 1:
        return 0
    sent, worked = expert_parallel.rooms(local, tokens, mesh.shape["expert"])
    more = max(0, worked - tokens * local.moe.top_k) * (2 * local.d_model + 3 * local.moe.d_ff)
    moving = 2 * sent * mesh.shape["expert"] * local.d_model
    sums = 2 * worked * local.d_model * F32  # of the two kernels that the tokens meet, the gradients of these
    return 2 * (more + moving) * jnp.dtype(local.dtype).itemsize + sums


def whole_rows(local: config.Model, mesh: sharding.AnyMesh, tokens: int) -> int:
    """Bytes of the keys and values that a device of the context axis makes for the positions of others: themselves and as
    blocks, and the same of their gradients in float32.

    Args:
      local: a device's part of the model.
      tokens: of a device, on all devices of the context axis.
    """
    a, ways = local.attention, mesh.shape["context"]
    numbers = a.n_heads * (a.nope_dim + a.rope_dim + a.v_dim) if a.kind == "mla" else 2 * a.n_kv_heads * a.head_dim
    return 2 * tokens * numbers * (jnp.dtype(local.dtype).itemsize + F32) * (ways - 1) // ways


def scores(model: config.Model, length: int) -> int:
    """How many a head has at a time, of a row."""
    whole = model.attention_kernel == "reference" or model.attention_kernel == "auto" and length <= LONG
    return length**2 if whole else block() ** 2


def local_model(model: config.Model, mesh: sharding.AnyMesh) -> config.Model:
    """The part of each layer that a device of the tensor axis computes. What does not divide is left whole."""
    ways = mesh.shape["tensor"]

    def part(size: int) -> int:
        return size if size % ways else size // ways

    heads = {"n_heads": part(model.attention.n_heads)}
    if model.attention.kind == "gqa":
        heads["n_kv_heads"] = math.gcd(part(model.attention.n_kv_heads), heads["n_heads"])
    moe = model.moe and dataclasses.replace(model.moe, d_ff=part(model.moe.d_ff))
    return dataclasses.replace(model, d_ff=part(model.d_ff), attention=dataclasses.replace(model.attention, **heads), moe=moe)


def kept_by_loss(stage: config.Stage, model: config.Model, mask: Any, shape: tuple[int, int]) -> int:
    """Bytes that the loss of one micro-batch [B, T] keeps for its gradient."""
    loss = objectives.objective(stage, model)
    trainable, frozen = parameters.split(parameters.abstract(lora.adapt(objectives.specs(stage, model), stage.lora)), mask)
    totals = {name: jax.ShapeDtypeStruct((), jnp.float32) for name in ("loss", "sequences", "mtp")}

    def keep(trainable, frozen, batch, totals):
        return jax.vjp(lambda t: loss(parameters.merge(t, frozen), batch, totals), trainable, has_aux=True)[1]

    batch = micro_batch(stage, shape)
    if size := route_bytes(stage, model):
        dtype = route_dtype(model.moe)
        batch = batch.replace(routes=jax.ShapeDtypeStruct((*shape, size // dtype.itemsize), dtype))
    return kept_bytes(keep, trainable, frozen, batch, totals)


def kept_by_layer(model: config.Model, ff: str, shape: tuple[int, int]) -> int:
    """Bytes that one layer would keep for its gradient and computes again instead."""
    tokens = jax.ShapeDtypeStruct(shape, jnp.int32)

    def kept(remat: config.model.Remat) -> int:
        one = dataclasses.replace(model, segments=(config.Segment(ff, 1),), mtp_depth=0, remat=remat)

        def keep(params, tokens):
            return jax.vjp(lambda p: decoder.forward(p, tokens, tokens, tokens, model=one)[0], params)[1]

        return kept_bytes(keep, parameters.abstract(decoder.specs(one)), tokens)

    return kept("none") - kept(model.remat)


def kept_bytes(keep, *args) -> int:
    """Bytes of the arrays inside the backward function that ``keep(*args)`` returns, those in the host's memory left out.
    Arguments are there anyway."""
    traced = jax.make_jaxpr(lambda *args: jax.tree.leaves(keep(*args)))(*args).jaxpr
    given = {id(v) for v in (*traced.invars, *traced.constvars)}
    found = {id(v): v.aval for v in traced.outvars if id(v) not in given}
    return sum(math.prod(a.shape) * a.dtype.itemsize for a in found.values() if a.memory_space != jax.memory.Space.Host)


def micro_batch(stage: config.Stage, shape: tuple[int, ...]) -> PackedBatch | JudgedBatch:
    """The shapes of the stage's batches."""
    integers, floats = (jax.ShapeDtypeStruct(shape, dtype) for dtype in (jnp.int32, jnp.float32))
    if isinstance(stage, config.RewardModel):
        against = integers if stage.form == "pairwise" else None
        return JudgedBatch(integers, integers, integers, jax.ShapeDtypeStruct(shape, jnp.bool_), floats, against)
    batch = PackedBatch(integers, integers, integers, integers, jax.ShapeDtypeStruct(shape, jnp.bool_), floats)
    if not isinstance(stage, config.GRPO):
        return batch
    batch = batch.replace(advantages=floats, sampler_logprobs=floats, old_logprobs=floats)
    if stage.share_prompts:
        batch = batch.replace(prefix=integers)
    if stage.teacher:
        batch = batch.replace(teacher_logprobs=floats)
    return batch.replace(ref_logprobs=floats) if stage.kl_beta > 0 else batch
