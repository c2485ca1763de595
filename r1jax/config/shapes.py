"""Models by size alone, for ``random:SHAPE``: what is measured on them needs no weights."""

from __future__ import annotations

from r1jax.config.base import ConfigError
from r1jax.config.model import GQA, MLA, Model, MoE, Rope, Segment

PREFIX = "random:"
_BF16 = {"dtype": "bfloat16", "matmul_dtype": "bfloat16", "param_dtype": "bfloat16"}
SHAPES = {
    "tiny": Model(
        vocab_size=264,
        d_model=32,
        d_ff=64,
        segments=(Segment("dense", 2),),
        attention=GQA(n_heads=2, n_kv_heads=2, head_dim=16),
    ),
    "135m-dense": Model(
        vocab_size=49_152,
        d_model=576,
        d_ff=1536,
        segments=(Segment("dense", 30),),
        attention=GQA(n_heads=9, n_kv_heads=3, head_dim=64),
        rope=Rope(theta=100_000.0),
        norm_eps=1e-5,
        tied=True,
    ),
    "1.5b-dense": Model(
        vocab_size=151_936,
        d_model=1536,
        d_ff=8960,
        segments=(Segment("dense", 28),),
        attention=GQA(n_heads=12, n_kv_heads=2, head_dim=128, qkv_bias=True),
        rope=Rope(theta=1_000_000.0),
        tied=True,
        **_BF16,
    ),
    "3b-moe": Model(
        vocab_size=129_280,
        d_model=1536,
        d_ff=6144,
        segments=(Segment("dense", 1), Segment("moe", 21)),
        attention=MLA(n_heads=16, kv_rank=512, nope_dim=128, rope_dim=64, v_dim=128),
        moe=MoE(n_experts=64, top_k=6, d_ff=384, n_shared=1, n_groups=8, top_groups=4, scale=2.5),
        rope=Rope(interleaved=True),
        **_BF16,
    ),
}
"""``135m-dense`` is SmolLM2-135M and ``1.5b-dense`` Qwen2.5-1.5B, the smallest that R1 was distilled into; ``3b-moe`` has
DeepSeek-V3's blocks, 3.08B parameters of which a token is multiplied with 0.73B."""


def random_shape(name: str) -> Model | None:
    """The model of ``random:SHAPE``; None for any other name.

    Raises:
      ConfigError: there is no such shape.
    """
    if not name.startswith(PREFIX):
        return None
    shape = name.removeprefix(PREFIX)
    if shape not in SHAPES:
        raise ConfigError(f"--model {name}: no shape {shape!r}; random: takes {', '.join(SHAPES)}")
    return SHAPES[shape]
