"""R1-Zero on Qwen2.5-32B: what DeepSeek trained as DeepSeek-R1-Zero-Qwen-32B, on mathematics alone.

    r1jax train r1_zero_qwen_32b                                                  # 8 nodes of 8 x H800, H100 or A100
    sbatch --nodes=8 launch/slurm.sbatch r1_zero_qwen_32b                         # the same under SLURM

Device    64 GPUs of 80 GB, weights split 8 ways in a node. Not run here. Rows need the extra `parquet`.
Memory    37.1 GiB on each of 64: computed, as --dry-run does there.
Expected  AIME 2024 pass@1 47.0 %, cons@64 60.0 %, MATH-500 91.6 %, GPQA Diamond 55.0 %, LiveCodeBench 40.2 % after more than
          10,000 steps (arXiv 2501.12948v1, section 4.1) on mathematics, code and STEM; not the last two from mathematics alone,
          as here. On AIME 2024, DAPO reports 50 % from the same weights (arXiv 2503.14476).

Published (arXiv 2501.12948v2, appendix B.4.1): lr 2e-6, KL 0.001, temperature 1, 16 answers to each of 32 questions a step,
8,192 answers a rollout in 16 minibatches of one inner epoch, 32,768 tokens, the reference replaced every 400 steps. Lines that
end in "unpublished" are choices of ours.
"""

from r1jax.config import GRPO, Checkpoint, Engine, Eval, Mesh, Optimizer, Sampling, Source, Text, Workers


def config() -> GRPO:
    return GRPO(
        init="Qwen/Qwen2.5-32B",
        text=Text(template="r1-zero"),
        sources=(
            Source(
                path="open-r1/DAPO-Math-17k-Processed",  # the prompts are unpublished
                name="math",
                options={"config": "en", "fields": {"answer": "solution"}, "test_share": 0.02},
                rewards={"accuracy": 1.0, "format": 1.0},
            ),
        ),
        steps=10_000,
        questions=32,
        group=16,
        minibatches=16,
        kl_beta=0.001,
        reference_every=400,
        clip_low=0.2,  # unpublished
        clip_high=0.2,  # unpublished
        optimizer=Optimizer(lr=2e-6),  # betas, decay, clipping, warm-up: unpublished
        sampling=Sampling(temperature=1.0, max_new_tokens=32_768, stop=("</answer>",)),  # the stop string: unpublished
        engine=Engine(slots=96, max_prompt_tokens=1024, chunk=128),  # unpublished
        sequence_length=33_792,
        micro_batch=4,
        param_dtype="bfloat16",  # unpublished
        matmul_dtype="bfloat16",  # unpublished
        remat="layer",
        offload=("optimizer", "reference"),  # R1 offloaded what a phase does not use (appendix B.1)
        mesh=Mesh(fsdp=0, tensor=8, context=2),  # unpublished
        eval=Eval(every=100, limit=256, final_samples=16),
        checkpoint=Checkpoint(every=50),
        workers=Workers(count=16),
    )
