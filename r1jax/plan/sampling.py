"""What a sampler needs, in bytes per device."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from r1jax import config, lora, sharding
from r1jax import params as parameters
from r1jax.models import cache as caches
from r1jax.models import decoder
from r1jax.nn.expert_parallel import KERNELS
from r1jax.nn.moe import route_dtype
from r1jax.plan.layout import device_bytes, laid_out
from r1jax.rollout.jobs import ROUND_TO
from r1jax.rollout.sampler import NO_ADAPTERS
from r1jax.rollout.weights import fits
from r1jax.train import objectives

F32 = 4


def longest_answer(stage: config.Stage) -> int:
    """Tokens."""
    cap = stage.max_cap if isinstance(stage, config.GRPO) else stage.sampling.max_new_tokens
    return max(cap, stage.eval.sampling.max_new_tokens if stage.eval.sampling else 0)


def cache_length(engine: config.Engine, cap: int) -> int:
    """Tokens of a row at the most."""
    return max([-(-engine.max_prompt_tokens // ROUND_TO) * ROUND_TO + cap, *engine.buckets])


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
        cls, model: config.Model, mesh: sharding.AnyMesh, engine: config.Engine, cap: int,
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
        copies = 0
        if engine.hot_experts:
            layers = [own for s, own in zip(model.segments, weights["segments"], strict=True) if s.ff == "moe"]
            experts = device_bytes([[layer["ff"][name] for name in KERNELS] for layer in layers])
            copies = experts * engine.hot_experts * mesh.shape["expert"] // model.moe.n_experts
        if trained is not None and adapters.rank:
            moves = lora.moving(specs, adapters)
            copied = jax.tree.map(lambda moved, x, theirs: moved or not fits(theirs, x, x.sharding), moves, weights, trained)
            weights, _ = parameters.split(weights, copied)
        length = cache_length(engine, cap)
        rows = -(-engine.slots // sharding.batch_ways(mesh, rules))
        itemsize = jnp.dtype(model.dtype).itemsize
        cache = 0
        for shape, axes in caches.shapes(model, rows, length):
            heads = [size for size, name in zip(shape, axes, strict=True) if name == "kv_heads"]
            split = mesh.shape["tensor"] if heads and heads[0] % mesh.shape["tensor"] == 0 else 1
            cache += (model.n_layers + engine.speculative) * math.prod(shape) * itemsize // split
        logits = 4 * rows * model.vocab_size * F32  # scaled, exponentiated, cumulated in blocks, and as they were
        logits *= 3 if engine.speculative else 1  # of the draft, of the token that it is compared with, and of the one behind
        answers = rows * cap * (route_bytes + 2 * F32)  # routes, tokens and log-probs
        return cls(device_bytes(weights) + copies, cache, logits + answers)
