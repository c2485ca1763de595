"""Memory per device before anything is loaded.

State and weights are exact: shapes, dtypes and shardings are those of the trainer. What the backward pass keeps is exact too,
for it is read off the traced loss. The rest, what is alive for a moment, is estimated.

Gradients and activations together lay within -5 % and +10 % of what XLA:CPU reports for thirteen small models (dense and MoE,
both attentions, with and without remat, long rows, a large vocabulary, multi-token prediction). Activations in bfloat16 take up
to half more than that on the CPU, which widens them.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.table import Table

from r1jax import config, sharding
from r1jax import params as parameters
from r1jax.models import cache as caches
from r1jax.models import decoder
from r1jax.models.logprobs import chunk_size
from r1jax.rollout.sampler import ROUND_TO
from r1jax.train import objectives
from r1jax.train.update import Trainer
from r1jax.types import PackedBatch

F32 = 4


@dataclass(frozen=True)
class Memory:
    """Bytes on the fullest device. The first four stay through the whole run; an update then needs ``gradients`` and
    ``activations``, a rollout ``cache`` and ``sampling``, never all of them at once."""

    weights: int
    moments: int
    """The optimizer's, and float32 master weights where the parameters are held in less."""
    reference: int
    sampler: int
    """The sampler's copy of the weights."""
    gradients: int
    """The sum over micro-batches, in float32, and one micro-batch's."""
    activations: int
    """What the backward pass of one micro-batch keeps, and its working set."""
    cache: int
    sampling: int
    """Working set of the loop that decodes: logits, and the cache once more."""
    capacity: int | None
    """What the device has; None if it does not tell."""

    @property
    def resident(self) -> int:
        return self.weights + self.moments + self.reference + self.sampler

    @property
    def need(self) -> int:
        return self.resident + max(self.gradients + self.activations, self.cache + self.sampling)

    @property
    def fits(self) -> bool:
        return self.capacity is None or self.need <= self.capacity

    @property
    def parts(self) -> dict[str, int]:
        """The rows of the table that are not 0, in the order of a run."""
        rows = {
            "weights": self.weights,
            "optimizer": self.moments,
            "reference": self.reference,
            "sampler's weights": self.sampler,
            "gradients": self.gradients,
            "activations": self.activations,
            "cache": self.cache,
            "sampling": self.sampling,
        }
        return {name: size for name, size in rows.items() if size}

    @property
    def largest(self) -> str:
        """The two largest parts."""
        return ", ".join(f"{name} {human(size)}" for name, size in sorted(self.parts.items(), key=lambda part: -part[1])[:2])

    def line(self) -> str:
        """The table on one line."""
        parts = ", ".join(f"{name} {human(size)}" for name, size in self.parts.items())
        return f"memory per device: {human(self.need)} of {human(self.capacity)} at the most ({parts})"

    def table(self, title: str) -> Table:
        table = Table(title=f"{title}: memory per device", title_justify="left")
        table.add_column("")
        table.add_column("bytes", justify="right")
        table.add_column("of capacity", justify="right")
        rows = self.parts | {"at the most": self.need}
        for name, size in rows.items():
            share = f"{size / self.capacity:.1%}" if self.capacity else ""
            table.add_row(name, human(size), share, end_section=name == list(self.parts)[-1])
        table.add_row("capacity", human(self.capacity), "")
        return table


def table(stage: config.Stage, model: config.Model, mesh: jax.sharding.Mesh, *, capacity: int | None = None) -> Memory:
    """What a stage needs.

    Args:
      model: the architecture with the stage's compute choices.
      capacity: bytes per device; None asks the device.

    Raises:
      ValueError: batch or model do not divide over the mesh.
    """
    trainer = Trainer(stage, model, mesh)
    state = trainer.abstract()
    trainable, _ = parameters.split(state.params, trainer.mask)
    samples = isinstance(stage, config.GRPO) or stage.eval.every > 0
    sampling = Sampling.of(model, mesh, stage.engine, longest_answer(stage)) if samples else None
    with sharding.using(mesh, {}):  # a layer may choose its form by the mesh; the shapes traced are already a device's
        backward = activations(stage, model, mesh, trainer.mask)
    return Memory(
        weights=device_bytes(state.params),
        moments=device_bytes(state.opt_state) + device_bytes(state.master),
        reference=device_bytes(state.reference),
        sampler=sampling.weights if sampling else 0,
        gradients=device_bytes(trainable) + F32 * device_count(trainable),
        activations=backward,
        cache=sampling.cache if sampling else 0,
        sampling=sampling.working if sampling else 0,
        capacity=capacity if capacity is not None else available(mesh),
    )


def device_bytes(tree: Any) -> int:
    """Bytes per device of a tree of ShapeDtypeStructs with shardings."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def device_count(tree: Any) -> int:
    """Numbers per device of such a tree."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(tree))


# -- The update


def activations(stage: config.Stage, model: config.Model, mesh: jax.sharding.Mesh, mask: Any) -> int:
    """Bytes per device of one micro-batch: what the forward pass keeps for the backward pass, and the latter's working set.

    Without remat that is two layers' attention scores, or the logits of a chunk of the vocabulary. With remat a layer keeps its
    input alone and makes the rest again while its gradient is taken: the working set is then a layer's, and that of every layer
    that is a segment by itself too, for XLA makes no loop of it and undoes the remat.
    """
    local = local_model(model, mesh)
    shape = (stage.micro_batch // sharding.batch_ways(mesh, sharding.TRAIN), stage.sequence_length)
    kept = kept_by_loss(stage, local, mask, shape)
    working = 2 * shape[0] * local.attention.n_heads * shape[1] ** 2 * F32
    if model.remat:
        layers = [(kept_by_layer(local, s.ff, shape), s.count) for s in local.segments]
        looped = max((size for size, count in layers if count > 1), default=0)
        working = looped + sum(size for size, count in layers if count == 1)
        trunk = dataclasses.replace(local, mtp_depth=0)
        kept_by_trunk = kept_by_loss(stage, trunk, {name: m for name, m in mask.items() if name != "mtp"}, shape)
        # The MTP module comes last and its backward pass first: it is gone when the trunk's begins.
        kept, working = kept_by_trunk, max(working, kept - kept_by_trunk)
    logits = 2 * math.prod(shape) * chunk_size(model.vocab_size) * F32
    return (kept + max(working, logits)) // mesh.shape["context"]


def local_model(model: config.Model, mesh: jax.sharding.Mesh) -> config.Model:
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
    trainable, frozen = parameters.split(parameters.abstract(decoder.specs(model)), mask)
    totals = {name: jax.ShapeDtypeStruct((), jnp.float32) for name in ("loss", "sequences", "mtp")}

    def keep(trainable, frozen, batch, totals):
        return jax.vjp(lambda t: loss(parameters.merge(t, frozen), batch, totals), trainable, has_aux=True)[1]

    return kept_bytes(keep, trainable, frozen, micro_batch(stage, shape), totals)


def kept_by_layer(model: config.Model, ff: str, shape: tuple[int, int]) -> int:
    """Bytes that one layer keeps for its gradient when nothing is computed again, beside its input."""
    tokens = jax.ShapeDtypeStruct(shape, jnp.int32)

    def kept(remat: bool) -> int:
        one = dataclasses.replace(model, segments=(config.Segment(ff, 1),), mtp_depth=0, remat=remat)

        def keep(params, tokens):
            return jax.vjp(lambda p: decoder.forward(p, tokens, tokens, tokens, model=one)[0], params)[1]

        return kept_bytes(keep, parameters.abstract(decoder.specs(one)), tokens)

    return kept(remat=False) - kept(remat=True)


def kept_bytes(keep, *args) -> int:
    """Bytes of the arrays inside the backward function that ``keep(*args)`` returns. Arguments are there anyway."""
    traced = jax.make_jaxpr(lambda *args: jax.tree.leaves(keep(*args)))(*args).jaxpr
    given = {id(v) for v in (*traced.invars, *traced.constvars)}
    found = {id(v): v.aval for v in traced.outvars if id(v) not in given}
    return sum(math.prod(a.shape) * a.dtype.itemsize for a in found.values())


def micro_batch(stage: config.Stage, shape: tuple[int, ...]) -> PackedBatch:
    """The shapes of the stage's batches."""
    integers, floats = (jax.ShapeDtypeStruct(shape, dtype) for dtype in (jnp.int32, jnp.float32))
    batch = PackedBatch(integers, integers, integers, integers, jax.ShapeDtypeStruct(shape, jnp.bool_), floats)
    if not isinstance(stage, config.GRPO):
        return batch
    batch = batch.replace(advantages=floats, sampler_logprobs=floats, old_logprobs=floats)
    if stage.share_prompts:
        batch = batch.replace(prefix=integers)
    return batch.replace(ref_logprobs=floats) if stage.kl_beta > 0 else batch


# -- The rollout


def longest_answer(stage: config.Stage) -> int:
    """Tokens."""
    cap = stage.max_cap if isinstance(stage, config.GRPO) else stage.sampling.max_new_tokens
    return max(cap, stage.eval.sampling.max_new_tokens if stage.eval.sampling else 0)


@dataclass(frozen=True)
class Sampling:
    """Bytes per device."""

    weights: int
    cache: int
    working: int

    @property
    def need(self) -> int:
        return self.weights + self.cache + self.working

    @classmethod
    def of(cls, model: config.Model, mesh: jax.sharding.Mesh, engine: config.Engine, cap: int) -> Sampling:
        """Of a sampler with answers of up to ``cap`` tokens."""
        rules = sharding.rules("decode", model.attention.kind)
        specs = decoder.read_specs(model)
        weights = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            parameters.abstract(specs),
            sharding.param_shardings(specs, mesh, rules),
        )
        length = max([-(-engine.max_prompt_tokens // ROUND_TO) * ROUND_TO + cap, *engine.buckets])
        rows = -(-engine.slots // sharding.batch_ways(mesh, rules))
        itemsize = jnp.dtype(model.dtype).itemsize
        cache = 0
        for shape, axes in caches.shapes(model, rows, length):
            heads = [size for size, name in zip(shape, axes, strict=True) if name == "kv_heads"]
            split = mesh.shape["tensor"] if heads and heads[0] % mesh.shape["tensor"] == 0 else 1
            cache += (model.n_layers + engine.speculative) * math.prod(shape) * itemsize // split
        logits = 4 * rows * model.vocab_size * F32  # scaled, exponentiated, cumulated in blocks, and as they were
        logits *= 3 if engine.speculative else 1  # of the draft, of the token that it is compared with, and of the one behind
        # XLA:CPU's report shows a second copy of the cache inside the loop, in another layout.
        return cls(device_bytes(weights), cache, logits + cache)


# -- Capacity


def available(mesh: jax.sharding.Mesh) -> int | None:
    """Bytes that each of this process's devices has: the accelerator's limit, or on the CPU this machine's free memory."""
    local = [d for d in mesh.devices.flat if d.process_index == jax.process_index()]
    stats = [d.memory_stats() or {} for d in local]
    limits = [s["bytes_limit"] for s in stats if "bytes_limit" in s]
    if limits:
        return min(limits)
    host = host_available()
    return None if host is None else host // len(local)


def host_available(root: Path = Path("/")) -> int | None:
    """Bytes that this machine, or the container we are in, can still give; None where Linux's files do not tell."""
    meminfo = root / "proc/meminfo"
    if not meminfo.exists():
        return None
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    limit, used = root / "sys/fs/cgroup/memory.max", root / "sys/fs/cgroup/memory.current"
    if limit.exists() and used.exists() and limit.read_text().strip().isdecimal():
        free = min(free, max(0, int(limit.read_text()) - int(used.read_text())))
    return free


def human(size: int | None) -> str:
    """Bytes in the largest unit of which there is one."""
    if size is None:
        return "an unknown capacity"
    value, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.3g} {unit}" if value < 1000 else f"{value:.0f} {unit}"
