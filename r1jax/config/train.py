"""The optimizer, and what every run does beside learning: log, evaluate, save."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from r1jax.config.base import ConfigError
from r1jax.config.data import Source
from r1jax.config.rollout import Sampling

LARGEST_BETA = 0.99
"""With moments in bfloat16. Neighbours lie up to 2^-7 of the value apart, so a change below 2^-8 of it can round away."""


@dataclass(frozen=True)
class Optimizer:
    """AdamW (Loshchilov and Hutter 2017) with clipping by global norm.

    R1's betas, decay, clipping and schedule were not published: the defaults are V3's pre-training values (arXiv 2412.19437,
    section 4.2) with a constant rate after a short warm-up.
    """

    lr: float = 3e-6
    """Peak learning rate. R1 used 3e-6 for RL (Nature 2025, Methods)."""
    lr_end: float | None = None
    """Rate at the last step of a cosine decay; None holds ``lr``."""
    warmup_steps: int = 10
    """Unpublished for R1. Linear from 0."""
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    moments_dtype: Literal["float32", "bfloat16"] = "float32"
    """How both moments are held between updates; they are computed in float32. V3 holds them in bfloat16 (arXiv 2412.19437,
    section 3.3.3), R1's choice is unpublished."""
    weight_decay: float = 0.1
    """Applied to matrices only, not to norms, biases and embeddings. Unpublished for R1."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this global norm; 0 switches clipping off. Unpublished for R1."""

    def __post_init__(self):
        if self.lr < 0 or self.weight_decay < 0 or self.clip_norm < 0 or self.warmup_steps < 0:
            raise ConfigError("optimizer.lr, weight_decay, clip_norm and warmup_steps must be >= 0")
        if self.lr_end is not None and self.lr_end < 0:
            raise ConfigError(f"optimizer.lr_end is {self.lr_end}; it must be >= 0, or None for a constant rate")
        if not (0 <= self.b1 < 1 and 0 <= self.b2 < 1 and self.eps > 0):
            raise ConfigError("optimizer.b1 and b2 must be in [0, 1) and eps above 0")
        if self.moments_dtype == "bfloat16" and (slow := max(self.b1, self.b2)) > LARGEST_BETA:
            raise ConfigError(
                f"optimizer.moments_dtype is bfloat16, whose 8 bits may not tell a moment from {slow:g} of it (b1 or b2), so "
                f"that it would never fall; use at most {LARGEST_BETA}, or float32"
            )


@dataclass(frozen=True)
class Eval:
    """Held-out evaluation during training. Safe to change on resume."""

    every: int = 50
    """Steps between evaluations; one is made before the first step and one after the last. 0 switches it off."""
    sources: tuple[Source, ...] = ()
    """Held-out rows; empty takes the training sources' ``test`` split."""
    limit: int = 512
    """Problems per source."""
    samples: int = 1
    """Answers per problem; pass@1 is the mean over them."""
    final_samples: int = 8
    """Answers per problem before the first and after the last step, for pass@k beside pass@1."""
    greedy: bool = True
    """Before the first and after the last step, answer greedily too."""
    sampling: Sampling | None = None
    """None samples as in training."""

    def __post_init__(self):
        if self.every < 0 or self.limit < 1 or self.samples < 1 or self.final_samples < 1:
            raise ConfigError("eval.every must be >= 0; eval.limit, eval.samples and eval.final_samples at least 1")


@dataclass(frozen=True)
class Log:
    """What is shown and written. Safe to change on resume."""

    sample_every: int = 10
    """Steps between two samples shown on the terminal."""
    samples_per_step: int = 4
    """Rollouts written to samples.jsonl at each round; 0 writes none, -1 all."""
    expert_load_every: int = 10
    """Steps between two rows of experts.jsonl, the load of each expert in each layer; step 1 has one too. 0 writes none."""
    tensorboard: bool = True
    wandb: str | None = None
    """Project name; needs the extra ``wandb``."""

    def __post_init__(self):
        if self.sample_every < 0 or self.samples_per_step < -1:
            raise ConfigError("log.sample_every must be >= 0 and log.samples_per_step >= -1")
        if self.expert_load_every < 0:
            raise ConfigError("log.expert_load_every must be >= 0 (0 writes none)")


@dataclass(frozen=True)
class Checkpoint:
    """Safe to change on resume."""

    every: int = 100
    """Steps between saves; the last step is always saved."""
    keep: int = 2
    """Newest checkpoints kept, beside the best."""

    def __post_init__(self):
        if self.every < 1 or self.keep < 1:
            raise ConfigError("checkpoint.every and checkpoint.keep must be at least 1")


@dataclass(frozen=True)
class Export:
    """The policy as Hugging Face directories, RUN/exports/STEP, which other engines load while the run goes on. Safe to change
    on resume."""

    every: int = 0
    """Steps between them; the last step has one too. 0 writes none."""
    keep: int = 2
    """Newest ones kept."""
    dtype: Literal["bfloat16", "float32", "fp8"] | None = None
    """As in ``r1jax export``."""

    def __post_init__(self):
        if self.every < 0 or self.keep < 1:
            raise ConfigError("export.every must be >= 0 and export.keep at least 1")


@dataclass(frozen=True)
class Workers:
    """The processes that score answers. Safe to change on resume."""

    count: int = 2
    timeout: float = 3.0
    """Seconds one reward of one answer may take; then its worker is killed and replaced."""
    memory_gib: float = 2.0
    queue: int = 4096
    """Answers under way at once; more wait until some of these are scored."""
    max_error_share: float = 0.2
    """The run stops when more than this share of the scores of a round or of an evaluation failed."""

    def __post_init__(self):
        if self.count < 1 or self.queue < 1 or self.timeout <= 0 or self.memory_gib <= 0:
            raise ConfigError("workers.count and queue must be at least 1, workers.timeout and memory_gib above 0")
        if not 0 <= self.max_error_share <= 1:
            raise ConfigError(f"workers.max_error_share is {self.max_error_share}; it is a share, from 0 to 1")
