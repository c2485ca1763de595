"""R1-Zero on Qwen2.5-7B by adapters of rank 32 (LoRA), on one GPU: GSM8K's word problems.

    r1jax train one_card_7b_lora                          # 24 GB
    r1jax train one_card_7b_lora --engine.slots 64        # 48 GB
    r1jax train one_card_7b_lora --engine.slots 128       # 80 GB

Device    one GPU of 24, 48 or 80 GB. Not run here. Rows need the extra `parquet`.
Memory    computed, the table that --dry-run prints, where JAX has 0.92 of the card (GiB):

          card    micro_batch    at the most    optimizer    activations    on the host
          24 GB             3           22.0          0.6            6.0            0.0
          48 GB            14           44.0          0.6           28.0            0.0
          80 GB            16           48.0          0.6           32.0            0.0

          Weights are 14.5 GiB, held once in bfloat16: trainer and sampler share them. Twice as many slots do not fit 24 GB.
Expected  unknown: of these settings nothing was published. Qwen2.5-7B answers 85.4 % with four examples in the prompt
          (arXiv 2412.15115); without examples and in R1-Zero's format it begins lower.
"""

from r1jax.config import GRPO, Checkpoint, Engine, Eval, LoRA, Optimizer, Sampling, Source, Text


def config() -> GRPO:
    return GRPO(
        init="Qwen/Qwen2.5-7B",
        lora=LoRA(rank=32, alpha=32.0),
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
        optimizer=Optimizer(lr=1e-5, weight_decay=0.0),
        sampling=Sampling(max_new_tokens=1024, stop=("</answer>",)),
        engine=Engine(slots=16, max_prompt_tokens=512),
        sequence_length=2048,
        micro_batch="auto",
        param_dtype="bfloat16",
        matmul_dtype="bfloat16",
        remat="layer",
        eval=Eval(every=50, limit=512, final_samples=1),
        checkpoint=Checkpoint(every=100),
    )
