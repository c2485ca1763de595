"""``r1jax bench update``: how fast answers become a better policy."""

from __future__ import annotations

import time

import jax
import numpy as np

from r1jax import config
from r1jax.bench import measure, session
from r1jax.bench.limits import probe
from r1jax.bench.prompts import random_tokens
from r1jax.bench.results import ALL, Limits, Need
from r1jax.bench.subject import Subject, open_subject
from r1jax.config.bench import BenchUpdate
from r1jax.data.packing import pack_sequences
from r1jax.losses.sums import denominator
from r1jax.plan import flops
from r1jax.plan.shortage import out_of_memory_is
from r1jax.train.update import Trainer

OPTIMIZER = config.Optimizer(lr=1e-6, warmup_steps=0)


def stage_of(command: BenchUpdate, model: config.Model) -> config.GRPO:
    """One sequence in each packed row; no KL term."""
    return config.GRPO(
        model=model,
        optimizer=OPTIMIZER,
        sequence_length=command.sequence_tokens,
        micro_batch=command.micro_batch,
        kl_beta=0.0,
        share_prompts=False,
        sampling=config.Sampling(max_new_tokens=command.sequence_tokens - 1),
        engine=config.Engine(max_prompt_tokens=1),
    )


@out_of_memory_is("lower --micro-batch or --sequence-tokens, or --remat, or compute in bfloat16 (--dtype, --matmul-dtype)")
def update(command: BenchUpdate) -> int:
    """Measures, and prints the report. Returns the exit code.

    Raises:
      ConfigError: a wrong model, or the other package is not here or cannot do it.
    """
    measure.refuse_missing(command.against)
    subject = open_subject(command, command.param_dtype, command.remat)
    rng = np.random.default_rng(command.seed)
    tokens = random_tokens(rng, command.sequences, command.sequence_tokens, subject.model.vocab_size)
    advantages = rng.standard_normal(command.sequences).tolist()
    session.say("probing the limits")
    limits = probe(subject.model, subject.mesh, command.micro_batch)
    o = OPTIMIZER
    job = {
        "work": "update", "tokens": tokens, "advantages": advantages, "micro_batch": command.micro_batch,
        "remat": command.remat, "clip_norm": o.clip_norm,
        "optimizer": {"lr": o.lr, "betas": [o.b1, o.b2], "eps": o.eps, "weight_decay": o.weight_decay},
    }  # fmt: skip

    def needs(model: config.Model, limits: Limits) -> dict[str, Need]:
        return needed(model, limits, command.sequences, command.sequence_tokens)

    with session.open_peers(command, subject, command.against, limits, job) as peers:
        session.compare(
            "update", command, subject, limits, needs, lambda: training(command, subject, tokens, advantages), peers
        )
    return 0


def needed(model: config.Model, limits: Limits, sequences: int, length: int) -> dict[str, Need]:
    """What the forward pass needs, and what the backward pass does; the optimizer's arithmetic is not counted."""
    tokens, pairs = sequences * length, sequences * flops.causal_pairs(length)
    forward = flops.forward_flops(model, tokens, pairs, sequences * (length - 1))
    rate = limits.flops_per_s(model.matmul_dtype)
    parts = {"forward": forward, "backward, step": (flops.GRADIENT - 1) * forward}
    return {name: Need(tokens, float(n), bound=n / rate) for name, n in parts.items()} | {ALL: Need(tokens)}


def training(command: BenchUpdate, subject: Subject, tokens: list[list[int]], advantages: list[float]) -> measure.Work:
    """Our side, with its weights."""
    trainer = Trainer(stage_of(command, subject.model), subject.model, subject.mesh)
    held = {"state": trainer.create(subject.load(trainer.specs, trainer.param_shardings))}
    host, count = pack_sequences(
        tokens, [[True] * len(row) for row in tokens], rows=command.micro_batch, length=command.sequence_tokens,
        advantages=advantages, ways=trainer.ways,
    )  # fmt: skip
    divisor = denominator("sequence", answers=len(tokens), tokens=int(host.mask.sum()), cap=command.sequence_tokens - 1)

    def once() -> measure.Turn:
        times = [time.perf_counter()]
        jax.block_until_ready(trainer.logprobs(held["state"].params, trainer.put(host), count))
        times.append(time.perf_counter())
        held["state"], metrics = trainer.update(held["state"], trainer.put(host), count, divisor)
        notes = {"loss": float(metrics["loss"]), "grad_norm": float(metrics["grad/norm"])}
        times.append(time.perf_counter())
        forward = times[1] - times[0]
        return measure.Turn({"forward": forward, "backward, step": max(0.0, times[2] - times[1] - forward)}, notes)

    return once
