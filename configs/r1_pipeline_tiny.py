"""R1's whole recipe in miniature: R1-Zero, cold start, RL, rejection sampling, reward models, RL again, distillation, 2 cores.

    r1jax train r1_pipeline_tiny
    r1jax train r1_pipeline_tiny --run-dir RUN --rl1.clip-high 0.2     # runs RL-1 anew, and what depends on it

A mixture of experts learns to add two numbers from noisy traces whose words are English and Chinese by turns (``base``), as a
pretrained model might. The prompt names the language that the thought should be in. Then, after R1 (Nature 2025, Methods and
supplement B):

    zero          GRPO from the base: the right answer and the format, nothing about languages
    cold          the Zero policy's right answers whose thought is in one language
    dev1          SFT of the base on these
    rl1           GRPO with the language reward, clipped at 1 + 10
    rejection     RL-1's right and readable answers, joined with rows that are no reasoning
    sft2          SFT of the base, again from its beginning
    helpful       a reward model of pairs: a number in the language that is asked for is better than in the other
    safety        a reward model of labelled answers: a thought in two languages stands for harm
    rl2           GRPO at temperature 0.7 with all rules; in the last steps also prompts and scores of the reward models
    traces        the final model's answers
    student       a dense model on the traces; what it starts from (``student_base``) saw the same noisy rows as the base

Device    two cores of a CPU; about 25 minutes, guessed by the quickstart's times.
Memory    below 2 GiB.
Expected  accuracy rises in zero, the share of thoughts in the language that was asked for in rl1; no figures are known.
          Not run here to its end.
"""

from dataclasses import dataclass, field

from r1jax.config import (
    GQA,
    GRPO,
    MLA,
    SFT,
    Bill,
    Checkpoint,
    Engine,
    Eval,
    Log,
    Model,
    MoE,
    Optimizer,
    Pipeline,
    Preference,
    RejectionSampling,
    RewardModel,
    Sampling,
    Segment,
    Source,
    Text,
)

TEACHER = Model(
    vocab_size=264,
    d_model=128,
    d_ff=256,
    segments=(Segment("dense", 1), Segment("moe", 2)),
    attention=MLA(n_heads=4, kv_rank=32, nope_dim=32, rope_dim=16, v_dim=32),
    moe=MoE(n_experts=8, top_k=2, d_ff=128, n_shared=1),
    init_std=0.05,
)
STUDENT = Model(
    vocab_size=264,
    d_model=96,
    d_ff=256,
    segments=(Segment("dense", 2),),
    attention=GQA(n_heads=4, n_kv_heads=2, head_dim=24),
    init_std=0.05,
)
TASK = "r1jax.data.two_scripts:rows"
TEXT = Text(tokenizer="bytes", template="{{ prompt }}")
ENGINE = Engine(slots=512, max_prompt_tokens=16)
SAMPLING = Sampling(max_new_tokens=40)
LOG = Log(tensorboard=False)
CHECKPOINT = Checkpoint(every=20)
RULE = {"accuracy": 1.0, "format": 1.0}
ALL_RULES = {**RULE, "language": 1.0}
HELD_OUT = Source(path=TASK, name="held_out", split="test", rewards=ALL_RULES)
EVAL = Eval(every=10, sources=(HELD_OUT,), limit=512, final_samples=4, sampling=SAMPLING)  # one temperature for all stages
NOISY = Source(path=TASK, name="noisy", options={"noise": 0.3, "forget_carry": 0.5, "mixed": 0.4}, rewards={})


def prompts(rewards: dict[str, float], seed: int, limit: int | None = None) -> Source:
    return Source(path=TASK, name="sums", options={"seed": seed}, rewards=rewards, limit=limit)


def sft(**settings) -> SFT:
    shared = dict(
        text=TEXT, batch=128, sequence_length=64, micro_batch=64, engine=ENGINE, sampling=SAMPLING, log=LOG,
        checkpoint=CHECKPOINT, eval=Eval(every=10_000, sources=(HELD_OUT,), limit=512, final_samples=4),
    )  # fmt: skip
    return SFT(**shared | settings)


def from_scratch(model: Model, steps: int) -> SFT:
    return sft(model=model, sources=(NOISY,), steps=steps, optimizer=Optimizer(lr=3e-3, lr_end=3e-4, warmup_steps=20))


def on_rows_of(stage: str, init: str, steps: int) -> SFT:
    made = Source(path=f"stage:{stage}", name=stage, rewards={})
    return sft(init=init, sources=(made,), steps=steps, optimizer=Optimizer(lr=1e-3, lr_end=1e-4, warmup_steps=10))


def grpo(init: str, rewards: dict[str, float], seed: int, **settings) -> GRPO:
    shared = dict(
        steps=40, questions=32, group=16, minibatches=1, sequence_length=64, micro_batch=96, engine=ENGINE, sampling=SAMPLING,
        eval=EVAL, log=LOG, checkpoint=CHECKPOINT,
        # A run this short stays close to its start without the KL term and its extra pass.
        kl_beta=0.0,
        optimizer=Optimizer(lr=4e-4, lr_end=4e-5, warmup_steps=5, weight_decay=0.0),
    )  # fmt: skip
    return GRPO(**dict(init=init, sources=(prompts(rewards, seed),)) | shared | settings)


def judge(init: str, rows: str, **settings) -> RewardModel:
    """A reward model of what ``two_scripts`` thinks of answers."""
    return RewardModel(
        init=init, text=TEXT, sources=(Source(path=f"r1jax.data.two_scripts:{rows}", name=rows, rewards={}),),
        steps=40, batch=64, sequence_length=64, micro_batch=32, engine=ENGINE, sampling=SAMPLING, log=LOG,
        checkpoint=CHECKPOINT, optimizer=Optimizer(lr=1e-3, lr_end=1e-4, warmup_steps=5), eval=Eval(every=40, limit=256),
        **settings,
    )  # fmt: skip


def answers_of(init: str, seed: int, limit: int, **settings) -> RejectionSampling:
    return RejectionSampling(
        init=init, sources=(prompts(ALL_RULES, seed, limit),), keep=RULE, sampling=SAMPLING, engine=ENGINE, **settings
    )


@dataclass(frozen=True)
class R1(Pipeline):
    bill: Bill = field(
        default_factory=lambda: Bill(
            counterparts={
                "zero": "R1-Zero", "cold": "SFT data creation", "rejection": "SFT data creation",
                "dev1": "R1", "rl1": "R1", "sft2": "R1", "helpful": "R1", "safety": "R1", "rl2": "R1",
            }
        )
    )  # fmt: skip
    base: SFT = field(default_factory=lambda: from_scratch(TEACHER, steps=500))
    zero: GRPO = field(default_factory=lambda: grpo("base", RULE, seed=1, steps=60))
    cold: RejectionSampling = field(default_factory=lambda: answers_of("zero", seed=2, limit=1500))
    dev1: SFT = field(default_factory=lambda: on_rows_of("cold", "base", steps=100))
    rl1: GRPO = field(default_factory=lambda: grpo("dev1", ALL_RULES, seed=3, clip_high=10.0))
    rejection: RejectionSampling = field(
        default_factory=lambda: answers_of(
            "rl1", seed=4, limit=3000, join=(Source(path="r1jax.data.two_scripts:names", name="names", limit=800, rewards={}),)
        )
    )
    sft2: SFT = field(default_factory=lambda: on_rows_of("rejection", "base", steps=200))
    helpful: RewardModel = field(default_factory=lambda: judge("sft2", "preferences"))
    safety: RewardModel = field(default_factory=lambda: judge("sft2", "labels", form="pointwise", reads="response"))
    rl2: GRPO = field(
        default_factory=lambda: grpo(
            "sft2", ALL_RULES, seed=5, sampling=Sampling(temperature=0.7, max_new_tokens=40),
            sources=(
                prompts(ALL_RULES, seed=5),
                Source(path="r1jax.data.two_scripts:names", name="names", weight=0.25, rewards={"language": 1.0}),
                Source(path=TASK, name="plain", weight=0.25, options={"seed": 7}, rewards={"format": 1.0, "language": 1.0}),
            ),
            preference=(
                Preference(name="helpful", model="helpful", sources=("names",), last_steps=10),
                Preference(name="safety", model="safety", sources=("plain",), last_steps=10),
            ),
        )
    )  # fmt: skip
    traces: RejectionSampling = field(default_factory=lambda: answers_of("rl2", seed=6, limit=3000))
    student_base: SFT = field(default_factory=lambda: from_scratch(STUDENT, steps=300))
    student: SFT = field(default_factory=lambda: on_rows_of("traces", "student_base", steps=300))


def config() -> R1:
    return R1()
