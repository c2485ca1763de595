"""All of DeepSeek-R1 as published, from DeepSeek-V3-Base to the six students, on 512 accelerators.

    r1jax plan r1_pipeline_671b --topology h800:512 --no-compile   # every stage's hours beside the published bill
    r1jax train r1_pipeline_671b --run-dir gs://BUCKET/r1          # 64 nodes of 8 x H800; given again it goes on

    zero        R1-Zero: GRPO from the base, the right answer and the format
    cold        its right and readable answers, written again by DeepSeek-V3: "thousands"
    dev1        SFT of the base on these
    rl1         GRPO with the language reward, clipped at 1 + 10
    rejection   its right answers, 600K of them, joined with 200K that are no reasoning
    sft2        SFT of the base, again from its beginning
    helpful     a reward model of pairs, which reads the summary alone
    safety      a reward model of labelled answers, which reads all of them
    rl2         GRPO at temperature 0.7 with all rules; in the last 400 of 1,700 steps general prompts and the reward models too
    qwen_1_5b ... llama_70b    the six students, by SFT on the rows of `rejection`

Device    512 of 80 GB or more. Not run here. Rows need the extras `parquet` and `reasoning-gym`.
Memory    computed: the tables that `r1jax plan` prints.
Expected  AIME 2024 pass@1 of 77.9 % after zero, 59.0 after dev1, 74.0 after rl1, 78.1 after sft2, 79.8 after rl2 (Nature 645,
          633-638, 2025, table 2); students 28.9 to 72.6 (arXiv 2501.12948v2, appendix B.4.3). With R1's own rows, which are not
          public: with those here it is unknown. 101K GPU-hours for zero, 5K for data, 41K for R1, $294K at $2 (the same, cost
          table).

Published (Nature 2025, Methods and supplement B; arXiv 2501.12948v2, appendix B): what a line does not call unpublished.
R1-Zero had 65,536 tokens from step 8,200 on, which 512 devices of 80 GB do not hold here: see r1_zero_671b. R1's prompts were
26K of mathematics, 17K of code, 22K of STEM and 15K of logic (supplement, B.3.1); public rows stand in for mathematics and
logic, and code and STEM, whose tests are not public, are left to rows of yours.
"""

import dataclasses
from dataclasses import dataclass, field

from r1jax.config import (
    CONFIG_671B,
    GRPO,
    SFT,
    Bill,
    Checkpoint,
    Mesh,
    Optimizer,
    Pipeline,
    Preference,
    RejectionSampling,
    RewardModel,
    Rewrite,
    Sampling,
    Source,
    Text,
)
from r1jax.config.loading import load_config

ZERO = load_config("r1_zero_671b")[1]
BASE = ZERO.init
R1 = Text(template="r1")
FORMAT = 'format{"style":"r1"}'
MATH = "agentica-org/DeepScaleR-Preview-Dataset"
LOGIC = "reasoning_gym:zebra_puzzles"  # R1's logic prompts hold such puzzles (supplement B.3.1)


# R1's pairs and labels are unpublished.
HELPFUL = Source(
    path="argilla/ultrafeedback-binarized-preferences", name="helpful", rewards={},
    options={"fields": {"prompt": "instruction", "chosen": "chosen_response", "rejected": "rejected_response"}},
)  # fmt: skip
SAFETY = Source(
    path="PKU-Alignment/BeaverTails@refs/convert/parquet", name="safety", rewards={},
    options={"files": "default/330k_train/*", "fields": {"completion": "response", "label": "is_safe"}},
)  # fmt: skip


def rules(right: str) -> dict[str, float]:
    """Equations 8 and 9 of a reasoning prompt, with equal weights."""
    return {right: 1.0, FORMAT: 1.0, "language": 1.0}


def prompts(math: int | None = None, logic: int | None = None) -> tuple[Source, ...]:
    """Both domains, with the rewards of R1's RL stages."""
    return (
        Source(path=MATH, name="math", limit=math, weight=26, options={"test_share": 0.01}, rewards=rules("accuracy")),
        Source(path=LOGIC, name="logic", limit=logic, weight=15, rewards=rules("reasoning_gym")),
    )


def rl(init: str, steps: int, **settings) -> GRPO:
    """R1's RL stages: R1-Zero's settings but for the clip."""
    kept = ("questions", "group", "minibatches", "kl_beta", "reference_every", "routing_replay", "importance_cap", "bias_rate",
            "balance_weight", "mtp_weight", "optimizer", "sampling", "engine", "sequence_length", "micro_batch", "param_dtype",
            "remat", "capacity_factor", "offload", "mesh", "eval", "checkpoint", "workers")  # fmt: skip
    shared = {name: vars(ZERO)[name] for name in kept} | {"clip_low": 10.0, "clip_high": 10.0, "sources": prompts()}
    return GRPO(init=init, text=R1, steps=steps, **shared | settings)


def sft(rows: str, steps: int) -> SFT:
    """Both SFT stages begin with the base."""
    return SFT(
        init=BASE,
        model=CONFIG_671B,
        text=R1,
        sources=(Source(path=f"stage:{rows}", name=rows, rewards={}),),
        steps=steps,
        batch=128,
        optimizer=Optimizer(lr=5e-5, lr_end=5e-6, moments_dtype="bfloat16"),  # betas, decay, warm-up: unpublished
        sequence_length=32_768,
        bias_rate=0.0,  # unpublished
        balance_weight=0.0,  # unpublished
        mtp_weight=0.0,  # unpublished
        micro_batch=64,
        param_dtype="bfloat16",
        remat="offload",
        capacity_factor=1.25,
        offload=("optimizer",),
        mesh=ZERO.mesh,  # layout unpublished
        checkpoint=Checkpoint(every=100),
    )


def answers_of(init: str, sources: tuple[Source, ...], **settings) -> RejectionSampling:
    return RejectionSampling(
        init=init, sources=sources, engine=ZERO.engine, mesh=ZERO.mesh, workers=ZERO.workers,
        sampling=Sampling(temperature=1.0, max_new_tokens=32_768), **settings,
    )  # fmt: skip


def judge(rows_of: Source, rows: int, **settings) -> RewardModel:
    """R1's rates, batch and one epoch are the defaults; what it began with is unpublished but for its architecture."""
    return RewardModel(
        init="sft2", text=R1, sources=(dataclasses.replace(rows_of, limit=rows),), steps=rows // 256,
        bias_rate=0.0, balance_weight=0.0, mtp_weight=0.0, micro_batch=64, param_dtype="bfloat16", remat="offload",
        capacity_factor=1.25, offload=("optimizer",), mesh=ZERO.mesh, optimizer=Optimizer(lr=6e-6, moments_dtype="bfloat16"),
        **settings,
    )  # fmt: skip


def general(rows_of: Source, weight: float) -> Source:
    """Prompts that a reward model judges, with the other terms of equation 10 and 8."""
    return dataclasses.replace(rows_of, weight=weight, rewards={FORMAT: 1.0, "language": 1.0})


def student(name: str, micro_batch: int = 64, **settings) -> SFT:
    """A student of its own config, on the rows made here and on 512 devices."""
    made = Source(path="stage:rejection", name="rejection", rewards={})
    return dataclasses.replace(
        load_config(f"distill_{name}")[1], sources=(made,), mesh=Mesh(fsdp=0, context=8), micro_batch=micro_batch,
        steps=25_150,  # two epochs of 804,745 rows at 64, as published
        **settings,
    )  # fmt: skip


@dataclass(frozen=True)
class R1Pipeline(Pipeline):
    bill: Bill = field(
        default_factory=lambda: Bill(
            price_per_hour=2.0,
            peak_tflops=989.0,
            counterparts={
                "zero": "R1-Zero", "cold": "SFT data creation", "rejection": "SFT data creation",
                "dev1": "R1", "rl1": "R1", "sft2": "R1", "rl2": "R1",
            },
        )
    )  # fmt: skip
    zero: GRPO = field(default_factory=lambda: dataclasses.replace(ZERO, steps=10_400))
    cold: RejectionSampling = field(
        default_factory=lambda: answers_of(
            "zero",
            (dataclasses.replace(prompts(math=5_000)[0], rewards=ZERO.sources[0].rewards),),  # "thousands"
            samples=4,  # several: unpublished
            style="r1",
            rewrite=Rewrite(model="deepseek-ai/DeepSeek-V3", text=Text(template="chat"), engine=ZERO.engine),
        )
    )
    dev1: SFT = field(default_factory=lambda: sft("cold", steps=80))  # 2 to 3 epochs
    # Unpublished: R1's 80 hours are about 4,200 of R1-Zero's steps, of which rl2 had 1,700.
    rl1: GRPO = field(default_factory=lambda: rl("dev1", steps=2_000))
    rejection: RejectionSampling = field(
        default_factory=lambda: answers_of(
            "rl1",
            prompts(math=40_000, logic=2_000),
            samples=16,  # unpublished
            per_prompt=16,
            dedupe=0.0,  # unpublished
            rows={"math": 395_285, "logic": 10_395, "general": 177_812},  # the published mix, as far as these rows go
            join=(
                # R1 took V3's own SFT rows: unpublished
                Source(path="allenai/tulu-3-sft-mixture", name="general", limit=177_812, rewards={}),
            ),
        )
    )
    sft2: SFT = field(default_factory=lambda: sft("rejection", steps=12_574))  # 2 epochs of 804,745 rows
    helpful: RewardModel = field(default_factory=lambda: judge(HELPFUL, rows=66_000))
    safety: RewardModel = field(default_factory=lambda: judge(SAFETY, rows=106_000, form="pointwise", reads="response"))
    rl2: GRPO = field(
        default_factory=lambda: rl(
            "sft2",
            steps=1_700,
            sampling=Sampling(temperature=0.7, max_new_tokens=32_768),
            sources=(*prompts(), general(HELPFUL, weight=66), general(SAFETY, weight=12)),
            preference=(
                Preference(name="helpful", model="helpful", sources=("helpful",), last_steps=400),
                Preference(name="safety", model="safety", sources=("safety",), last_steps=400),
            ),
            eval=dataclasses.replace(ZERO.eval, sources=(dataclasses.replace(prompts()[0], split="test"),)),
        )
    )
    qwen_1_5b: SFT = field(default_factory=lambda: student("qwen_1_5b"))
    qwen_7b: SFT = field(default_factory=lambda: student("qwen_7b"))
    qwen_14b: SFT = field(default_factory=lambda: student("qwen_14b"))
    qwen_32b: SFT = field(default_factory=lambda: student("qwen_32b"))
    llama_8b: SFT = field(default_factory=lambda: student("llama_8b"))
    llama_70b: SFT = field(default_factory=lambda: student("llama_70b"))


def config() -> R1Pipeline:
    return R1Pipeline()
