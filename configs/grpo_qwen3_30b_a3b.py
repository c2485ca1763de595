"""R1-Zero on Qwen3-30B-A3B-Base, a mixture of 128 experts: competition mathematics with answers that are whole numbers.

    r1jax train grpo_qwen3_30b_a3b                     # one node of 8 x H100
    r1jax train grpo_qwen3_30b_a3b --micro-batch 16    # two nodes

Device    8 GPUs of 80 GB; experts are split 8 ways, and float32 masters and moments rest on the host, 28 GiB for each device.
          Compiled for 8 x H100 (67.1 of 70.8 GiB at its peak). Not run here. Rows need the extra `parquet`.
Memory    50.0 GiB on each of 8, 35.7 GiB on each of 16: computed, the table that --dry-run prints.
Expected  unknown. 3 of 3 GRPO runs of Qwen3-30B-A3B collapsed without routing replay, and none with it
          (github.com/NVIDIA/Megatron-LM, issue 4168): 10 % of the routers of sampler and trainer disagreed. Here both are one
          forward pass, with the router in float32, and routes are replayed (routing_replay): watch sampler/logprob_diff_mean
          and sampler/route_disagreement. A token's routes are 384 bytes.

Against a collapse, beside the replay: one update a round; a token's weight is cut at 2 where sampler and trainer disagree
(importance_cap); the router is frozen, and no balance loss pulls at what feeds it. For more updates a round, Qwen's ratio of
whole sequences is meant to do even without replay (GSPO, arXiv 2507.18071): --minibatches 4 --ratio-level sequence
--clip-low 3e-4 --clip-high 4e-4.
"""

from r1jax.config import GQA, GRPO, Checkpoint, Engine, Eval, Mesh, Model, MoE, Optimizer, Rope, Sampling, Segment, Source, Text

MODEL = Model(  # as its config.json says, so that `r1jax plan` need not ask the Hub
    vocab_size=151_936,
    d_model=2048,
    d_ff=6144,
    segments=(Segment("moe", 48),),
    attention=GQA(n_heads=32, n_kv_heads=4, head_dim=128, qk_norm=True),
    moe=MoE(n_experts=128, top_k=8, d_ff=768, n_shared=0, scoring="softmax", bias=False),
    rope=Rope(theta=1_000_000.0),
)


def config() -> GRPO:
    return GRPO(
        init="Qwen/Qwen3-30B-A3B-Base",
        model=MODEL,
        text=Text(template="r1-zero"),
        sources=(
            Source(
                path="open-r1/DAPO-Math-17k-Processed",
                name="math",
                options={"config": "en", "fields": {"answer": "solution"}, "test_share": 0.02},
                rewards={"accuracy": 1.0, "format": 1.0},
            ),
        ),
        steps=200,
        questions=32,
        group=16,
        minibatches=1,
        routing_replay=True,
        kl_beta=0.0,
        importance_cap=2.0,
        frozen=("router",),
        bias_rate=0.0,
        balance_weight=0.0,
        optimizer=Optimizer(lr=1e-6, weight_decay=0.0, moments_dtype="bfloat16"),
        sampling=Sampling(max_new_tokens=2048, stop=("</answer>",)),
        engine=Engine(slots=128, max_prompt_tokens=512),
        sequence_length=2560,
        micro_batch=8,
        param_dtype="bfloat16",
        matmul_dtype="bfloat16",
        offload=("optimizer",),
        remat="layer",
        mesh=Mesh(expert=8, fsdp=0),
        eval=Eval(every=50, limit=256, final_samples=1),
        checkpoint=Checkpoint(every=50),
    )
