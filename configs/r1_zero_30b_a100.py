"""R1-Zero on a mixture of experts of 30B parameters on A100s, the size of R1's preparatory experiments.

    r1jax train r1_zero_30b_a100                                  # 8 nodes of 8 x A100 of 80 GB
    sbatch --nodes=8 launch/slurm.sbatch r1_zero_30b_a100         # the same under SLURM

Device    64 GPUs of 80 GB; experts are split 8 ways. Not run here. Rows need the extra `parquet`.
Memory    52.8 GiB on each of 64: computed, as --dry-run does there.
Expected  unknown. Published is that experiments before R1 used A100s and a model of about 30B parameters (arXiv 2501.12948v2);
          not which weights it began from, nor what came out. It was not released: this begins from Qwen3-30B-A3B-Base, of whose
          128 experts 8 see a token, and which is a year younger than V3-Base.

Of the settings, learning rate (3e-6), KL, temperature, group, questions, minibatches and reference are R1-Zero's (Nature 2025,
Methods), which was trained next; all others, and that this model had them, are unpublished. Routes are replayed and the router
is frozen for the reasons in `grpo_qwen3_30b_a3b`.
"""

import dataclasses

from r1jax.config import GRPO, Mesh, Optimizer
from r1jax.config.loading import load_config


def config() -> GRPO:
    _, base = load_config("r1_zero_qwen_32b")
    return dataclasses.replace(
        base,
        init="Qwen/Qwen3-30B-A3B-Base",
        optimizer=Optimizer(lr=3e-6),
        routing_replay=True,
        importance_cap=2.0,
        frozen=("router",),
        bias_rate=0.0,
        balance_weight=0.0,
        micro_batch=16,
        mesh=Mesh(fsdp=0, expert=8, context=4),
    )
