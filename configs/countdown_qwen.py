"""R1-Zero on Qwen2.5: a base model learns to make a number out of others.

    r1jax train countdown_qwen                            # 3B
    r1jax train countdown_qwen --init Qwen/Qwen2.5-1.5B   # or Qwen/Qwen2.5-0.5B

Device    one 80 GB GPU for every size; 24 GB hold 0.5B. Not run here.
Memory    3B 66.4 GiB, 1.5B 33.9 GiB, 0.5B 11.4 GiB: computed, the table that --dry-run prints. Weights, float32 masters,
          moments and the sampler's copy are 46.0, 23.0 and 7.4 GiB of it. For another GPU: --micro-batch, --engine.slots.
Expected  3B ends at about 0.60, as nano-aha-moment reports of its own 1000 rounds of 16 x 4 answers on one 80 GB GPU
          (github.com/McGill-NLP/nano-aha-moment). 0.5B does not learn to reason, as TinyZero reports
          (github.com/Jiayi-Pan/TinyZero). Where they start, and where 1.5B ends, was not published.

Questions, answers, length and rate are nano-aha-moment's. Departures: no KL term (there 0.001), for beside 3B the reference
leaves no room; R1-Zero's prompt, which begins no thought; problems of our own, of 3 to 4 numbers as in TinyZero's data set.
"""

from r1jax.config import GRPO, Checkpoint, Engine, Eval, Optimizer, Sampling, Source, Text


def config() -> GRPO:
    return GRPO(
        init="Qwen/Qwen2.5-3B",
        # The base models' tokenizer has a chat template that they were not trained with.
        text=Text(template="r1-zero"),
        sources=(
            Source(
                path="r1jax.data.countdown:rows",
                name="countdown",
                options={"numbers": [3, 4]},
                rewards={"r1jax.data.countdown:solved": 1.0, "format": 1.0},
            ),
        ),
        steps=1000,
        questions=16,
        group=4,
        minibatches=1,
        kl_beta=0.0,
        optimizer=Optimizer(lr=1e-6, weight_decay=0.0),
        # A base model goes on after its answer; the stop string ends it there.
        sampling=Sampling(max_new_tokens=1024, stop=("</answer>",)),
        engine=Engine(slots=128, max_prompt_tokens=256),
        sequence_length=2048,
        micro_batch=2,
        matmul_dtype="bfloat16",
        remat="layer",
        eval=Eval(every=100, final_samples=4),
        checkpoint=Checkpoint(every=200),
    )
