"""A stage of the recipe, and a pipeline of named stages."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from r1jax.config.base import ConfigError
from r1jax.config.data import Source, Text
from r1jax.config.guards import Guards, Watchdog
from r1jax.config.lora import LoRA
from r1jax.config.mesh import Mesh
from r1jax.config.model import AttentionKernel, DType, MatmulDType, Model, Remat
from r1jax.config.recipe import SAFE_FOR_ROWS, Bill, RejectionSampling
from r1jax.config.rollout import Engine, Sampling
from r1jax.config.train import Checkpoint, Eval, Export, Log, Optimizer, Workers


@dataclass(frozen=True)
class Stage:
    """What SFT and GRPO have in common."""

    model: Model | None = None
    """The architecture for ``init='random'``; other initial weights bring theirs, which this, unless None, must be."""
    init: str = "random"
    """``random``, or any model name: a run, ``RUN@STEP``, a GGUF file; inside a pipeline also an earlier stage's name."""
    text: Text = field(default_factory=Text)
    sources: tuple[Source, ...] = (Source(),)
    steps: int = 100
    """Updates."""
    optimizer: Optimizer = field(default_factory=Optimizer)
    sequence_length: int = 512
    """Length of a packed row. Longer sequences are left out and counted."""
    micro_batch: int | Literal["auto"] = "auto"
    """Packed rows in one forward and backward pass, over all devices. ``auto`` is as many as fit the memory that is free when
    the run begins. Gradients do not depend on it."""
    param_dtype: DType | None = None
    """How parameters are held. None is float32 for weights that were loaded, whatever their file has, and else the model's. In
    bfloat16 the optimizer keeps a float32 copy. With ``lora`` None is what the weights were released in."""
    dtype: DType | None = None
    """Activations between matrix products; None keeps the model's."""
    matmul_dtype: MatmulDType | None = None
    """Operands of matrix products; None keeps the model's. Sums are float32 either way. ``fp8``: see ``Model.matmul_dtype``."""
    attention_kernel: AttentionKernel | None = None
    """How packed rows attend; None keeps the model's choice."""
    remat: Remat | None = None
    """What the backward pass computes again; None keeps the model's choice."""
    capacity_factor: float | None = None
    """Room for the tokens that travel to experts on other devices; see ``Model.capacity_factor``. None keeps the model's, which
    drops nothing unless it says so."""
    overlap: Literal[1, 2] | None = None
    """Halves of a micro-batch that a layer computes side by side; see ``Model.overlap``. None keeps the model's choice."""
    offload: tuple[Literal["optimizer", "reference"], ...] = ()
    """What rests in the host's memory and comes to the device when it is used: the ``optimizer``'s moments and float32 weights
    (a layer at a time), the ``reference`` (while it scores). Values do not depend on it. Safe to change on resume."""
    bias_rate: float = 0.001
    """Step of the router's balancing bias (V3: 0.001; for R1 unpublished); 0 freezes it."""
    balance_weight: float = 0.0001
    """Weight of the sequence-wise balance loss (V3: 1e-4, arXiv 2412.19437, eq. 17; for R1 unpublished)."""
    mtp_weight: float = 0.1
    """Weight of the multi-token-prediction loss (V3: 0.3, then 0.1; for R1 unpublished)."""
    frozen: tuple[str, ...] = ()
    """Regular expressions; parameters whose path (``segments/0/attention/q``) matches one are not trained."""
    lora: LoRA = field(default_factory=LoRA)
    sampling: Sampling = field(default_factory=Sampling)
    engine: Engine = field(default_factory=Engine)
    mesh: Mesh = field(default_factory=Mesh)
    seed: int = 0
    eval: Eval = field(default_factory=Eval)
    log: Log = field(default_factory=Log)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    export: Export = field(default_factory=Export)
    workers: Workers = field(default_factory=Workers)
    guards: Guards = field(default_factory=Guards)
    watchdog: Watchdog = field(default_factory=Watchdog)

    def __post_init__(self):
        if self.steps < 1:
            raise ConfigError(f"steps is {self.steps}; a run needs at least 1")
        if not self.sources:
            raise ConfigError("sources is empty; name at least one source of rows")
        if len({s.name for s in self.sources}) < len(self.sources):
            raise ConfigError(f"sources share a name: {', '.join(s.name for s in self.sources)}; metrics are kept per name")
        held_out = self.eval.sources
        if len({s.name for s in held_out}) < len(held_out):
            raise ConfigError(f"eval.sources share a name: {', '.join(s.name for s in held_out)}; give each its own")
        for s in held_out:
            if any(s.name == other.name and s.rewards != other.rewards for other in self.sources):
                raise ConfigError(
                    f"eval.sources and sources both hold {s.name!r}, with other rewards; rewards are kept per name: give "
                    "one of them another name, or both the same rewards"
                )
        scored = (*(self.sources if self.eval.every and not held_out else ()), *held_out)
        for s in (*scored, *(self.sources if isinstance(self, GRPO) else ())):
            if not s.rewards:
                raise ConfigError(f"source {s.name!r} has no rewards; name one, for example {{'accuracy': 1.0}}")
        if sum(s.weight for s in self.sources) <= 0:
            raise ConfigError("every source has weight 0; give at least one a positive weight")
        if self.init == "random" and self.model is None:
            raise ConfigError("init is 'random' but model is None; set model, or name the weights to start from in init")
        if self.lora.rank and self.engine.weights != "same":
            raise ConfigError(
                f"engine.weights is {self.engine.weights!r} and lora.rank {self.lora.rank}: adapters stand beside kernels as "
                "the trainer holds them, not in 8 bits; set engine.weights to 'same', or lora.rank to 0"
            )
        if self.init == "random" and self.lora.rank:
            raise ConfigError(
                f"lora.rank is {self.lora.rank} but init is 'random'; adapters stand beside trained weights, so name these in "
                "init, or set lora.rank to 0"
            )
        if min(self.bias_rate, self.balance_weight, self.mtp_weight) < 0:
            raise ConfigError("bias_rate, balance_weight and mtp_weight must be >= 0")
        if (self.micro_batch != "auto" and self.micro_batch < 1) or self.sequence_length < 2:
            raise ConfigError("micro_batch must be at least 1, or auto, and sequence_length at least 2")


@dataclass(frozen=True)
class SFT(Stage):
    """Supervised fine-tuning: mean cross-entropy over the tokens of each row's ``completion``."""

    batch: int = 128
    """Sequences per update (R1: 128)."""
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(lr=5e-5, lr_end=5e-6))
    """R1's SFT stages: cosine from 5e-5 to 5e-6 (Nature 2025, supplement B.4.2)."""
    eval: Eval = field(default_factory=lambda: Eval(every=0))
    kind: Literal["sft"] = "sft"


@dataclass(frozen=True)
class GRPO(Stage):
    """Group relative policy optimization (arXiv 2402.03300), with R1's settings as defaults (Nature 2025, Methods).

    A round samples ``questions`` x ``group`` answers and makes ``minibatches`` updates of one inner epoch over them; R1: 512
    x 16 answers in 16 minibatches. A step is one update.
    """

    questions: int = 32
    """Questions per update."""
    group: int = 16
    """Answers per question."""
    minibatches: int = 16
    """Updates per round."""
    clip_low: float = 0.2
    """Ratios below 1 - clip_low are clipped. R1-Zero's value is unpublished; this is PPO's."""
    clip_high: float = 0.2
    """Ratios above 1 + clip_high are clipped. R1's first RL stage used 10."""
    kl_beta: float = 0.001
    """Weight of the k3 estimate of KL(policy || reference), a term of the loss. 0 keeps no reference. With ``lora`` the
    reference is the same weights with the adapters off, and after a refresh a copy of the adapters."""
    reference_every: int = 400
    """The reference becomes the policy every so many steps; 0 never."""
    normalize: Literal["sequence", "token", "constant"] = "sequence"
    """``sequence``: mean over an answer's tokens, then over answers (DeepSeekMath, R1); ``token``: mean over all tokens
    (DAPO, arXiv 2503.14476); ``constant``: sum over tokens by the length cap (Dr. GRPO, arXiv 2503.20783)."""
    ratio_level: Literal["token", "sequence"] = "token"
    """``sequence`` is GSPO (arXiv 2507.18071)."""
    advantage_std: bool = True
    """Divide by the group's sample standard deviation (ddof 1, as TRL and verl; unpublished for R1); Dr. GRPO does not."""
    old_logprobs: Literal["trainer", "sampler"] = "trainer"
    """Whose log-probs of the sampled tokens stand for pi_old. ``trainer`` computes them once per round, by the weights at its
    beginning. Where others sampled, the policy is still clipped against these, and ``importance_cap`` corrects for the rest
    (decoupled PPO: arXiv 2110.00641; so AReaL, arXiv 2505.24298). ``sampler`` takes what was recorded with each token."""
    importance_cap: float = 0.0
    """Weights tokens by min(pi_old / pi_sampler, cap) (truncated importance sampling); 0 switches it off. pi_sampler is of the
    weights that sampled the token."""
    dynamic_sampling: int = 0
    """Replace groups whose answers all earn the same by answers to the next questions, at most so many times a round (after
    DAPO, arXiv 2503.14476, section 3.2); those that are left then count as they are. 0 never does, as R1."""
    one_step_off_policy: bool = False
    """Sample the next round's answers with the weights from before this round's updates, so that sampling and updates need not
    wait for each other (arXiv 2410.18252; so verl's ``one_step_off_policy``). The first round of a run, and what
    ``dynamic_sampling`` asks for, come from the newest weights."""
    partial_rollouts: float = 0.0
    """Ask so many more questions than a round needs, as a share of these, and end the sampling once enough groups are whole;
    the other answers keep their tokens and go on in the next round, under its weights (APRIL, arXiv 2509.18521; Kimi k1.5,
    arXiv 2501.12599, section 2.6.2). 0 waits for all answers, as R1. An answer keeps the cap of the step at which it began."""
    length_schedule: tuple[tuple[int, int], ...] = ()
    """(step, cap) pairs: from that step on, answers may have ``cap`` tokens (R1-Zero: 32768, then 65536 from step 8200)."""
    routing_replay: bool = False
    """Send every token of the update, for pi and pi_old, to the experts that the rollout sent it to (R3, arXiv 2510.11370).
    Switch it on for a mixture of experts in bfloat16: where sampler and trainer round apart, tokens change experts; 3 of 3 runs
    of Qwen3-30B-A3B collapsed without it (github.com/NVIDIA/Megatron-LM, issue 4168). Gates and their gradients are computed as
    ever; the router's bias takes no part in replayed choices, and moves by the load of the recorded experts. An answer's last
    token, which the rollout never read, routes by itself, as do the reference (its weights did not sample; so slime) and the
    multi-token-prediction module. A token's routes take a byte per layer and chosen expert on the host (464 in V3), two past
    256 experts."""
    share_prompts: bool = True
    """Lay a question's prompt once beside its answers in the update, not once per answer. The same values and
    gradients; expert load and balance count the prompt's tokens once."""
    preflight: bool = True
    """Check rewards and signal before the first step."""
    kind: Literal["grpo"] = "grpo"

    def __post_init__(self):
        super().__post_init__()
        if self.group < 2:
            raise ConfigError(f"group is {self.group}; an advantage compares at least 2 answers to one question")
        if self.questions < 1 or self.minibatches < 1:
            raise ConfigError("questions and minibatches must be at least 1")
        if min(self.clip_low, self.clip_high, self.kl_beta, self.importance_cap) < 0:
            raise ConfigError("clip_low, clip_high, kl_beta and importance_cap must be >= 0")
        if min(self.reference_every, self.dynamic_sampling) < 0:
            raise ConfigError("reference_every and dynamic_sampling must be >= 0")
        if self.partial_rollouts < 0:
            raise ConfigError(f"partial_rollouts is {self.partial_rollouts}; it must be >= 0 (0 waits for all answers)")
        if self.off_policy and self.old_logprobs == "trainer" and not self.importance_cap:
            name = "one_step_off_policy" if self.one_step_off_policy else "partial_rollouts"
            raise ConfigError(
                f"{name} learns from answers of older weights, and importance_cap is 0: set importance_cap (2) to weigh their "
                "tokens by pi_old / pi_sampler, or old_logprobs to 'sampler', which clips against the weights that sampled"
            )
        if self.sampling.temperature <= 0:
            raise ConfigError("sampling.temperature is 0: every answer of a group would be the same; use 1")
        rising = list(self.length_schedule) == sorted(self.length_schedule)
        if not rising or any(len(pair) != 2 or min(pair) < 0 or pair[1] < 1 for pair in self.length_schedule):
            raise ConfigError(f"length_schedule is {self.length_schedule}; give (step, cap) pairs in rising order of step")
        if (buckets := self.engine.buckets) and buckets[-1] < (longest := self.engine.max_prompt_tokens + self.max_cap):
            raise ConfigError(f"engine.buckets ends at {buckets[-1]}, but prompt and answer may have {longest} tokens; add it")
        if (need := self.engine.max_prompt_tokens + self.max_cap) > self.sequence_length:
            raise ConfigError(
                f"a prompt of {self.engine.max_prompt_tokens} tokens (engine.max_prompt_tokens) and an answer of "
                f"{self.max_cap} do not fit a packed row; set sequence_length to at least {need}"
            )

    @property
    def off_policy(self) -> bool:
        """Whether answers may come from weights before the round's."""
        return self.one_step_off_policy or self.partial_rollouts > 0

    @property
    def max_cap(self) -> int:
        """The longest answer that any step allows, in tokens."""
        return max([self.sampling.max_new_tokens] + [cap for _, cap in self.length_schedule])


AnyStage = Stage | RejectionSampling
ROWS_OF = "stage:"
"""Before the name of an earlier stage in a source's path: the rows that it made."""


@dataclass(frozen=True)
class Pipeline:
    """Named stages, run in the order of the fields. Subclass it and give each stage a field.

    A stage whose ``init`` is the name of an earlier one (or NAME@STEP, NAME@best) starts from that one's last checkpoint, and a
    source whose path is ``stage:NAME`` has the rows that an earlier ``RejectionSampling`` made.
    """

    seed: int | None = None
    """Replaces the seed of every stage."""
    bill: Bill = field(default_factory=Bill)

    def stages(self) -> dict[str, AnyStage]:
        found = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        stages = {name: stage for name, stage in found.items() if isinstance(stage, AnyStage)}
        if self.seed is not None:
            stages = {name: dataclasses.replace(stage, seed=self.seed) for name, stage in stages.items()}
        return stages

    def inputs(self) -> dict[str, tuple[str, ...]]:
        """Stage -> the earlier stages whose model or rows it takes.

        Raises:
          ConfigError: a stage wants the model of one that makes rows, the rows of one that makes none, or what a stage makes
            that does not come before it.
        """
        stages, found = self.stages(), {}
        for name, stage in stages.items():
            wanted = [("init", stage.init.partition("@")[0], False)]
            if isinstance(stage, RejectionSampling) and not stage.rewrite.url:
                wanted.append(("rewrite.model", stage.rewrite.model.partition("@")[0], False))
            wanted += [(f"source {s.name!r}", p.removeprefix(ROWS_OF), True) for s, p in rows_of_stages(stage)]
            if isinstance(stage, Stage) and stage.eval.every and not stage.eval.sources:
                for s, path in rows_of_stages(stage):
                    if s.weight > 0 and not s.options.get("test_share"):
                        raise ConfigError(
                            f"{name}: {path} holds nothing out; name eval.sources, set the source's option test_share, or set "
                            "eval.every to 0"
                        )
            for where, other, rows in wanted:
                if (rows and other not in found) or (other in stages and other not in found):
                    known = ", ".join(n for n in found if isinstance(stages[n], RejectionSampling) == rows) or "none"
                    raise ConfigError(f"{name}: {where} is {other!r}, which is no stage before it; there are: {known}")
                if other in found and isinstance(stages[other], RejectionSampling) != rows:
                    makes = "a model, no rows" if rows else "rows, no model"
                    raise ConfigError(f"{name}: {where} is {other!r}, which makes {makes}")
            found[name] = tuple(dict.fromkeys(other for _, other, _ in wanted if other in found))
        return found


def rows_of_stages(stage: AnyStage) -> list[tuple[Source, str]]:
    """The sources of a stage whose rows an earlier one makes, and their paths."""
    more = stage.join if isinstance(stage, RejectionSampling) else stage.eval.sources
    return [(s, s.path) for s in (*stage.sources, *more) if s.path.startswith(ROWS_OF)]


SAFE_TO_CHANGE = ("steps", "eval", "log", "checkpoint", "export", "workers", "guards", "watchdog", "preflight", "offload")
"""Fields of a stage that a resumed run may change; any other makes it another experiment."""


def safe_to_change(kind: str) -> tuple[str, ...]:
    """The fields of a stage of this kind that a resumed run may change."""
    return SAFE_FOR_ROWS if kind == "rejection_sampling" else SAFE_TO_CHANGE
