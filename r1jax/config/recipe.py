"""What the recipe has beside training: a stage that makes rows, and what a pipeline costs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from r1jax.config.base import ConfigError
from r1jax.config.data import Source, Text
from r1jax.config.guards import Watchdog
from r1jax.config.mesh import Mesh
from r1jax.config.model import DType, MatmulDType
from r1jax.config.rollout import Engine, Sampling
from r1jax.config.train import Workers


@dataclass(frozen=True)
class Readable:
    """What a thought must be like to be trained on. R1 left out mixed languages, long paragraphs and code blocks (Nature 2025,
    supplement B.3.3); the limits were not published. None or 0 or false asks nothing."""

    language: float | None = 0.9
    """The least share of the thought's words that are in the target language, as the reward ``language`` counts them."""
    paragraph: int = 400
    """The most words of a paragraph, which ends at an empty line; 1.6 characters of a script without spaces are a word."""
    code: bool = True
    """No fenced code block in the thought."""
    repetition: float = 0.2
    """The largest share of the turn's runs of ``repeated_words`` words and signs that stood earlier in it."""
    repeated_words: int = 10

    def __post_init__(self):
        if self.language is not None and not 0 <= self.language <= 1:
            raise ConfigError(f"readable.language is {self.language}; it is a share, from 0 to 1")
        if self.paragraph < 0 or not 0 <= self.repetition <= 1 or self.repeated_words < 1:
            raise ConfigError("readable: paragraph must be >= 0, repetition in [0, 1] and repeated_words at least 1")


@dataclass(frozen=True)
class Rewrite:
    """A model that writes each kept answer again, as DeepSeek-V3 did for R1's cold start: thought and summary in the question's
    language, with the same result. What it makes must earn and read as the answer had to."""

    model: str = ""
    """'' rewrites nothing. With ``url`` the model as that endpoint calls it; else any name that ``--model`` takes, or an
    earlier stage's."""
    url: str = ""
    """An OpenAI-compatible endpoint, ``https://host/v1``."""
    api_key_env: str = ""
    """The environment variable that holds the endpoint's key."""
    template: str = ""
    """A file in which ``{question}``, ``{thought}``, ``{answer}`` and ``{language}`` are replaced, instead of the built-in
    text. The reply must hold the new turn as ``<think>...</think>`` and what follows it."""
    body: dict[str, Any] = field(default_factory=lambda: {"temperature": 0})
    """More of an endpoint's request."""
    cache: str = ""
    """A folder for an endpoint's replies; '' is ``~/.cache/r1jax/judge``."""
    timeout: float = 100.0
    """Seconds for one request to an endpoint."""
    retries: int = 4
    text: Text = field(default_factory=Text)
    """Template of a model that is loaded here."""
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.6, top_p=0.95, max_new_tokens=1024))
    engine: Engine = field(default_factory=lambda: Engine(max_prompt_tokens=1024))

    def __post_init__(self):
        if self.url and not self.model:
            raise ConfigError("rewrite.url is given without rewrite.model; name the model as the endpoint calls it")


@dataclass(frozen=True)
class RejectionSampling:
    """Answers of a model that are right and readable become rows to train on, ``RUN/rows.jsonl``: R1's rejection sampling, and
    with other settings its cold start (Nature 2025, supplement B.3).

    Every row of ``sources`` is asked ``samples`` times. An answer is kept that ended by itself, earns what ``keep`` says, is
    ``readable``, and satisfies the ``judge``; then near duplicates go, and what is over ``per_prompt`` and ``rows``.
    """

    init: str = ""
    """The model that answers: any name that ``--model`` takes; inside a pipeline also an earlier stage's."""
    text: Text = field(default_factory=Text)
    sources: tuple[Source, ...] = (Source(),)
    """The prompts, and the rewards that score answers to them. Every row is asked: ``limit`` bounds them, ``weight`` does not
    count."""
    join: tuple[Source, ...] = ()
    """Rows with a ``completion`` that are added as they are: R1 joined 200k that are no reasoning to its 600k."""
    samples: int = 4
    """Answers per prompt."""
    sampling: Sampling = field(default_factory=Sampling)
    style: Literal["sampled", "r1"] = "sampled"
    """``r1`` writes an answer in R1-Zero's form as ``<think>``, the thought, ``</think>`` and the answer without tags, as the
    template ``r1`` wants it of later stages."""
    keep: dict[str, float] = field(default_factory=dict)
    """Reward name -> the least value of an answer that is kept, where its source has that reward. Empty: 1 of each source's
    first reward."""
    readable: Readable = field(default_factory=Readable)
    judge: dict[str, float] = field(default_factory=dict)
    """As ``keep``, of rewards that are asked only of answers that all else would keep: ``judge{"url":...,"model":...}``."""
    dedupe: float = 0.8
    """Rows whose prompts and completions have at least this similarity are duplicates (see ``r1jax data dedupe``); 0 keeps
    them."""
    per_prompt: int = 1
    """Answers kept for a prompt, the first ones sampled."""
    rows: dict[str, int] = field(default_factory=dict)
    """Source name, of ``sources`` or ``join`` -> the most rows kept, drawn by ``seed``: a domain mix by counts. The weights of
    sources in the stage that trains on them mix too."""
    rewrite: Rewrite = field(default_factory=Rewrite)
    together: int = 256
    """Prompts that are asked at once; the answers are saved after each such batch."""
    param_dtype: DType | None = None
    """How the weights are held; None as they were trained or released."""
    dtype: DType | None = None
    matmul_dtype: MatmulDType | None = None
    engine: Engine = field(default_factory=Engine)
    mesh: Mesh = field(default_factory=Mesh)
    seed: int = 0
    workers: Workers = field(default_factory=Workers)
    watchdog: Watchdog = field(default_factory=Watchdog)
    kind: Literal["rejection_sampling"] = "rejection_sampling"

    def __post_init__(self):
        if not self.init or self.init == "random":
            raise ConfigError("init names no model that could answer; give a run, a directory, or an earlier stage's name")
        if not self.sources:
            raise ConfigError("sources is empty; name at least one source of prompts")
        names = [s.name for s in (*self.sources, *self.join)]
        if len(set(names)) < len(names):
            raise ConfigError(f"sources and join share a name: {', '.join(names)}; rows are counted per name")
        if self.samples < 1 or self.per_prompt < 1 or self.together < 1:
            raise ConfigError("samples, per_prompt and together must be at least 1")
        if self.dedupe and not 0.5 <= self.dedupe <= 1:
            raise ConfigError(f"dedupe is {self.dedupe}; it must be in [0.5, 1], or 0")
        if self.sampling.temperature == 0 and self.samples > 1:
            raise ConfigError(f"sampling.temperature is 0: all {self.samples} answers to a prompt would be the same; use 1")
        for s in self.sources:
            if not s.rewards:
                raise ConfigError(f"source {s.name!r} has no rewards; name one, for example {{'accuracy': 1.0}}")
            if self.keep and not self.keep.keys() & s.rewards.keys():
                raise ConfigError(
                    f"keep asks nothing of source {s.name!r}, which has {', '.join(s.rewards)}; name one of these"
                )
        if unknown := self.keep.keys() - {name for s in self.sources for name in s.rewards}:
            raise ConfigError(f"keep names {', '.join(sorted(unknown))}, which no source has among its rewards")
        if unknown := self.rows.keys() - set(names):
            raise ConfigError(f"rows names {', '.join(sorted(unknown))}, which is neither in sources nor in join")
        if any(n < 0 for n in self.rows.values()):
            raise ConfigError("rows: numbers of rows must be >= 0")

    def least(self, source: str) -> dict[str, float]:
        """Reward name -> the least value of a kept answer to a row of this source."""
        rewards = next(s.rewards for s in self.sources if s.name == source)
        return {n: v for n, v in self.keep.items() if n in rewards} or {next(iter(rewards)): 1.0}


COUNTERPARTS = ("R1-Zero", "SFT data creation", "R1")


@dataclass(frozen=True)
class Bill:
    """What a pipeline's ledger is computed with."""

    price_per_hour: float = 0.0
    """Of one device, in dollars; R1's authors reckoned with 2 for an H800. 0 leaves money out."""
    peak_tflops: float = 0.0
    """Of one device, for the utilisation; 0 leaves that out. An H800 has 989 in bfloat16."""
    counterparts: dict[str, Literal["R1-Zero", "SFT data creation", "R1"]] = field(default_factory=dict)
    """Stage -> the part of R1's bill (arXiv 2501.12948v2, appendix) that its hours are shown beside."""

    def __post_init__(self):
        if self.price_per_hour < 0 or self.peak_tflops < 0:
            raise ConfigError("bill.price_per_hour and bill.peak_tflops must be >= 0")


SAFE_FOR_ROWS = ("workers", "watchdog")
"""Fields of ``RejectionSampling`` that a resumed run may change."""
