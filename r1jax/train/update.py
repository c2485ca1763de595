"""The jitted update: gradients over micro-batches, one optimizer step, the router's bias, and the metrics."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding

from r1jax import config, lora, sharding
from r1jax import params as parameters
from r1jax.losses.sums import combine
from r1jax.models import scalar
from r1jax.train import objectives, offload
from r1jax.train import state as states
from r1jax.train.optimizer import global_norm, optimizer, rates_of, scaled
from r1jax.train.state import TrainState
from r1jax.types import JudgedBatch, PackedBatch

TPU_OPTIONS = {"xla_disable_hlo_passes": "while-loop-all-reduce-code-motion"}
"""Of the update. This pass moves sums of gradients out of the loop over micro-batches: it fails on those that are scattered,
and sums of an embedding's gradient come out wrong (github.com/openxla/xla, issue 49143)."""


class Trainer:
    """The compiled functions of one stage on one mesh.

    ``update(state, batch, count, denominator)`` donates the state. ``logprobs(params, batch, count)`` scores a batch with
    any weights. A batch is a PackedBatch of M micro-batches, of which the first ``count`` hold sequences: M is fixed, so
    nothing is compiled again.

    With ``stage.lora`` the weights beside the adapters, the base, pass through a state untouched: they are never donated, so
    other places may hold the same arrays.

    Args:
      specs: of parameters that are no policy's; None is the model's own.
      objective: their loss, as ``objectives.objective`` makes one.

    Raises:
      ValueError: batch or sequences do not divide over the mesh, or a pattern of ``frozen`` or ``lora.targets`` matches none.
    """

    def __init__(
        self,
        stage: config.Stage,
        model: config.Model,
        mesh: sharding.AnyMesh,
        *,
        specs: Any = None,
        objective: Callable | None = None,
    ):
        self.stage, self.model, self.mesh = stage, model, mesh
        self.ways = sharding.batch_ways(mesh, sharding.TRAIN)
        if stage.micro_batch == "auto":
            raise ValueError("micro_batch is auto; let plan.micro_batch.choose put a number in its place")
        if stage.micro_batch % self.ways:
            raise ValueError(
                f"micro_batch is {stage.micro_batch}, not a multiple of the {self.ways} devices that share a batch; "
                "change one of them"
            )
        if stage.micro_batch % (model.overlap * self.ways):
            raise ValueError(
                f"overlap is 2 and micro_batch {stage.micro_batch}: the {self.ways} devices that share a batch cannot halve "
                f"their rows; set micro_batch to a multiple of {2 * self.ways}, or overlap to 1"
            )
        if stage.sequence_length % mesh.shape["context"]:
            raise ValueError(
                f"sequence_length {stage.sequence_length} is not a multiple of mesh.context {mesh.shape['context']}; "
                "change one of them"
            )
        offload.check(stage, mesh)
        self.base_specs = objectives.specs(stage, model) if specs is None else specs
        self.objective = objective or objectives.objective(stage, model)
        lora.check_targets(self.base_specs, stage.lora)
        self.specs = lora.adapt(self.base_specs, stage.lora)
        self.mask = parameters.trainable_mask(self.specs, stage.frozen)
        self.tx = optimizer(stage.optimizer, stage.steps)
        self.has_reference = stage.kind == "grpo" and stage.kl_beta > 0
        # Adapters that are never refreshed have a reference in their base.
        self.keep_reference = self.has_reference and (not stage.lora.rank or stage.reference_every > 0)
        self.param_shardings = sharding.param_shardings(self.specs, mesh, sharding.TRAIN)
        trained = (parameters.split(tree, self.mask)[0] for tree in (self.specs, self.param_shardings))
        specs, where = (jax.tree.leaves(tree, is_leaf=parameters.is_spec) for tree in trained)
        self.layered = [offload.is_layered(spec, place) for spec, place in zip(specs, where, strict=True)]
        self._moves = lora.moving(self.specs, stage.lora)
        self._specs, self._mask = (parameters.split(tree, self._moves)[0] for tree in (self.specs, self.mask))
        self._kept = {"reference": self.keep_reference, "offload": stage.offload}
        where = states.shardings(self._specs, self._mask, self.tx, mesh, **self._kept)
        self._init = jax.jit(
            lambda key: parameters.init(self.base_specs, key), out_shardings=lora.off(self.param_shardings)
        )
        self._adapters = jax.jit(lambda key: parameters.init(self._specs, key), out_shardings=where.params)
        self._create = jax.jit(
            partial(states.create, mask=self._mask, tx=self.tx, reference=self.keep_reference), out_shardings=where
        )
        options = TPU_OPTIONS if sharding.platform_of(mesh) == "tpu" else {}
        self._update = jax.jit(
            self._make_update(), donate_argnums=0, out_shardings=(where, None), compiler_options=options
        )
        self._logprobs = jax.jit(self._score)
        self._refresh = jax.jit(
            lambda s: s.replace(reference=jax.tree.map(jnp.copy, s.params)), donate_argnums=0, out_shardings=where
        )

    def init_params(self, seed: int) -> Any:
        """Random weights, born sharded."""
        return self._init(jax.random.key(seed))

    def with_new_head(self, policy: Any, seed: int) -> Any:
        """What a reward model begins with: the trunk of a policy (the same arrays) and a head drawn from the seed."""
        head, where = {scalar.HEAD: self.base_specs[scalar.HEAD]}, self.param_shardings[scalar.HEAD]
        drawn = jax.jit(lambda key: parameters.init(head, key)[scalar.HEAD], out_shardings=where)(jax.random.key(seed))
        return scalar.from_policy(policy, drawn)

    def create(self, params: Any) -> TrainState:
        """A fresh state around ``params``, a tree of ``base_specs``."""
        if not self.stage.lora.rank:
            return self._create(params)
        return self.whole(self._create(self._adapters(jax.random.key(self.stage.seed))), params)

    def abstract(self) -> TrainState:
        """Shapes, dtypes and shardings of what a checkpoint holds: of ``changing(state)``."""
        return states.abstract(self._specs, self._mask, self.tx, self.mesh, **self._kept)

    def changing(self, state: TrainState) -> TrainState:
        """The state without its base."""
        return state.replace(params=parameters.split(state.params, self._moves)[0])

    def whole(self, changing: TrainState, base: Any) -> TrainState:
        """The inverse of ``changing``, with ``base`` a tree of ``base_specs``; without LoRA it is whole already."""
        return changing if base is None else changing.replace(params=lora.attach(base, changing.params))

    def _base(self, state: TrainState) -> Any:
        return lora.off(state.params) if self.stage.lora.rank else None

    def put(self, batch: PackedBatch | JudgedBatch) -> PackedBatch | JudgedBatch:
        """Host arrays [M, B, T] onto the mesh."""
        return jax.tree.map(lambda x: sharding.put(x, self.mesh, sharding.TRAIN, None, "batch", "sequence"), batch)

    def update(
        self, state: TrainState, batch: PackedBatch | JudgedBatch, count: int, denominator: float
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """One update. Where ``batch`` has no ``old_logprobs`` or ``ref_logprobs``, the policy's own stand for them, in the same
        program."""
        base, own = self._base(state), {}
        if self.stage.kind == "grpo":
            for name in ("old_logprobs", "ref_logprobs")[: 1 + self.has_reference]:
                own[name] = jnp.bool_(getattr(batch, name) is None)
                if getattr(batch, name) is None:
                    batch = batch.replace(**{name: batch.advantages})  # which is not read
        with sharding.using(self.mesh, sharding.TRAIN):
            changed, sums = self._update(self.changing(state), batch, jnp.int32(count), jnp.float32(denominator), base, own)
        return self.whole(changed, base), sums

    def lower_update(self, batch: PackedBatch) -> jax.stages.Lowered:
        """The update for ShapeDtypeStructs [M, B, T], to be compiled; creates no array."""
        where = NamedSharding(self.mesh, sharding.partition((None, "batch", "sequence"), sharding.TRAIN))
        base = jax.tree.map(_lay, parameters.abstract(self.base_specs), lora.off(self.param_shardings))
        count, denominator = jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((), jnp.float32)
        with sharding.using(self.mesh, sharding.TRAIN):
            return self._update.lower(
                self.abstract(), jax.tree.map(lambda x: _lay(x, where), batch), count, denominator,
                base if self.stage.lora.rank else None,
            )  # fmt: skip

    def logprobs(self, params: Any, batch: PackedBatch, count: int) -> jax.Array:
        """float32[M, B, T], at the rollout's temperature; where the batch's mask is false they mean nothing."""
        with sharding.using(self.mesh, sharding.TRAIN):
            return self._logprobs(params, batch, jnp.int32(count))

    def refresh_reference(self, state: TrainState) -> TrainState:
        """The reference becomes the policy."""
        return self.whole(self._refresh(self.changing(state)), self._base(state))

    def reference(self, state: TrainState) -> Any:
        """The reference's weights."""
        base = self._base(state)
        if base is None or state.reference is None:
            return state.reference if base is None else base
        return lora.attach(base, state.reference)

    def _score(self, params, batch: PackedBatch, count) -> jax.Array:
        if "reference" in self.stage.offload:
            params = offload.to_device(params)
        return objectives.score(params, batch, count, model=self.model, temperature=self.stage.sampling.temperature)

    def _make_update(self) -> Callable:
        stage, mask, tx, objective = self.stage, self._mask, self.tx, self.objective
        still = parameters.matching(self.specs, stage.frozen)

        def update(state: TrainState, batch: PackedBatch, count, denominator, base=None, own=None):
            trainable, frozen = parameters.split(state.params, mask)
            starts = batch.segments != jnp.pad(batch.segments, ((0, 0), (0, 0), (1, 0)))[..., :-1]
            sequences = (starts & (batch.segments > 0)).sum().astype(jnp.float32)
            totals = {"loss": denominator, "sequences": jnp.maximum(sequences, 1.0)}
            totals["mtp"] = jnp.maximum(objectives.mtp_mask(batch).sum(), 1).astype(jnp.float32)

            def whole(trainable):
                params = parameters.merge(trainable, frozen)
                return params if base is None else lora.attach(base, params)

            def micro_gradient(i):
                micro = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False), batch)
                return jax.grad(lambda t: objective(whole(t), micro, totals, own), has_aux=True)(trainable)

            def body(i, carry):
                grads, sums = carry
                more, part = micro_gradient(i)
                return jax.tree.map(jnp.add, grads, more), _combine(sums, part)

            def first(i):
                grads, sums = micro_gradient(i)
                return states.float32(grads), sums

            shapes = jax.eval_shape(first, 0)
            grads, sums = jax.lax.fori_loop(0, count, body, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes))
            norm, scale = global_norm(grads, stage.optimizer.clip_norm)
            finite = jnp.isfinite(norm) & jnp.isfinite(sums["loss"])

            rates = rates_of(stage.optimizer, stage.steps, state.step - state.skipped)

            def step(grads, old_state, master, old):
                def made():
                    exact = old if master is None else master
                    steps, opt_state = tx.update(scaled(grads, scale), old_state, exact, rates=rates)
                    new = optax.apply_updates(exact, steps)
                    held = jax.tree.map(lambda x, y: x.astype(y.dtype), new, old)
                    return held, None if master is None else new, opt_state

                # A computation of its own, which XLA fuses, and so rounds, alike wherever it stands.
                return jax.lax.cond(finite, made, lambda: (old, master, old_state))

            if "optimizer" in stage.offload:
                new, master, opt_state = offload.by_layer(
                    step, tx, self.layered, grads, state.opt_state, state.master, trainable, hosted=True
                )
            else:  # in a loop over layers XLA:CPU copies every array, which costs several times the step itself
                new, master, opt_state = step(grads, state.opt_state, state.master, trainable)
            new = parameters.merge(new, frozen)
            if stage.bias_rate and not stage.lora.rank:
                balanced = balance_router(new, sums, stage.bias_rate)
                new = jax.tree.map(lambda x, y, still: y if still else jnp.where(finite, x, y), balanced, new, still)
            state = state.replace(
                step=state.step + 1,
                skipped=state.skipped + ~finite,
                params=new,
                master=master,
                opt_state=opt_state,
            )
            return state, metrics(sums, denominator) | {"grad/norm": norm, "update/skipped": state.skipped, "lr": rates.lr}

        return update


def _lay(x: jax.ShapeDtypeStruct, where: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)


def _combine(a: dict, b: dict) -> dict:
    """Adds the sums of two micro-batches, trees of them too."""
    flat = {k: v for k, v in a.items() if not isinstance(v, tuple)}
    trees = {k: jax.tree.map(jnp.add, v, b[k]) for k, v in a.items() if isinstance(v, tuple)}
    return combine(flat, {k: b[k] for k in flat}) | trees


def balance_router(params: Any, sums: dict, rate: float) -> Any:
    """V3's auxiliary-loss-free balancing: each expert's bias moves by ``rate`` towards the mean load of its layer (arXiv
    2412.19437, section 2.1.2)."""

    def moved(ff: dict, load: jax.Array | None) -> dict:
        if load is None or "router_bias" not in ff:
            return ff
        load = load.reshape(ff["router_bias"].shape)
        return {**ff, "router_bias": ff["router_bias"] + rate * jnp.sign(load.mean(-1, keepdims=True) - load)}

    if "load" in sums:
        segments = tuple({**s, "ff": moved(s["ff"], load)} for s, load in zip(params["segments"], sums["load"], strict=True))
        params = {**params, "segments": segments}
    if "mtp_load" in sums:
        layer = params["mtp"]["layer"]
        params = {**params, "mtp": {**params["mtp"], "layer": {**layer, "ff": moved(layer["ff"], sums["mtp_load"][0])}}}
    return params


def metrics(sums: dict, denominator: jax.Array) -> dict[str, jax.Array]:
    """Sums over a batch as means: parts of the loss by the loss's denominator, the rest by trained tokens. ``expert/load`` is
    float32[expert layers, E], over the mean of the layer; all others are float32[]."""
    tokens = jnp.maximum(sums["tokens"], 1.0)
    per_token = {
        "nll": "loss/nll",
        "entropy": "entropy",
        "kl_tokens": "kl",
        "teacher_kl": "teacher/kl",
        "value": "value/mean",
        "value_error": "value/error",
        "value_clipped": "value/clipped",
        "return": "value/return",
        "return_square": "value/return_square",
        "clipped_low": "clip/low",
        "clipped_high": "clip/high",
        "ratio": "ratio",
        "logprob_diff": "sampler/logprob_diff_mean",
        "sampler_ratio": "sampler/ratio_mean",
        "importance_capped": "sampler/importance_capped",
    }
    out = {name: sums[key] / tokens for key, name in per_token.items() if key in sums}
    out |= {f"loss/{key}": sums[key] / denominator for key in ("policy", "kl", "values") if key in sums}
    out |= {f"loss/{key}": sums[key] for key in ("balance", "mtp") if key in sums}
    if "judged" in sums:
        out |= preference_metrics(sums)
    out |= {"loss": sums["loss"], "tokens": sums["tokens"]}
    if "max/logprob_diff" in sums:
        out["sampler/logprob_diff_max"] = sums["max/logprob_diff"]
    if "routes" in sums:
        out["sampler/route_disagreement"] = sums["routes_apart"] / jnp.maximum(sums["routes"], 1.0)
    if "dropped" in sums:
        out["expert/dropped"] = sums["dropped"] / sums["choices"]
    if "load" in sums:
        shares = [load / jnp.maximum(load.mean(-1, keepdims=True), 1e-9) for load in sums["load"] if load is not None]
        out["expert/max_load"] = jnp.stack([s.max() for s in shares]).max()
        out["expert/min_load"] = jnp.stack([s.min() for s in shares]).min()
        every = jnp.concatenate([s.reshape(-1, s.shape[-1]) for s in shares])
        out["expert/load"] = sharding.constrain(every, None, None)  # whole in each process, as scalars are
    return out


def preference_metrics(sums: dict) -> dict[str, jax.Array]:
    """Of what ``losses.preference`` returns. Denominators: the pairs, or the labelled answers, all and of either kind."""
    judged, none = sums["judged"], jnp.float32(1)
    kinds = {"good": judged, "bad": judged}
    if "positive" in sums:
        kinds = {"good": sums["positive"], "bad": judged - sums["positive"]}
    out = {f"preference/{name}": sums[name] / jnp.maximum(count, none) for name, count in kinds.items()}
    out["preference/accuracy"] = sums["right"] / jnp.maximum(judged, none)
    if "margin" in sums:
        out["preference/margin"] = sums["margin"] / jnp.maximum(judged, none)
    return out
