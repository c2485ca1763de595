"""DeepSeek-R1-Distill-Qwen-1.5B: Qwen2.5-Math-1.5B, fine-tuned on answers of R1.

    r1jax train distill_qwen_1_5b                       # one node of 8 x H800, H100 or A100

Device    8 GPUs of 80 GB. Not run here. Rows need the extra `parquet`.
Memory    18.3 GiB on each of 8: computed, the table that --dry-run prints.
Expected  with R1's own 800K samples: AIME 2024 pass@1 28.9 %, cons@64 52.7 %, MATH-500 83.9 %, GPQA Diamond 33.8 %,
          LiveCodeBench 16.9 %, Codeforces 954 (arXiv 2501.12948v1, table 5). The released weights, measured by open-r1:
          AIME 2024 30.7 %, MATH-500 83.1 %. Those samples are unpublished; with the public ones here it is unknown.

Published (arXiv 2501.12948v2, appendix B.4.3): lr 1e-4 with a cosine to a tenth of it, batch 64, 32,768 tokens, 2 to 3 epochs,
no RL. Lines that end in "unpublished" are choices of ours. Qwen2.5-Math was trained on 4,096 tokens; open-r1 first raised its
RoPE base to 300,000, here it stays. The other five students, `distill_*`, are this one with their own weights and rate.

Look at what it learned with `r1jax eval --tasks aime math-500 gpqa-diamond`, at R1's temperature of 0.6 and top-p of 0.95.
"""

from r1jax.config import SFT, Checkpoint, Mesh, Optimizer, Source, Text


def config() -> SFT:
    return SFT(
        init="Qwen/Qwen2.5-Math-1.5B",
        text=Text(template="r1"),  # the students' tokens of this form are R1's; here they are text: unpublished
        # 350K answers of R1 to mathematics, code and science, for the 800K samples: unpublished
        sources=(Source(path="open-r1/Mixture-of-Thoughts", name="r1", options={"config": "all"}),),
        steps=10_900,  # two epochs of these rows
        batch=64,
        optimizer=Optimizer(lr=1e-4, lr_end=1e-5),  # betas, decay, clipping, warm-up: unpublished
        sequence_length=32_768,
        micro_batch=8,
        param_dtype="bfloat16",  # unpublished
        matmul_dtype="bfloat16",  # unpublished
        remat="layer",
        mesh=Mesh(fsdp=0),  # unpublished
        checkpoint=Checkpoint(every=500),
    )
