"""``r1jax bench grpo``: how long a step of GRPO takes, as the stage makes it."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path

import numpy as np

from r1jax import config, rundir
from r1jax.bench import measure, session
from r1jax.bench.limits import probe
from r1jax.bench.prompts import texts
from r1jax.bench.results import ALL, Limits, Need
from r1jax.bench.subject import Subject, open_subject
from r1jax.bench.update import OPTIMIZER
from r1jax.config.bench import BenchGrpo
from r1jax.observe.metrics import read_metrics
from r1jax.plan import flops
from r1jax.stages import grpo as stage_grpo
from r1jax.stages.pipeline import PREEMPTED
from r1jax.stages.prepare import prepare
from r1jax.stages.workspace import Preempted, Workspace, open_workspace

PHASES = ("rollout", "reward", "score", "update")


def stage_of(command: BenchGrpo, subject: Subject, prompts: list[str]) -> config.GRPO:
    """A round is one update; a packed row holds a question with all of its answers. No KL term. Nothing is saved, for the last
    step is never made."""
    steps = command.rounds + 2
    shared = max(0, command.prompt_tokens - 2)
    types = ("param_dtype", "dtype", "matmul_dtype")
    return config.GRPO(
        model=None if subject.opened else subject.model,
        init=command.model if subject.opened else "random",
        text=config.Text(tokenizer="auto" if subject.opened else "bytes", template="{{ prompt }}"),
        sources=(
            config.Source(
                path="r1jax.bench.prompts:rows", name="bench", options={"prompts": prompts},
                rewards={"r1jax.bench.prompts:checksum": 1.0},
            ),
        ),
        steps=steps,
        minibatches=1,
        optimizer=OPTIMIZER,
        questions=command.questions,
        group=command.group,
        sequence_length=shared + command.group * (command.prompt_tokens - shared + command.new_tokens),
        micro_batch=command.micro_batch // command.group,
        kl_beta=0.0,
        sampling=config.Sampling(max_new_tokens=command.new_tokens),
        engine=config.Engine(slots=command.questions * command.group, max_prompt_tokens=command.prompt_tokens),
        mesh=command.mesh,
        seed=command.seed,
        eval=config.Eval(every=0),
        log=config.Log(sample_every=0, samples_per_step=0, tensorboard=False),
        checkpoint=config.Checkpoint(every=steps),
        preflight=False,
        **{name: vars(subject.model)[name] for name in types},
    )  # fmt: skip


def grpo(command: BenchGrpo) -> int:
    """Measures, and prints the report. Returns the exit code: 0, or 75 if it was told to end.

    Raises:
      ConfigError: a wrong model, or the other package is not here or cannot do it.
    """
    measure.refuse_missing(command.against)
    subject = open_subject(command, command.param_dtype)
    tokenizer = subject.tokenizer
    rng, steps = np.random.default_rng(command.seed), command.rounds + 1
    prompts = texts(rng, command.questions * steps, command.prompt_tokens, tokenizer.encode, tokenizer.decode)
    found = prepare(stage_of(command, subject, prompts))
    found = dataclasses.replace(found, tokenizer=dataclasses.replace(found.tokenizer, end_ids=()))
    session.say("probing the limits")
    limits = probe(subject.model, subject.mesh, command.questions * command.group)
    o = OPTIMIZER
    job = {
        "work": "grpo", "prompts": [found.mixture[i]["prompt"] for i in range(len(prompts))], "questions": command.questions,
        "group": command.group, "new_tokens": command.new_tokens, "micro_batch": command.micro_batch,
        "optimizer": {
            "learning_rate": o.lr, "adam_beta1": o.b1, "adam_beta2": o.b2, "adam_epsilon": o.eps, "max_grad_norm": o.clip_norm,
            "weight_decay": o.weight_decay, "lr_scheduler_type": "constant",
        },
    }  # fmt: skip

    def needs(model: config.Model, limits: Limits) -> dict[str, Need]:
        return needed(model, limits, command)

    with tempfile.TemporaryDirectory(prefix="r1jax-bench-run-") as folder:
        run = rundir.create("bench", config.to_json(found.stage), Path(folder) / "run")
        try:
            with (
                session.open_peers(command, subject, command.against, limits, job, tokenizer) as peers,
                open_workspace(found, run, "bench grpo") as work,
            ):
                session.compare("grpo", command, subject, limits, needs, lambda: rounds(work), peers)
        except Preempted:
            return PREEMPTED
        finally:
            run.close()
    return 0


def needed(model: config.Model, limits: Limits, command: BenchGrpo) -> dict[str, Need]:
    """What the rollout needs, and the update when a prompt goes once through the layers for all of its answers."""
    q, p, n = command.questions, command.prompt_tokens, command.new_tokens
    answers = q * command.group
    rate, bandwidth = limits.flops_per_s(model.matmul_dtype), limits.all_bytes_per_s
    parts = (flops.prefill_steps([p] * q, q), flops.decode_steps([p] * answers, [n] * answers, answers))
    rollout = Need(
        answers * n,
        sum(float(s.flops(model).sum()) for s in parts),
        sum(float(s.bytes(model).sum()) for s in parts),
        sum(s.bound(model, rate, bandwidth) for s in parts),
    )
    # The last prompt token predicts the first token of the answer, and the last of the answer nothing.
    pairs = q * flops.causal_pairs(p) + answers * flops.causal_pairs(n, seen=p)
    update = flops.GRADIENT * flops.forward_flops(model, q * p + answers * n, pairs, answers * n)
    return {"rollout": rollout, "update": Need(answers * n, float(update), bound=update / rate), ALL: Need(answers * n)}


def rounds(work: Workspace) -> measure.Work:
    """Our side: the stage's own rounds, their phases as its metrics tell them. ``other`` is what no phase holds: weights to the
    sampler, advantages, packing."""

    def once() -> measure.Turn:
        began = time.perf_counter()
        stage_grpo.play_round(work)
        seconds = time.perf_counter() - began
        row = read_metrics(work.run.path)[-1]
        phases = {name: row[f"time/{name}"] for name in (*PHASES, "compile") if f"time/{name}" in row}
        return measure.Turn({**phases, "other": max(0.0, seconds - sum(phases.values()))}, {"tokens": row["tokens"]})

    return once
