"""What ``plan`` predicts of real updates and rollouts here, beside what they take: ``python -m r1jax.stages.plan_check``.

Ratios are compared, of each run to the first of its kind: the level of a machine's speed is the two shares' to fit.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from dataclasses import dataclass

import jax
import numpy as np

from r1jax import config, sharding
from r1jax.config.plan import Efficiency
from r1jax.plan import roofline
from r1jax.plan.activations import micro_batch
from r1jax.plan.topology import Topology
from r1jax.rollout.sampler import Sampler
from r1jax.stages.plan import here
from r1jax.train.update import Trainer

NARROW = config.Model(
    vocab_size=4096, d_model=256, d_ff=1024, segments=(config.Segment("dense", 4),),
    attention=config.GQA(n_heads=4, n_kv_heads=2, head_dim=64),
)  # fmt: skip
WIDE = dataclasses.replace(
    NARROW, d_model=1024, d_ff=4096, attention=config.GQA(n_heads=16, n_kv_heads=8, head_dim=64)
)
SPARSE = dataclasses.replace(
    NARROW, segments=(config.Segment("moe", 4),), moe=config.MoE(n_experts=16, top_k=4, d_ff=256, n_shared=0)
)
NO_END = 10**6


@dataclass(frozen=True)
class Run:
    """A run that was chosen before anything was predicted or measured."""

    kind: str
    """``update`` or ``rollout``."""
    name: str
    model: config.Model
    rows: int
    """Of an update; slots of a rollout, each with one answer."""
    length: int
    """Tokens of a row; of an answer, behind a prompt of 64."""


RUNS = (
    Run("update", "dense, 256 wide, 1,024 tokens", NARROW, 4, 256),
    Run("update", "8 x the tokens", NARROW, 32, 256),
    Run("update", "4 x the width", WIDE, 4, 256),
    Run("update", "16 experts, 4 of them chosen", SPARSE, 4, 256),
    Run("update", "16 experts, 8 x the tokens", SPARSE, 32, 256),
    Run("rollout", "dense, 256 wide, 16 slots, 64 tokens, cache of 128", NARROW, 16, 64),
    Run("rollout", "8 x the slots", NARROW, 128, 64),
    Run("rollout", "4 x the cache, 448 tokens", NARROW, 16, 448),
    Run("rollout", "4 x the width", WIDE, 16, 64),
    Run("rollout", "16 experts, 4 of them chosen", SPARSE, 16, 64),
)
PROMPT = 64


def predict(run: Run, machine: Topology, e: Efficiency) -> float:
    """Seconds."""
    rollout = run.kind == "rollout"
    load = roofline.Load(
        answers=run.rows, updates=1, prompt=PROMPT if rollout else 1, answer=run.length if rollout else run.length - 1,
        longest=run.length, slots=run.rows, computed=0.0 if rollout else run.rows * run.length,
    )  # fmt: skip
    return roofline.estimate(run.model, machine, roofline.Layout(), load, e).phases[run.kind].seconds


def measure(run: Run) -> float:
    """Seconds, the fastest of some."""
    mesh = sharding.make_mesh(config.Mesh(), jax.devices()[:1])
    rng = np.random.default_rng(0)
    if run.kind == "rollout":
        sampler = Sampler(run.model, config.Engine(slots=run.rows, max_prompt_tokens=PROMPT), mesh, end_ids=(NO_END,))
        sampler.load(Trainer(stage(run), run.model, mesh).init_params(0))
        prompts = rng.integers(0, run.model.vocab_size, (run.rows, PROMPT)).tolist()
        sampling = config.Sampling(max_new_tokens=run.length)
        return _fastest(lambda: sampler.generate(prompts, sampling))
    trainer = Trainer(stage(run), run.model, mesh)
    state = trainer.create(trainer.init_params(0))
    shapes = micro_batch(stage(run), (1, run.rows, run.length))
    batch = trainer.put(jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes))
    tokens = rng.integers(0, run.model.vocab_size, batch.tokens.shape).astype(np.int32)
    batch = batch.replace(tokens=sharding.put(tokens, mesh, sharding.TRAIN, None, "batch", "sequence"))

    def step():
        nonlocal state
        state, sums = trainer.update(state, batch, 1, float(tokens.size))
        jax.block_until_ready(sums)

    return _fastest(step)


def stage(run: Run) -> config.SFT:
    return config.SFT(model=run.model, sequence_length=max(2, run.length), micro_batch=run.rows)


def _fastest(work) -> float:
    times = []
    for _ in range(4):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def main(kinds: list[str]) -> None:
    machine = here(NARROW)
    errors = []
    for kind in kinds or ["update", "rollout"]:
        runs = [run for run in RUNS if run.kind == kind]
        predicted = [predict(run, machine, Efficiency()) for run in runs]
        for run, seconds in zip(runs, predicted, strict=True):
            print(f"{kind}: {run.name}: predicted {seconds:.3f} s, {seconds / predicted[0]:.2f} x the first", flush=True)
        measured = [measure(run) for run in runs]
        for run, one, other in zip(runs, predicted, measured, strict=True):
            ratio = (one / predicted[0]) / (other / measured[0])
            errors += [abs(ratio - 1)] if run is not runs[0] else []
            took = f"took {other:.3f} s, {other / measured[0]:.2f} x; predicted over that {ratio:.2f}"
            print(f"{kind}: {run.name}: {took}", flush=True)
    print(f"error of ratios: median {np.median(errors):.0%}, worst {max(errors):.0%}")


if __name__ == "__main__":
    main(sys.argv[1:])
