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
import numpy as np
from rich.table import Table

from r1jax import config, lora, processes, sharding
from r1jax import params as parameters
from r1jax.models import cache as caches
from r1jax.models import decoder
from r1jax.models.logprobs import ROWS, chunk_size
from r1jax.nn.attention import LONG
from r1jax.nn.chunked_attention import BLOCK
from r1jax.nn.moe import route_dtype
from r1jax.rollout.jobs import ROUND_TO
from r1jax.rollout.sampler import NO_ADAPTERS
from r1jax.rollout.weights import fits
from r1jax.train import objectives, offload
from r1jax.train.state import TrainState
from r1jax.train.update import Trainer
from r1jax.types import PackedBatch

F32 = 4


@dataclass(frozen=True)
class Memory:
    """Bytes on the fullest device. The first four stay through the whole run; a micro-batch then needs ``gradients`` and
    ``activations``, the optimizer's step ``gradients`` and ``layer``, a reference from the host itself and ``activations``, a
    rollout ``cache`` and ``sampling``, never all of them at once; but a rollout beside the updates (``beside``) does."""

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
    """Working set of the loop that decodes: logits, the cache once more, and the routes it records."""
    capacity: int | None
    """What is free on the device; None if it does not tell."""
    host_moments: int = 0
    """As ``moments``, in the host's memory (``offload``)."""
    host_reference: int = 0
    layer: int = 0
    """Of ``host_moments`` the most that a step has on the device: a layer's, or an array's that has no layers, old and new."""
    host_capacity: int | None = None
    """What is free on the host for each of its devices; None if it does not tell."""
    beside: bool = False
    """The next rollout runs while the updates do."""
    apart: bool = False
    """The sampler has devices of its own (``engine.devices``), which hold its weights, ``cache`` and ``sampling`` alone."""

    @property
    def resident(self) -> int:
        return self.weights + self.moments + self.reference + (0 if self.apart else self.sampler)

    @property
    def need(self) -> int:
        learning = max(
            self.gradients + max(self.activations, self.layer),
            self.host_reference + self.activations if self.host_reference else 0,
        )
        rollout = self.cache + self.sampling
        if self.apart:
            return max(self.resident + learning, self.sampler + rollout)
        return self.resident + (learning + rollout if self.beside else max(learning, rollout))

    @property
    def host_need(self) -> int:
        return self.host_moments + self.host_reference

    @property
    def fits(self) -> bool:
        return (self.capacity is None or self.need <= self.capacity) and self.fits_host

    @property
    def fits_host(self) -> bool:
        return self.host_capacity is None or self.host_need <= self.host_capacity

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
            "optimizer, a layer": self.layer,
            "reference, scoring": self.host_reference,
            "cache": self.cache,
            "sampling": self.sampling,
        }
        return {name: size for name, size in rows.items() if size}

    @property
    def on_host(self) -> dict[str, int]:
        rows = {"optimizer": self.host_moments, "reference": self.host_reference}
        return {name: size for name, size in rows.items() if size}

    @property
    def largest(self) -> str:
        """The two largest parts."""
        return ", ".join(f"{name} {human(size)}" for name, size in sorted(self.parts.items(), key=lambda part: -part[1])[:2])

    def line(self) -> str:
        """The table on one line."""
        parts, on_host = (
            ", ".join(f"{name} {human(size)}" for name, size in rows.items()) for rows in (self.parts, self.on_host)
        )
        host = f"; on the host {on_host}" if on_host else ""
        return f"memory per device: {human(self.need)} of {human(self.capacity)} at the most ({parts}){host}"

    def table(self, title: str) -> Table:
        table = Table(title=f"{title}: memory per device", title_justify="left")
        table.add_column("")
        table.add_column("bytes", justify="right")
        table.add_column("of capacity", justify="right")
        if self.on_host:
            table.add_column("on the host", justify="right")
        names = list(dict.fromkeys([*self.parts, *self.on_host]))
        for name in names:
            size, held = self.parts.get(name), self.on_host.get(name)
            row = [human(size), self._share(size)] if size else ["", ""]
            table.add_row(name, *row, human(held) if held else "", end_section=name == names[-1])
        table.add_row("at the most", human(self.need), self._share(self.need), human(self.host_need))
        table.add_row("capacity", human(self.capacity), "", human(self.host_capacity))
        return table

    def _share(self, size: int) -> str:
        return f"{size / self.capacity:.1%}" if self.capacity else ""


def table(
    stage: config.Stage,
    model: config.Model,
    mesh: jax.sharding.Mesh,
    *,
    capacity: int | None = None,
    host_capacity: int | None = None,
) -> Memory:
    """What a stage needs.

    Args:
      model: the architecture with the stage's compute choices.
      capacity: bytes per device; None asks the devices, and their host.
      host_capacity: bytes per device in the host's memory, if ``capacity`` is given.

    Raises:
      ValueError: batch or model do not divide over the mesh.
    """
    trainer = Trainer(stage, model, mesh)
    state = trainer.abstract()
    weights = laid_out(trainer.specs, trainer.param_shardings)
    trainable, _ = parameters.split(weights, trainer.mask)
    samples = isinstance(stage, config.GRPO) or stage.eval.every > 0
    sampling = None
    if samples:
        cap, routes = longest_answer(stage), route_bytes(stage, model)
        where = sharding.sampler_mesh(stage.engine, mesh)
        sampling = Sampling.of(model, where, stage.engine, cap, stage.lora, weights, routes)
    with sharding.using(mesh, {}):  # a layer may choose its form by the mesh; the shapes traced are already a device's
        backward = activations(stage, model, mesh, trainer.mask)
    found = Memory(
        weights=device_bytes(weights),
        moments=device_bytes(state.opt_state) + device_bytes(state.master),
        reference=device_bytes(state.reference),
        sampler=sampling.weights if sampling else 0,
        gradients=device_bytes(trainable) + F32 * device_count(trainable),
        activations=backward,
        cache=sampling.cache if sampling else 0,
        sampling=sampling.working if sampling else 0,
        capacity=capacity if capacity is not None else available(mesh),
        host_moments=host_bytes(state.opt_state) + host_bytes(state.master),
        host_reference=host_bytes(state.reference),
        apart=stage.engine.devices > 0,
        layer=2 * largest_layer(trainer, state, trainable) if "optimizer" in stage.offload else 0,
        host_capacity=host_capacity if capacity is not None else available_on_host(mesh),
        beside=isinstance(stage, config.GRPO) and stage.one_step_off_policy and mesh.size == 1,
    )
    if capacity is None and found.capacity is not None and mesh.devices.flat[0].platform == "cpu":  # it is one memory
        found = dataclasses.replace(found, host_capacity=max(0, found.capacity - found.need))
    return found


def laid_out(specs: Any, shardings: Any) -> Any:
    """ShapeDtypeStructs with shardings."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), parameters.abstract(specs), shardings
    )


def device_bytes(tree: Any) -> int:
    """Bytes per device of a tree of ShapeDtypeStructs with shardings, without what lies on the host."""
    return sum(shard_bytes(x) for x in jax.tree.leaves(tree) if x.sharding.memory_kind != offload.HOST)


def host_bytes(tree: Any) -> int:
    """Bytes per device of what such a tree has on the host."""
    return sum(shard_bytes(x) for x in jax.tree.leaves(tree) if x.sharding.memory_kind == offload.HOST)


def shard_bytes(x: jax.ShapeDtypeStruct) -> int:
    return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize


def largest_layer(trainer: Trainer, state: TrainState, trainable: Any) -> int:
    """Bytes per device of moments and master weights of one layer, or of one array that has no layers, where they are most."""
    per_array = host_bytes(state.opt_state) + host_bytes(state.master)
    arrays = jax.tree.leaves(trainable)
    counts = [math.prod(x.sharding.shard_shape(x.shape)) for x in arrays]
    return max(
        per_array * count // (sum(counts) * (x.shape[0] if layered else 1))
        for x, count, layered in zip(arrays, counts, trainer.layered, strict=True)
    )


def device_count(tree: Any) -> int:
    """Numbers per device of such a tree."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(tree))


# -- The update


def activations(stage: config.Stage, model: config.Model, mesh: jax.sharding.Mesh, mask: Any) -> int:
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
    return (kept + max(working, logits)) // mesh.shape["context"]


def scores(model: config.Model, length: int) -> int:
    """How many a head has at a time, of a row."""
    whole = model.attention_kernel == "reference" or model.attention_kernel == "auto" and length <= LONG
    return length**2 if whole else BLOCK**2


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
    trainable, frozen = parameters.split(parameters.abstract(lora.adapt(decoder.specs(model), stage.lora)), mask)
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


def route_bytes(stage: config.Stage, model: config.Model) -> int:
    """Of each token in a rollout that records where the experts are."""
    if not (isinstance(stage, config.GRPO) and stage.routing_replay):
        return 0
    return objectives.moe_layers(model) * model.moe.top_k * route_dtype(model.moe).itemsize


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
    def of(
        cls, model: config.Model, mesh: jax.sharding.Mesh, engine: config.Engine, cap: int,
        adapters: config.LoRA = NO_ADAPTERS, trained: Any = None, route_bytes: int = 0,
    ) -> Sampling:  # fmt: skip
        """Of a sampler with answers of up to ``cap`` tokens.

        Args:
          trained: the trainer's weights beside it, as ShapeDtypeStructs with shardings. What needs no copy counts nothing.
          route_bytes: recorded for each token of an answer.
        """
        rules = sharding.rules("decode", model.attention.kind)
        specs = lora.adapt(decoder.read_specs(model, engine.weights), adapters)
        weights = laid_out(specs, sharding.param_shardings(specs, mesh, rules))
        if trained is not None and adapters.rank:
            moves = lora.moving(specs, adapters)
            copied = jax.tree.map(lambda moved, x, theirs: moved or not fits(theirs, x, x.sharding), moves, weights, trained)
            weights, _ = parameters.split(weights, copied)
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
        return cls(device_bytes(weights), cache, logits + cache + rows * cap * route_bytes)


# -- Capacity


def available(mesh: jax.sharding.Mesh) -> int | None:
    """Bytes that are free on the fullest device of any process; on the CPU a device has its share of the machine's free memory.
    Every process must ask."""
    stats = [d.memory_stats() or {} for d in _local(mesh)]
    free = [s["bytes_limit"] - s.get("bytes_in_use", 0) for s in stats if "bytes_limit" in s]
    return _least(min(free)) if free else available_on_host(mesh)


def available_on_host(mesh: jax.sharding.Mesh) -> int | None:
    """Bytes of the host's free memory for each of its devices, where there is least. Every process must ask."""
    host = host_available()
    return _least(None if host is None else host // max(1, processes.beside() * len(_local(mesh))))


def _local(mesh: jax.sharding.Mesh) -> list[jax.Device]:
    return [d for d in mesh.devices.flat if d.process_index == jax.process_index()]


def _least(size: int | None) -> int | None:
    """Over all processes, None where one does not know."""
    if jax.process_count() == 1:
        return size
    mine = np.int32(-1 if size is None else size >> 20)  # MiB: 32 bits suffice
    least = int(processes.gather("free memory", mine).min())
    return None if least < 0 else least << 20


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
