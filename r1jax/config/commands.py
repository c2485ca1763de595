"""The arguments of each command of ``r1jax``. A class's first line is what ``r1jax --help`` shows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from r1jax.config.base import ConfigError
from r1jax.config.rollout import Sampling


@dataclass(frozen=True)
class Train:
    """Run a stage or a pipeline of stages.

    Every setting of the config is an option too: ``r1jax train CONFIG --help`` lists them with their values.
    """

    config: str
    """Name of a shipped config (``r1jax configs``) or path of a .py file."""
    run_dir: str | None = None
    """Where to write. A directory that holds a run is resumed; None makes runs/CONFIG-DATE-TIME."""
    dry_run: bool = False
    """Validate, show the memory table, one batch as text and the rewards of a gold answer, and stop."""


@dataclass(frozen=True)
class Generate:
    """Sample answers to one prompt or to a file of prompts.

    The sampling defaults are those of R1's evaluation (Nature 2025, supplement): temperature 0.6, top-p 0.95.
    """

    model: str
    """A run directory, RUN@STEP, RUN@best, or a GGUF file."""
    prompt: str | None = None
    """The text of one prompt."""
    prompts: Path | None = None
    """JSONL rows that hold ``prompt``: a string or a list of messages."""
    out: Path | None = None
    """JSONL to write: text, tokens, log-probs and finish reason of every answer; None prints the texts."""
    template: str = "auto"
    """``auto`` is the one the model was trained with; ``chat``, ``r1``, ``r1-zero``, ``none``, or Jinja text."""
    temperature: float = 0.6
    """0 is greedy."""
    top_p: float = 0.95
    max_new_tokens: int = 512
    samples: int = 1
    """Answers per prompt."""
    seed: int = 0
    stop: tuple[str, ...] = ()
    """Strings that end an answer, beside the tokenizer's end tokens."""

    def __post_init__(self):
        if (self.prompt is None) == (self.prompts is None):
            raise ConfigError("give either --prompt TEXT or --prompts FILE.jsonl")
        at_least_one("--samples", self.samples)
        _ = self.sampling

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_p, self.max_new_tokens, self.stop)


@dataclass(frozen=True)
class Score:
    """Log-probabilities of given tokens or texts under a model."""

    model: str
    """A run directory, RUN@STEP, RUN@best, or a GGUF file."""
    tokens: Path
    """int32 [B, T] as .npy, padded on the right with -1; or JSONL rows that hold ``text``."""
    out: Path
    """.npz to write: ``logprobs`` float32 [B, T-1], of token t+1 given the tokens up to t."""
    temperature: float = 1.0
    """Logits are divided by it."""

    def __post_init__(self):
        if self.temperature <= 0:
            raise ConfigError(f"--temperature is {self.temperature}; log-probs need a value above 0")


@dataclass(frozen=True)
class Evaluate:
    """pass@1, pass@k and cons@k of a model on held-out problems, with confidence intervals.

    The sampling defaults are those of R1's evaluation (Nature 2025, supplement): temperature 0.6, top-p 0.95.
    """

    model: str
    """A run directory, RUN@STEP, RUN@best, or a GGUF file."""
    tasks: tuple[str, ...]
    """Where problems come from: ``arithmetic``, a JSONL file, ``reasoning_gym:TASK``, ``pkg.mod:f`` or ``file.py:f``."""
    samples: int = 1
    """Answers per problem: the k of pass@k and cons@k."""
    limit: int = 512
    """Problems per task."""
    temperature: float = 0.6
    """0 is greedy."""
    top_p: float = 0.95
    max_new_tokens: int = 512
    seed: int = 0
    out: Path | None = None
    """JSONL to write: every answer with its score."""

    def __post_init__(self):
        if not self.tasks:
            raise ConfigError("--tasks is empty; name at least one")
        at_least_one("--samples", self.samples)
        at_least_one("--limit", self.limit)
        _ = self.sampling

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_p, self.max_new_tokens)


@dataclass(frozen=True)
class Samples:
    """Show the rollouts of a run."""

    run: Path
    """A run directory."""
    follow: bool = False
    """Go on as new ones are written."""
    where: tuple[str, ...] = ()
    """Only those for which all of these hold: ``NAME=VALUE``, ``NAME<NUMBER`` or ``NAME>NUMBER``, as in ``accuracy=0``."""
    last: int = 10
    """How many of the newest; 0 shows all."""

    def __post_init__(self):
        if self.last < 0:
            raise ConfigError(f"--last is {self.last}; it must be >= 0 (0 shows all)")


@dataclass(frozen=True)
class Configs:
    """List the configs that a bare name finds."""


@dataclass(frozen=True)
class Doctor:
    """Show devices, versions, memory and disk, and what is missing."""


def at_least_one(flag: str, value: int) -> None:
    if value < 1:
        raise ConfigError(f"{flag} is {value}; it must be at least 1")
