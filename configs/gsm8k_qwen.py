"""GRPO on GSM8K's word problems from Qwen2.5-Instruct, with its own chat template.

    r1jax train gsm8k_qwen                                     # 0.5B
    r1jax train gsm8k_qwen --init Qwen/Qwen2.5-1.5B-Instruct   # or Qwen/Qwen2.5-3B-Instruct

Device    one 80 GB GPU for every size; 48 GB hold 1.5B, 24 GB 0.5B. Not run here. Rows need the extra `parquet`.
Memory    3B 68.0 GiB, 1.5B 35.5 GiB, 0.5B 12.9 GiB: computed, the table that --dry-run prints. Weights, float32 masters,
          moments and the sampler's copy are 46.0, 23.0 and 7.4 GiB of it. For another GPU: --micro-batch, --engine.slots.
Expected  accuracy on the test split, 1319 problems: 0.5B from 0.496 to 0.567 (PPO) or 0.543 (GRPO), 1.5B to 0.779, 3B to
          0.861 (GRPO), as verl publishes (verl.readthedocs.io, algorithm baselines). Its GRPO trains adapters of rank 32
          (LoRA), not all weights as here; 0.496 is Qwen's figure, with examples in the prompt, so that eval/greedy before the
          first step may be lower.

Rewards: only the right answer, for these models keep to the box that they are asked for. A base model wants another text:
--init Qwen/Qwen2.5-1.5B --text.template r1-zero --text.system None --sampling.stop '</answer>'.
"""

from r1jax.config import GRPO, Checkpoint, Engine, Eval, Optimizer, Sampling, Source, Text


def config() -> GRPO:
    return GRPO(
        init="Qwen/Qwen2.5-0.5B-Instruct",
        # The sentence that Qwen's own evaluations ask with; without a box, the whole text would have to be the number.
        text=Text(template="chat", system="Please reason step by step, and put your final answer within \\boxed{}."),
        sources=(
            Source(
                path="openai/gsm8k",
                name="gsm8k",
                options={"config": "main", "fields": {"prompt": "question"}, "answer_pattern": "#### (.+)"},
                rewards={"accuracy": 1.0},
            ),
        ),
        steps=230,
        questions=64,
        group=8,
        minibatches=1,
        kl_beta=0.0,
        optimizer=Optimizer(lr=1e-6, weight_decay=0.0),
        sampling=Sampling(max_new_tokens=512),
        engine=Engine(slots=128, max_prompt_tokens=384),
        sequence_length=2048,
        micro_batch=2,
        matmul_dtype="bfloat16",
        remat="layer",
        # The whole test split; its greedy accuracy is what others report.
        eval=Eval(every=50, limit=1319, final_samples=1),
        checkpoint=Checkpoint(every=100),
    )
