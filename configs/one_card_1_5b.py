"""R1-Zero on Qwen2.5-1.5B, all weights, on one GPU: GSM8K's word problems.

    r1jax train one_card_1_5b --offload optimizer      # 24 GB
    r1jax train one_card_1_5b                          # 48 GB, 80 GB

Device    one GPU of 24, 48 or 80 GB. Not run here. Rows need the extra `parquet`.
Memory    computed, the table that --dry-run prints, where JAX has 0.92 of the card (GiB):

          card    micro_batch    at the most    optimizer    activations    on the host
          24 GB             8           22.0          0.0            7.6           17.3
          48 GB            13           43.7         17.3           12.1            0.0
          80 GB            16           46.4         17.3           14.8            0.0

          Weights are 2.9 GiB, the sampler's copy 2.9, gradients 8.6. The optimizer's are both moments and float32 weights;
          from the host they come a layer at a time. --optimizer.moments-dtype bfloat16 makes them 11.5.
Expected  unknown: of these settings nothing was published. eval/pass@1 before the first step says where it begins.
"""

from r1jax.config import GRPO, Checkpoint, Engine, Eval, Optimizer, Sampling, Source, Text


def config() -> GRPO:
    return GRPO(
        init="Qwen/Qwen2.5-1.5B",
        text=Text(template="r1-zero"),
        sources=(
            Source(
                path="openai/gsm8k",
                name="gsm8k",
                options={"config": "main", "fields": {"prompt": "question"}, "answer_pattern": "#### (.+)"},
                rewards={"accuracy": 1.0, "format": 1.0},
            ),
        ),
        steps=200,
        questions=32,
        group=8,
        minibatches=1,
        kl_beta=0.0,
        optimizer=Optimizer(lr=1e-6, weight_decay=0.0),
        sampling=Sampling(max_new_tokens=1024, stop=("</answer>",)),
        engine=Engine(slots=64, max_prompt_tokens=512),
        sequence_length=2048,
        micro_batch="auto",
        param_dtype="bfloat16",
        matmul_dtype="bfloat16",
        remat="layer",
        eval=Eval(every=50, limit=512, final_samples=1),
        checkpoint=Checkpoint(every=100),
    )
