"""A stage of the recipe, and a pipeline of named stages."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from r1jax.config.base import ConfigError
from r1jax.config.critic import Critic
from r1jax.config.data import Source, Text
from r1jax.config.guards import Guards, Watchdog
from r1jax.config.lora import LoRA
from r1jax.config.mesh import Mesh
from r1jax.config.model import AttentionKernel, DType, MatmulDType, Model, Remat
from r1jax.config.preference import Preference
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
    """Regular expressions; parameters whose path (``segments/0/attention/q``) matches one are not trained, and a router's bias
    does not move either."""
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
        scored = () if isinstance(self, RewardModel) else scored
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
class RewardModel(Stage):
    """A reward model: a policy's trunk with a scalar head, which gives an answer a number. R1's settings are the defaults
    (Nature 2025, Methods): the helpful one learned from 66,000 pairs, the safety one from 106,000 labelled answers."""

    form: Literal["pairwise", "pointwise"] = "pairwise"
    """``pairwise``: rows have ``chosen`` and ``rejected``, and perhaps a ``margin`` (``r1jax data pairs`` makes such). The
    value is a score without scale or zero. ``pointwise``: rows have ``completion`` and ``label``, 1 good (safe) or 0 bad. The
    value is the log-odds that it is good, and as a reward the probability."""
    reads: Literal["summary", "response"] = "summary"
    """``summary`` leaves the thought out, so as not to disturb the reasoning: R1's helpful model; ``response`` is the whole
    turn, for harm may stand in the thought too: its safety model."""
    batch: int = 256
    """Pairs, or labelled answers, per update."""
    sequence_length: int = 16_384
    """Length of a packed row, which must hold both answers of a pair, each with the prompt: R1 trained on at most 8,192 tokens
    each. Longer ones are left out and counted. What is scored later may be longer."""
    margin: float = 0.0
    """The better answer must be ahead by this times the row's ``margin`` (Llama 2, arXiv 2307.09288, eq. 2); 0, as R1, asks it
    only to be ahead."""
    length_balance: float = 0.02
    """R1 matched the lengths of chosen and rejected answers over the data set, so that length earns nothing. A pair that would
    take their mean lengths so far apart, as a share of the mean, is left out and counted. 0 takes every pair."""
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(lr=6e-6))
    eval: Eval = field(default_factory=lambda: Eval(every=0))
    """Of held-out rows; only ``every``, ``sources`` and ``limit`` count."""
    kind: Literal["reward_model"] = "reward_model"

    def __post_init__(self):
        super().__post_init__()
        if self.batch < 1:
            raise ConfigError(f"batch is {self.batch}; it must be at least 1")
        if self.margin < 0 or not 0 <= self.length_balance < 1:
            raise ConfigError("margin must be >= 0 and length_balance in [0, 1)")
        if self.form == "pointwise" and self.margin:
            raise ConfigError(f"margin is {self.margin}, but form 'pointwise' has no pairs; set it to 0")
        if self.lora.rank:
            raise ConfigError(f"lora.rank is {self.lora.rank}, but a reward model, with its new head, is trained whole; use 0")
        if self.export.every:
            raise ConfigError("export.every is set, but a reward model is no model that other engines load; set it to 0")


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
    advantage: Literal["group", "gae", "none"] = "group"
    """``group`` compares the answers to a question (GRPO); ``gae`` is PPO (arXiv 1707.06347): a ``critic`` says what was to be
    expected, and ``group`` may be 1; ``none`` is the ``teacher`` alone, rewards are only measured."""
    gae_lambda: float = 1.0
    """Of ``gae`` (arXiv 1506.02438, eq. 16): 1 weighs a token by all that came after it less its value; R1's authors found 0.95
    much worse (arXiv 2501.12948v2, A.3)."""
    gamma: float = 1.0
    """Of ``gae``: what a reward is worth a token earlier."""
    critic: Critic = field(default_factory=Critic)
    kl_in_reward: bool = False
    """With ``gae``: kl_beta (log pi_old - log pi_ref) is taken off each token's reward, as in PPO for language models
    (arXiv 2203.02155, eq. 2), instead of k3 in the loss."""
    teacher: str = ""
    """A model whose log-probs of the sampled tokens the policy learns from, any name that ``--model`` takes, or an earlier
    stage's: on-policy distillation. Its tokenizer must be the policy's. '' has none."""
    teacher_weight: float = 1.0
    """log pi_teacher - log pi_old of each sampled token, times this, is added to its advantage: the gradient of the reverse KL
    per token, which looks no further than the token (GKD, arXiv 2306.13649, section 3 with divergence KL(student || teacher)
    on the student's own answers; "On-Policy Distillation", Thinking Machines 2025)."""
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
    dynamic_reward: str = ""
    """The reward by which ``dynamic_sampling`` compares, one that every source has: DAPO's is the accuracy (eq. 11), so that a
    group which differs in its lengths alone, by the reward ``overlong`` (eq. 13), has no signal. '' is the weighted sum."""
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
    preference: tuple[Preference, ...] = ()
    """Reward models whose scores join the rewards of sources: R1's preference rewards."""
    share_prompts: bool = True
    """Lay a question's prompt once beside its answers in the update, not once per answer. The same values and
    gradients; expert load and balance count the prompt's tokens once."""
    preflight: bool = True
    """Check rewards and signal before the first step."""
    kind: Literal["grpo"] = "grpo"

    def __post_init__(self):
        super().__post_init__()
        if self.group < 2 and self.advantage == "group":
            raise ConfigError(f"group is {self.group}; an advantage compares at least 2 answers to one question")
        if self.group < 1:
            raise ConfigError(f"group is {self.group}; every question needs at least 1 answer")
        self._check_objective()
        if self.questions < 1 or self.minibatches < 1:
            raise ConfigError("questions and minibatches must be at least 1")
        if min(self.clip_low, self.clip_high, self.kl_beta, self.importance_cap) < 0:
            raise ConfigError("clip_low, clip_high, kl_beta and importance_cap must be >= 0")
        if min(self.reference_every, self.dynamic_sampling) < 0:
            raise ConfigError("reference_every and dynamic_sampling must be >= 0")
        if self.partial_rollouts < 0:
            raise ConfigError(f"partial_rollouts is {self.partial_rollouts}; it must be >= 0 (0 waits for all answers)")
        self._check_preferences()
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

    def _check_objective(self):
        """Fields that stand for each other's meaning: advantages, dynamic sampling, length."""
        if self.advantage == "none" and not self.teacher:
            raise ConfigError("advantage is 'none' and there is no teacher: nothing would be learned; name a teacher")
        if self.teacher_weight < 0:
            raise ConfigError(f"teacher_weight is {self.teacher_weight}; it must be >= 0")
        if not 0 <= self.gae_lambda <= 1 or not 0 < self.gamma <= 1:
            raise ConfigError(f"gae_lambda {self.gae_lambda} must be in [0, 1], and gamma {self.gamma} above 0 and at most 1")
        if self.advantage == "gae" and self.lora.rank:
            raise ConfigError(
                f"advantage is 'gae' and lora.rank {self.lora.rank}: the critic has no adapters, all its weights are trained; "
                "set lora.rank to 0, or advantage to 'group'"
            )
        if self.kl_in_reward and (self.advantage != "gae" or not self.kl_beta):
            raise ConfigError("kl_in_reward puts kl_beta into tokens' rewards: set advantage to 'gae' and kl_beta above 0")
        if self.dynamic_sampling and self.advantage != "group":
            raise ConfigError(f"dynamic_sampling replaces groups, and advantage is {self.advantage!r}; set it to 0")
        if self.dynamic_reward and not self.dynamic_sampling:
            raise ConfigError("dynamic_reward is what dynamic_sampling compares by, which is 0; set that to 1 or more")
        for s in self.sources if self.dynamic_reward else ():
            if self.dynamic_reward not in s.rewards:
                raise ConfigError(f"dynamic_reward is {self.dynamic_reward!r}; source {s.name!r} has {', '.join(s.rewards)}")

    def _check_preferences(self):
        named, last_round = [s.name for s in self.sources], (self.steps - 1) // self.minibatches * self.minibatches
        for p in self.preference:
            if unknown := set(p.sources) - set(named):
                raise ConfigError(f"preference {p.name!r}: no source is called {min(unknown)!r}; there are {', '.join(named)}")
            if any(p.name in s.rewards for s in self.sources):
                raise ConfigError(f"preference {p.name!r}: a source has a reward of that name; give one of them another")
            if p.last_steps and self.steps - p.last_steps > last_round:
                raise ConfigError(
                    f"preference {p.name!r}: no round begins in the last {p.last_steps} of {self.steps} steps, for the last "
                    f"round makes {self.steps - last_round}; set last_steps to at least that, or 0"
                )
        if len({p.name for p in self.preference}) < len(self.preference):
            raise ConfigError(f"preferences share a name: {', '.join(p.name for p in self.preference)}; give each its own")
        if not any(s.weight > 0 and s.name not in self.deferred(0) for s in self.sources):
            raise ConfigError(
                "preference: every source waits for the last steps, so that none is left for the first ones; name the sources "
                "of general prompts alone, or set rows to 'always'"
            )

    def deferred(self, step: int) -> frozenset[str]:
        """The sources whose rows do not come yet in a round that begins at this step."""
        late = [p for p in self.preference if p.rows == "with it" and not p.counts(step, self.steps)]
        return frozenset(name for p in late for name in p.sources or [s.name for s in self.sources])

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
    source whose path is ``stage:NAME`` has the rows that an earlier ``RejectionSampling`` made. A ``preference`` of GRPO names
    an earlier ``RewardModel`` in the same way.
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
            starts = ("model", "reward model") if isinstance(stage, RewardModel) else ("model",)
            wanted = [("init", stage.init.partition("@")[0], starts)]
            if isinstance(stage, GRPO):
                wanted.append(("teacher", stage.teacher.partition("@")[0], ("model",)))
            if isinstance(stage, RejectionSampling) and not stage.rewrite.url:
                wanted.append(("rewrite.model", stage.rewrite.model.partition("@")[0], ("model",)))
            if isinstance(stage, GRPO):
                wanted += [(f"preference {p.name!r}", p.model.partition("@")[0], ("reward model",)) for p in stage.preference]
            wanted += [(f"source {s.name!r}", p.removeprefix(ROWS_OF), ("rows",)) for s, p in rows_of_stages(stage)]
            if isinstance(stage, Stage) and stage.eval.every and not stage.eval.sources:
                for s, path in rows_of_stages(stage):
                    if s.weight > 0 and not s.options.get("test_share"):
                        raise ConfigError(
                            f"{name}: {path} holds nothing out; name eval.sources, set the source's option test_share, or set "
                            "eval.every to 0"
                        )
            for where, other, kinds in wanted:
                if (kinds == ("rows",) and other not in found) or (other in stages and other not in found):
                    known = ", ".join(n for n in found if makes(stages[n]) in kinds) or "none"
                    raise ConfigError(f"{name}: {where} is {other!r}, which is no stage before it; there are: {known}")
                if other in found and makes(stages[other]) not in kinds:
                    said = {"rows": "rows", "model": "a model", "reward model": "a reward model"}[makes(stages[other])]
                    raise ConfigError(f"{name}: {where} is {other!r}, which makes {said}, no {kinds[0]}")
            found[name] = tuple(dict.fromkeys(other for _, other, _ in wanted if other in found))
        return found


def makes(stage: AnyStage) -> Literal["rows", "reward model", "model"]:
    """What a stage leaves."""
    if isinstance(stage, RejectionSampling):
        return "rows"
    return "reward model" if isinstance(stage, RewardModel) else "model"


def rows_of_stages(stage: AnyStage) -> list[tuple[Source, str]]:
    """The sources of a stage whose rows an earlier one makes, and their paths."""
    more = stage.join if isinstance(stage, RejectionSampling) else stage.eval.sources
    return [(s, s.path) for s in (*stage.sources, *more) if s.path.startswith(ROWS_OF)]


SAFE_TO_CHANGE = ("steps", "eval", "log", "checkpoint", "export", "workers", "guards", "watchdog", "preflight", "offload")
"""Fields of a stage that a resumed run may change; any other makes it another experiment."""


def safe_to_change(kind: str) -> tuple[str, ...]:
    """The fields of a stage of this kind that a resumed run may change."""
    return SAFE_FOR_ROWS if kind == "rejection_sampling" else SAFE_TO_CHANGE
