"""R1-Zero in miniature: a tiny mixture of experts learns to add, first from noisy traces, then by GRPO.

bash launch/local.sh quickstart
"""

from dataclasses import dataclass, field

from r1jax.config import (
    GRPO,
    MLA,
    SFT,
    Checkpoint,
    Engine,
    Eval,
    Log,
    Model,
    MoE,
    Optimizer,
    Pipeline,
    Sampling,
    Segment,
    Source,
    Text,
)

MODEL = Model(
    vocab_size=264,
    d_model=128,
    d_ff=256,
    segments=(Segment("dense", 1), Segment("moe", 2)),
    attention=MLA(n_heads=4, kv_rank=32, nope_dim=32, rope_dim=16, v_dim=32),
    moe=MoE(n_experts=8, top_k=2, d_ff=128, n_shared=1),
    init_std=0.05,
)
TEXT = Text(tokenizer="bytes", template="{{ prompt }}")
ENGINE = Engine(slots=512, max_prompt_tokens=8)
SAMPLING = Sampling(max_new_tokens=16)
EVAL = Eval(every=10, final_samples=8)


def source(**mistakes: float) -> Source:
    return Source(path="r1jax.data.arithmetic:rows", name="arithmetic", options=mistakes)


@dataclass(frozen=True)
class Quickstart(Pipeline):
    sft: SFT = field(
        default_factory=lambda: SFT(
            model=MODEL,
            text=TEXT,
            sources=(source(noise=0.38, forget_carry=0.55),),
            steps=380,
            batch=128,
            sequence_length=64,
            micro_batch=48,
            optimizer=Optimizer(lr=3e-3, lr_end=3e-4, warmup_steps=20),
            engine=ENGINE,
            sampling=SAMPLING,
            log=Log(tensorboard=False),
            checkpoint=Checkpoint(every=1000),
        )
    )
    grpo: GRPO = field(
        default_factory=lambda: GRPO(
            init="sft",
            sources=(source(),),
            steps=50,
            questions=32,
            group=16,
            minibatches=1,
            sequence_length=64,
            micro_batch=96,
            kl_beta=0.0,
            optimizer=Optimizer(lr=4e-4, lr_end=4e-5, warmup_steps=5, weight_decay=0.0),
            engine=ENGINE,
            sampling=SAMPLING,
            eval=EVAL,
        )
    )


def config() -> Quickstart:
    return Quickstart()
