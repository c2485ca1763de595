"""The smallest model, task and stages that have every part: what tests of the training loop share.

Loaded by path as well, by reward workers and as a source of rows, so it imports no jax.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from r1jax import config

FILE = Path(__file__).resolve()
MOE = config.Model(
    vocab_size=264,
    d_model=16,
    d_ff=32,
    segments=(config.Segment("dense", 1), config.Segment("moe", 1)),
    attention=config.MLA(n_heads=2, kv_rank=8, nope_dim=8, rope_dim=4, v_dim=8),
    moe=config.MoE(n_experts=4, top_k=2, d_ff=16),
    init_std=0.3,  # large, so that rewards, ratios and routes are not all alike
)
DENSE = dataclasses.replace(
    MOE, segments=(config.Segment("dense", 1),), attention=config.GQA(n_heads=2, n_kv_heads=2, head_dim=8), moe=None
)
TEXT = config.Text(tokenizer="bytes", template="{{ prompt }}")
STOP = tuple("aeiouAEIOU0123456789")  # chance hardly ever samples the end token; these make answers of many lengths


# -- The task


def rows(split: str, count: int = 200, trap: str = "") -> list[dict]:
    """Rows for GRPO and SFT. Reading a row may send this process a signal, see ``Trap``."""
    first = 0 if split == "train" else 10_000
    made = [
        {"prompt": f"{i}={'?' * (i % 3)}", "answer": str(i), "completion": f"<answer>{i * i}</answer>"}
        for i in range(first, first + count)
    ]
    return Trap(made, trap) if trap else made


class Trap(list):
    """Rows that signal the process that reads one. The file ``trap`` holds {"prompt": str, "signal": int}; it goes off once.
    With "rank" it is for that process of several alone, and goes off when the file "after" is there."""

    def __init__(self, made: list[dict], trap: str):
        super().__init__(made)
        self.trap = Path(trap)

    def __getitem__(self, index: int) -> dict:
        row = super().__getitem__(index)
        if self.trap.exists() and (armed := json.loads(self.trap.read_text()))["prompt"] == row["prompt"]:
            if "rank" not in armed:
                self.trap.unlink()
            elif armed["rank"] != os.environ.get("R1JAX_PROCESS_ID"):
                return row
            while "after" in armed and not Path(armed["after"]).exists():
                time.sleep(0.05)
            os.kill(os.getpid(), armed["signal"])
        return row


def checksum(prompt: str, completion: str, row: dict) -> float:
    """0 to 1, changed by any other letter of the answer."""
    return sum((i + 1) * ord(c) for i, c in enumerate(completion)) % 7 / 6


def pairs(split: str, count: int = 400) -> list[dict]:
    """Digits are better than letters; one in three pairs has a longer chosen answer."""
    made = [(row, i % 3) for i, row in enumerate(rows(split, count))]
    good, bad = "0123456789", "abcdefghij"
    return [
        {"prompt": row["prompt"], "chosen": _written(row, good, i == 0), "rejected": _written(row, bad, i == 1)}
        for row, i in made
    ]


def labels(split: str, count: int = 400) -> list[dict]:
    """Answers of digits are good, others bad."""
    signs = ("abcdefghij", "0123456789")
    made = [(row, i % 2) for i, row in enumerate(rows(split, count))]
    return [{"prompt": row["prompt"], "completion": _written(row, signs[label], False), "label": label} for row, label in made]


def _written(row: dict, signs: str, longer: bool) -> str:
    number = int(row["answer"]) * 7919
    return "<think>hm</think>" + "".join(signs[int(c)] for c in str(number % 1000)) + signs[number % 10] * 3 * longer


def source(trap: str = "", **options) -> config.Source:
    options |= {"trap": trap} if trap else {}
    return config.Source(path=f"{FILE}:rows", name="tiny", options=options, rewards={f"{FILE}:checksum": 1.0})


# -- The stages


def grpo(**changes) -> config.GRPO:
    """Two updates a round of two questions each, on one device; evaluation, TensorBoard and preflight are off."""
    settings = {
        "model": MOE,
        "text": TEXT,
        "sources": (source(),),
        "steps": 4,
        "questions": 2,
        "group": 4,
        "minibatches": 2,
        "sequence_length": 16,
        "micro_batch": 8,
        "kl_beta": 0.1,
        "optimizer": config.Optimizer(lr=0.01, warmup_steps=0),
        "sampling": config.Sampling(max_new_tokens=8, stop=STOP),
        "engine": config.Engine(slots=16, max_prompt_tokens=8, chunk=4),
        "mesh": config.Mesh(fsdp=1),
        "eval": config.Eval(every=0),
        "log": config.Log(tensorboard=False, samples_per_step=-1),
        "checkpoint": config.Checkpoint(every=2),
        "workers": config.Workers(count=1),
        "preflight": False,
    }
    return config.GRPO(**settings | changes)


def sft(**changes) -> config.SFT:
    settings = {
        "model": MOE,
        "text": TEXT,
        "sources": (source(),),
        "steps": 2,
        "batch": 8,
        "sequence_length": 32,
        "micro_batch": 8,
        "optimizer": config.Optimizer(lr=0.01, warmup_steps=0),
        "engine": config.Engine(slots=16, max_prompt_tokens=8, chunk=4),
        "sampling": config.Sampling(max_new_tokens=8, stop=STOP),
        "mesh": config.Mesh(fsdp=1),
        "log": config.Log(tensorboard=False),
        "checkpoint": config.Checkpoint(every=2),
        "workers": config.Workers(count=1),
    }
    return config.SFT(**settings | changes)


def judge(**changes) -> config.RewardModel:
    """A reward model of pairs."""
    settings = {
        "model": MOE,
        "text": TEXT,
        "sources": (config.Source(path=f"{FILE}:pairs", name="pairs", rewards={}),),
        "steps": 2,
        "batch": 8,
        "sequence_length": 32,
        "micro_batch": 8,
        "optimizer": config.Optimizer(lr=0.01, warmup_steps=0),
        "engine": config.Engine(slots=16, max_prompt_tokens=8, chunk=4),
        "mesh": config.Mesh(fsdp=1),
        "log": config.Log(tensorboard=False),
        "checkpoint": config.Checkpoint(every=2),
        "workers": config.Workers(count=1),
        "eval": config.Eval(every=100, limit=64),
    }
    return config.RewardModel(**settings | changes)


def labelled() -> config.Source:
    return config.Source(path=f"{FILE}:labels", name="labels", rewards={})


def rejection(**changes) -> config.RejectionSampling:
    """Two batches of four questions."""
    settings = {
        "init": "grpo",
        "sources": (dataclasses.replace(source(), limit=8),),
        "samples": 4,
        "sampling": config.Sampling(max_new_tokens=8, stop=STOP),
        "keep": {f"{FILE}:checksum": 0.1},
        "readable": config.Readable(language=None),
        "per_prompt": 2,
        "together": 4,
        "engine": config.Engine(slots=16, max_prompt_tokens=8, chunk=4),
        "mesh": config.Mesh(fsdp=1),
        "workers": config.Workers(count=1),
    }
    return config.RejectionSampling(**settings | changes)


@dataclass(frozen=True)
class Recipe(config.Pipeline):
    """Every kind of stage, and every kind of input."""

    zero: config.GRPO = field(default_factory=lambda: grpo(steps=2))
    cold: config.RejectionSampling = field(default_factory=lambda: rejection(init="zero"))
    dev: config.SFT = field(
        default_factory=lambda: sft(steps=2, sources=(dataclasses.replace(made("cold"), rewards={}),), sequence_length=32)
    )
    judge: config.RewardModel = field(default_factory=lambda: judge(init="dev", model=None))
    student: config.SFT = field(default_factory=lambda: sft(model=DENSE, steps=1, sources=(made("cold"),)))
    rl: config.GRPO = field(
        default_factory=lambda: grpo(
            init="dev", model=None, steps=2, preference=(config.Preference(name="liked", model="judge"),)
        )
    )


def made(stage: str) -> config.Source:
    return config.Source(path=f"stage:{stage}", name="made")


@dataclass(frozen=True)
class Tiny(config.Pipeline):
    sft: config.SFT = field(default_factory=sft)
    grpo: config.GRPO = field(default_factory=grpo)


def pipeline(*, sft_steps: int = 2, steps: int = 4, mesh: config.Mesh | None = None, trap: str = "", **changes) -> Tiny:
    """SFT, then GRPO from what it learned. ``changes`` are GRPO's."""
    # A larger eps, so that rounding in a gradient of almost 0 does not become a step of the size of lr.
    shared = {"mesh": mesh or config.Mesh(fsdp=1), "sources": (source(trap),)}
    shared |= {"optimizer": config.Optimizer(lr=0.01, warmup_steps=0, eps=1e-4)}
    return Tiny(sft=sft(steps=sft_steps, **shared), grpo=grpo(init="sft", model=None, steps=steps, **shared | changes))


# -- Running


@contextlib.contextmanager
def optimised() -> Iterator[None]:
    """Compiles as it is in use: for models of a real size. All other tests compile with few optimisations, see conftest.py."""
    import jax

    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


def metrics(run: Path) -> list[dict]:
    """The rows of metrics.jsonl without what the clock decides."""
    made = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "tokens_per_s"))} for row in made]


def samples(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
