"""Runs that others published, predicted by ``roofline``: what its shares are fitted on, and how far it is off elsewhere.

Publishers' figures, not like for like. What they did not say is marked assumed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from r1jax.config.model import CONFIG_671B, GQA, Model, MoE, Segment
from r1jax.config.plan import Efficiency
from r1jax.plan import flops, roofline
from r1jax.plan.roofline import Layout, Load
from r1jax.plan.topology import parse

_BF16 = {"dtype": "bfloat16", "matmul_dtype": "bfloat16", "param_dtype": "bfloat16"}


def _qwen3_moe(d_model: int, layers: int, heads: int, d_ff: int) -> Model:
    """The architecture of Qwen3's mixtures (their config.json)."""
    return Model(
        vocab_size=151_936, d_model=d_model, segments=(Segment("moe", layers),),
        attention=GQA(n_heads=heads, n_kv_heads=4, head_dim=128, qk_norm=True),
        moe=MoE(n_experts=128, top_k=8, d_ff=d_ff, n_shared=0, scoring="softmax", bias=False), **_BF16,
    )  # fmt: skip


def _llama(d_model: int, layers: int, heads: int, d_ff: int) -> Model:
    return Model(
        vocab_size=128_256, d_model=d_model, d_ff=d_ff, segments=(Segment("dense", layers),),
        attention=GQA(n_heads=heads, n_kv_heads=8, head_dim=128), **_BF16,
    )  # fmt: skip


QWEN3_30B = _qwen3_moe(2048, 48, 32, 768)
QWEN3_235B = _qwen3_moe(4096, 94, 64, 1536)
MIXTRAL = Model(
    vocab_size=32_000, d_model=4096, segments=(Segment("moe", 32),), attention=GQA(n_heads=32, n_kv_heads=8, head_dim=128),
    moe=MoE(n_experts=8, top_k=2, d_ff=14_336, n_shared=0, scoring="softmax", bias=False), **_BF16,
)  # fmt: skip
LLAMA_8B, LLAMA_70B = _llama(4096, 32, 32, 14_336), _llama(8192, 80, 64, 28_672)


@dataclass(frozen=True)
class Prediction:
    run: str
    unit: str
    predicted: float
    actual: float
    source: str
    assumed: str = ""
    fitted: bool = False
    """The shares were chosen so that this is right."""

    @property
    def ratio(self) -> float:
        return self.predicted / self.actual


V3 = "arXiv 2412.19437, table 1"
MAXTEXT, NEMO, VERL = "MaxText, README", "NVIDIA NeMo-RL, performance summary", "verl, documentation"


@dataclass(frozen=True)
class Training:
    """Tokens/s of a device, or the share of its peak (MFU) that the model's FLOPs are."""

    run: str
    model: Model
    topology: str
    actual: float
    source: str
    sequence: int = 4096
    fp8: bool = False
    mfu: bool = False
    fitted: bool = False
    assumed: str = ""

    def predict(self, e: Efficiency) -> Prediction:
        t = parse(self.topology)
        rate = roofline.training_rate(self.model, t, self.sequence, e, fp8=self.fp8)
        if self.mfu:
            each = flops.forward_flops(self.model, self.sequence, flops.causal_pairs(self.sequence), self.sequence)
            rate *= flops.GRADIENT * each / self.sequence / t.of_device(t.chip.bf16)
        else:
            rate *= t.chip.devices
        return Prediction(
            self.run, "MFU" if self.mfu else "tokens/s a chip", rate, self.actual, self.source, self.assumed, self.fitted
        )


TRAINING = (
    Training("DeepSeek-V3 pre-training, FP8", CONFIG_671B, "h800:2048", 1543.0, V3, fp8=True, fitted=True),
    Training("DeepSeek-V3 pre-training, bfloat16", CONFIG_671B, "tpu7x:128", 2426.0, MAXTEXT),
    Training("DeepSeek-V3 pre-training, FP8", CONFIG_671B, "tpu7x:128", 2917.0, MAXTEXT, fp8=True),
    Training("Qwen3-235B-A22B pre-training, bfloat16", QWEN3_235B, "tpu7x:256", 4246.0, MAXTEXT, assumed="4k tokens"),
    Training("Qwen3-235B-A22B pre-training, FP8", QWEN3_235B, "tpu7x:256", 4737.0, MAXTEXT, fp8=True, assumed="4k tokens"),
    Training("Mixtral 8x7B", MIXTRAL, "v6e:256", 3899.0, MAXTEXT, assumed="4k tokens"),
    Training("Mixtral 8x7B", MIXTRAL, "v5p:256", 2909.0, MAXTEXT, assumed="4k tokens"),
    Training("Llama-3.1 8B", LLAMA_8B, "v6e:256", 0.455, MAXTEXT, 8192, mfu=True, assumed="8k tokens"),
    Training("Llama-3.1 70B", LLAMA_70B, "v6e:256", 0.503, MAXTEXT, 8192, mfu=True, assumed="8k tokens"),
    Training("Qwen3-30B-A3B update, Megatron", QWEN3_30B, "h100:8", 0.40, VERL, mfu=True, assumed="H100, 4k tokens"),
    Training("Qwen3-30B-A3B update, Megatron", QWEN3_30B, "h100:16", 0.37, VERL, mfu=True, assumed="H100, 4k tokens"),
    Training("Qwen3-30B-A3B update, Megatron", QWEN3_30B, "h100:32", 0.31, VERL, mfu=True, assumed="H100, 4k tokens"),
    Training("671B RL update", CONFIG_671B, "h20:96", 0.19, VERL, mfu=True, assumed="4k tokens"),
)


@dataclass(frozen=True)
class RL:
    """Seconds of a step of GRPO: rollout, rewards, log-probs, update, reshard."""

    run: str
    model: Model
    topology: str
    answers: int
    answer: float
    actual: float
    layout: Layout
    source: str
    cap: int
    fitted: bool = False
    apart: bool = False
    """Rollout and training go on at once, on devices of their own: a step is the longer of both."""
    assumed: str = ""
    slots: int = 0

    def predict(self, e: Efficiency) -> Prediction:
        t = parse(self.topology)
        load = Load(
            answers=self.answers, updates=1, prompt=100, answer=self.answer, longest=min(self.cap, e.longest * self.answer),
            slots=self.slots or self.answers, passes=2, group=1, recompute=True,
        )  # fmt: skip
        layout = dataclasses.replace(self.layout, fsdp=self.layout.fsdp // 2) if self.apart else self.layout
        phases = roofline.estimate(self.model, t, layout, load, e).phases
        seconds = sum(p.seconds for p in phases.values())
        if self.apart:
            seconds = max(phases["rollout"].seconds, seconds - phases["rollout"].seconds)
        return Prediction(self.run, "s a step", seconds, self.actual, self.source, self.assumed, self.fitted)


_TP = "engines over {} devices, caps, prompts of 100 tokens"
REINFORCEMENT = (
    RL("GRPO Qwen3-30B-A3B, mean 3.2k", QWEN3_30B, "h100:32", 2048, 3200, 192.0, Layout(fsdp=4, expert=8, replica=2), NEMO,
       cap=16_384, fitted=True, assumed=_TP.format(2)),
    RL("the same, one step off-policy", QWEN3_30B, "h100:32", 2048, 3200, 152.0, Layout(fsdp=4, expert=8, replica=2), NEMO,
       cap=16_384, apart=True, assumed=_TP.format(2) + ", half of the devices each"),
    RL("GRPO Qwen3-235B-A22B, mean 5.7k", QWEN3_235B, "h100:128", 512, 5700, 395.0, Layout(fsdp=8, expert=16, replica=16), NEMO,
       cap=16_384, assumed=_TP.format(16) + ", 512 answers (58.9 tokens/s a GPU)"),
    RL("GRPO DeepSeek-V3, mean 701", CONFIG_671B, "h100:256", 512, 701, 134.0, Layout(fsdp=8, expert=32, replica=32), NEMO,
       cap=1536, assumed=_TP.format(32) + ", 512 answers (12.1 tokens/s a GPU)"),
)  # fmt: skip
NOT_PREDICTED = (
    "671B RL with verl on 96 H20 (rollout 1,050 s, step 1,700 s): answers per step unpublished",
    "weight transfer of Qwen3-30B-A3B (22.3 s on v5p, 4.4 s on H20): devices and layouts unpublished",
    "R1-Zero (68.5 s a step): mean length unpublished; see the tokens/s that it implies",
)


def predictions(e: Efficiency) -> Iterator[Prediction]:
    yield from (run.predict(e) for run in (*TRAINING, *REINFORCEMENT))


def fit(e: Efficiency) -> Efficiency:
    """``e`` with ``compute`` and ``bandwidth`` that make the fitted runs right, the rest as it is."""
    training, rl = (next(run for run in runs if run.fitted) for runs in (TRAINING, REINFORCEMENT))
    e = dataclasses.replace(e, compute=e.compute / training.predict(e).ratio)
    low, high = 0.01, 1.0
    for _ in range(40):
        middle = (low * high) ** 0.5
        slow = rl.predict(dataclasses.replace(e, bandwidth=middle)).ratio > 1
        low, high = (middle, high) if slow else (low, middle)
    return dataclasses.replace(e, bandwidth=high)
