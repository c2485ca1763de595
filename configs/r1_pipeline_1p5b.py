"""R1's recipe on Qwen2.5-1.5B with one GPU of 80 GB: GSM8K's word problems, and a 0.5B student.

    r1jax train r1_pipeline_1p5b --run-dir runs/r1_1p5b
    r1jax train r1_pipeline_1p5b --dry-run                # memory, a batch of each stage as text

    zero        GRPO from the base, the right answer and the format
    cold        its right and readable answers, in R1's form
    dev1        SFT of the base on these
    rl1         GRPO with the language reward, clipped at 1 + 10
    rejection   its right and readable answers
    sft2        SFT of the base, again from its beginning
    rl2         GRPO at temperature 0.7. Reward models about general prompts are left out: see r1_pipeline_671b
    student     Qwen2.5-0.5B on the rows of `rejection`
    on_policy   the same student further, by its own answers and the log-probs of rl2 (`GRPO.teacher`)

Device    one GPU of 80 GB. Not run here. Rows need the extra `parquet`.
Memory    computed, the tables that --dry-run prints: each stage of 1.5B is that of one_card_1_5b with a KL term or without.
Expected  unknown: of these settings nothing was published. Qwen2.5-1.5B-Instruct reaches 77.9 % on GSM8K after RL (verl).

Numbers of R1 that fit a model of this size are R1's (KL 0.001, clip 10, temperatures, the order of stages); rates, batches,
steps and lengths are choices of ours.
"""

from dataclasses import dataclass, field

from r1jax.config import GRPO, SFT, Bill, Checkpoint, Eval, Optimizer, Pipeline, RejectionSampling, Sampling, Source, Text
from r1jax.config.loading import load_config

CARD = load_config("one_card_1_5b")[1]
(GSM8K,) = CARD.sources
BASE, STUDENT = CARD.init, "Qwen/Qwen2.5-0.5B"
R1 = Text(template="r1")
RULES = {"accuracy": 1.0, 'format{"style":"r1"}': 1.0, "language": 1.0}
SHARED = {name: vars(CARD)[name] for name in ("sequence_length", "param_dtype", "matmul_dtype", "remat", "engine")}
ANSWER = Sampling(max_new_tokens=1024)
HELD_OUT = Source(path=GSM8K.path, name="held_out", split="test", options=GSM8K.options, rewards=RULES)
EVAL = Eval(every=50, sources=(HELD_OUT,), limit=512, final_samples=1)


def prompts(limit: int | None = None) -> Source:
    return Source(path=GSM8K.path, name="gsm8k", options=GSM8K.options, limit=limit, rewards=RULES)


def rl(init: str, steps: int, **settings) -> GRPO:
    given = dict(
        text=R1, sources=(prompts(),), questions=32, group=8, minibatches=4, kl_beta=0.001, clip_high=10.0, sampling=ANSWER,
        optimizer=Optimizer(lr=1e-6, weight_decay=0.0), checkpoint=Checkpoint(every=50), eval=EVAL,
    )  # fmt: skip
    return GRPO(init=init, steps=steps, **SHARED | given | settings)


def sft(rows: str, init: str, steps: int, lr: float) -> SFT:
    return SFT(
        init=init, text=R1, sources=(Source(path=f"stage:{rows}", name=rows, rewards={}),), steps=steps, batch=32,
        optimizer=Optimizer(lr=lr, lr_end=lr / 10), checkpoint=Checkpoint(every=200), sampling=ANSWER, **SHARED,
    )  # fmt: skip


@dataclass(frozen=True)
class OneCard(Pipeline):
    bill: Bill = field(
        default_factory=lambda: Bill(
            counterparts={
                "zero": "R1-Zero", "cold": "SFT data creation", "rejection": "SFT data creation",
                "dev1": "R1", "rl1": "R1", "sft2": "R1", "rl2": "R1",
            }
        )
    )  # fmt: skip
    zero: GRPO = field(
        default_factory=lambda: rl(
            BASE, 400, text=Text(template="r1-zero"), sources=(GSM8K,), clip_high=0.2, sampling=CARD.sampling,
            eval=Eval(every=50, limit=512, final_samples=1),
        )
    )  # fmt: skip
    cold: RejectionSampling = field(
        default_factory=lambda: RejectionSampling(
            init="zero", sources=(Source(path=GSM8K.path, name="gsm8k", options=GSM8K.options, limit=2000),),
            sampling=CARD.sampling, engine=CARD.engine, style="r1",
        )
    )  # fmt: skip
    dev1: SFT = field(default_factory=lambda: sft("cold", BASE, steps=100, lr=1e-5))
    rl1: GRPO = field(default_factory=lambda: rl("dev1", 200))
    rejection: RejectionSampling = field(
        default_factory=lambda: RejectionSampling(
            init="rl1", sources=(prompts(limit=7000),), sampling=ANSWER, engine=CARD.engine, samples=8, per_prompt=4
        )
    )
    sft2: SFT = field(default_factory=lambda: sft("rejection", BASE, steps=800, lr=1e-5))
    rl2: GRPO = field(default_factory=lambda: rl("sft2", 200, sampling=Sampling(temperature=0.7, max_new_tokens=1024)))
    student: SFT = field(default_factory=lambda: sft("rejection", STUDENT, steps=800, lr=2e-5))
    on_policy: GRPO = field(
        default_factory=lambda: rl("student", 100, teacher="rl2", advantage="none", group=1, questions=256, kl_beta=0.0)
    )


def config() -> OneCard:
    return OneCard()
