"""``r1jax bench rollout``: how fast questions become answers."""

from __future__ import annotations

import dataclasses
import time

import numpy as np

from r1jax import config
from r1jax.bench import measure, session
from r1jax.bench.limits import probe
from r1jax.bench.prompts import ragged_lengths, random_tokens
from r1jax.bench.results import ALL, Limits, Need
from r1jax.bench.subject import Subject, open_subject
from r1jax.config.bench import BenchRollout
from r1jax.plan import flops
from r1jax.plan.shortage import out_of_memory_is
from r1jax.rollout import Sampler


@dataclasses.dataclass(frozen=True)
class Load:
    """What is asked of each side."""

    prompts: list[list[int]]
    lengths: list[int]
    """Of the answers."""
    slots: int
    most: int
    """Tokens that an answer may have."""
    ragged: bool

    @classmethod
    def of(cls, command: BenchRollout, vocab: int) -> Load:
        rng = np.random.default_rng(command.seed)
        n, most, ragged = command.prompts, command.new_tokens, command.lengths == "ragged"
        prompts = random_tokens(rng, n, command.prompt_tokens, vocab)
        lengths = ragged_lengths(rng, n, most) if ragged else [most] * n
        return cls(prompts, lengths, command.slots or max(1, n // (4 if ragged else 1)), most, ragged)

    def needs(self, model: config.Model, limits: Limits) -> dict[str, Need]:
        """What prefill and decoding need, with slots that are never empty while there is a question left."""
        prompts = [len(p) for p in self.prompts]
        phases = {
            "prefill": (sum(prompts), flops.prefill_steps(prompts, self.slots)),
            "decode": (sum(self.lengths) - len(prompts), flops.decode_steps(prompts, self.lengths, self.slots)),
        }
        rate, bandwidth = limits.flops_per_s(model.matmul_dtype), limits.all_bytes_per_s
        needs = {
            name: Need(tokens, float(s.flops(model).sum()), float(s.bytes(model).sum()), s.bound(model, rate, bandwidth))
            for name, (tokens, s) in phases.items()
        }
        return needs | {ALL: Need(sum(self.lengths))}


@out_of_memory_is("lower --slots, --prompts or --new-tokens, or compute in bfloat16 (--dtype, --matmul-dtype)")
def rollout(command: BenchRollout) -> int:
    """Measures, and prints the report. Returns the exit code.

    Raises:
      ConfigError: a wrong model, or the other package is not here or cannot do it.
    """
    measure.refuse_missing(command.against)
    subject = open_subject(command)
    load = Load.of(command, subject.model.vocab_size)
    session.say("probing the limits")
    limits = probe(subject.model, subject.mesh, load.slots)
    job = {"work": "rollout", "prompts": load.prompts, "lengths": load.lengths, "slots": load.slots}
    with session.open_peers(command, subject, command.against, limits, job) as peers:
        session.compare("rollout", command, subject, limits, load.needs, lambda: sampling(subject, load), peers)
    return 0


def sampling(subject: Subject, load: Load) -> measure.Work:
    """Our side, with its weights."""
    width = max(len(p) for p in load.prompts)
    engine = config.Engine(slots=load.slots, max_prompt_tokens=width)
    sampler = Sampler(subject.model, engine, subject.mesh, end_ids=(), seed=subject.seed)
    sampler.load(subject.load(sampler.specs, sampler.shardings), copy=False)

    def generate(most: int) -> int:
        """Tokens that were sampled."""
        caps = {"caps": [min(n, most) for n in load.lengths]} if load.ragged else {}
        t = sampler.generate(load.prompts, config.Sampling(temperature=1.0, max_new_tokens=most), samples=1, **caps)
        return int((t.length - t.prompt_length).sum())

    def once() -> measure.Turn:
        times = [time.perf_counter()]
        generate(1)
        times.append(time.perf_counter())
        tokens = generate(load.most)
        times.append(time.perf_counter())
        prefill = times[1] - times[0]
        return measure.Turn({"prefill": prefill, "decode": max(0.0, times[2] - times[1] - prefill)}, {"tokens": tokens})

    return once
