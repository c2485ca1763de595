"""R1-Zero as published: DeepSeek-V3-Base, 671B parameters, by GRPO on verifiable rewards alone, on 512 accelerators.

    r1jax plan r1_zero_671b --topology h800:512      # does it fit, what does a step take, what does it cost
    r1jax train r1_zero_671b                         # 64 nodes of 8 x H800

Device    512 of 80 GB or more: compiled for h800:512 and v5p:8x8x8, which hold it (r1jax/plan/README.md). Not run here. Rows
          need the extra `parquet`.
Memory    computed: the table that `r1jax plan` prints, with the settings that fit where these do not.
Expected  AIME 2024 pass@1 from 15.6 % to 77.9 % in 10,400 steps, answers from about 500 to about 14,200 tokens; about 198 hours
          on 512 H800, 101K GPU-hours (Nature 645, 633-638, 2025, Methods and figure 1; its supplement's cost table).

These are the first 8,200 steps, with answers of up to 32,768 tokens. The other 2,200 had 65,536 (whether the optimizer's state
was kept at the change is unpublished; here it begins anew), which needs devices of more memory or more of them:

    r1jax train r1_zero_671b --init RUN --steps 2200 --sampling.max-new-tokens 65536 --sequence-length 66560

Published for R1-Zero (Nature 2025, Methods): lr 3e-6, KL 0.001, temperature 1, 16 answers to each of 32 questions a step,
8,192 answers a rollout in 16 minibatches of one inner epoch, 32,768 tokens until step 8,200, the reference replaced every 400
steps, rewards for accuracy and format with equal weight. Lines that end in "unpublished" are choices of ours.
"""

from r1jax.config import CONFIG_671B, GRPO, Checkpoint, Engine, Eval, Mesh, Optimizer, Sampling, Source, Text, Workers


def config() -> GRPO:
    return GRPO(
        init="deepseek-ai/DeepSeek-V3-Base",
        model=CONFIG_671B,
        text=Text(template="r1-zero"),
        sources=(
            Source(
                path="agentica-org/DeepScaleR-Preview-Dataset",  # R1's 26K mathematics prompts are unpublished
                name="math",
                options={"test_share": 0.01},
                rewards={"accuracy": 1.0, "format": 1.0},
            ),
        ),
        steps=8_200,
        questions=32,
        group=16,
        minibatches=16,
        kl_beta=0.001,
        reference_every=400,
        clip_low=0.2,  # unpublished for R1-Zero
        clip_high=0.2,  # unpublished for R1-Zero
        routing_replay=True,  # unpublished
        importance_cap=2.0,  # unpublished
        bias_rate=0.0,  # unpublished
        balance_weight=0.0,  # unpublished
        mtp_weight=0.0,  # unpublished
        optimizer=Optimizer(lr=3e-6, moments_dtype="bfloat16"),  # moments as in V3; betas, decay, clipping unpublished
        sampling=Sampling(temperature=1.0, max_new_tokens=32_768),
        engine=Engine(slots=4096, max_prompt_tokens=1024, chunk=128, weights="fp8"),  # unpublished
        sequence_length=33_792,
        micro_batch=64,
        param_dtype="bfloat16",
        remat="offload",
        capacity_factor=1.25,  # V3 drops no token; here room is static: a quarter more than even loads need
        offload=("optimizer", "reference"),  # R1 offloaded what a phase does not use (supplement, B.1)
        mesh=Mesh(fsdp=1, expert=64, context=8),  # layout unpublished; a row lies within a node of 8
        eval=Eval(every=100, limit=512, final_samples=16),
        checkpoint=Checkpoint(every=100),
        workers=Workers(count=16),
    )
