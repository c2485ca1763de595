"""The policy as a value: DeepSeek-V3's blocks and the dense families that R1 is distilled into.

Sizes are counts, lengths are tokens. Nothing here imports jax.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from r1jax.config.base import ConfigError

DType = Literal["float32", "bfloat16"]
MatmulDType = Literal["float32", "bfloat16", "fp8"]
AttentionKernel = Literal["auto", "reference", "chunked", "fused"]
Remat = Literal["none", "layer", "attention", "dots", "offload"]


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding (Su et al. 2021) and its long-context scalings."""

    theta: float = 10_000.0
    """Base of the geometric series of wavelengths."""
    interleaved: bool = False
    """True pairs adjacent channels (2i, 2i+1), as DeepSeek does; False pairs i with i + dim/2, as Llama does."""
    scaling: Literal["none", "yarn", "llama3"] = "none"
    factor: float = 1.0
    """How many times longer than ``original_length`` the context becomes."""
    original_length: int = 4096
    beta_fast: float = 32.0
    """YaRN (Peng et al. 2023): channels that turn more often than this over the original length are kept."""
    beta_slow: float = 1.0
    """YaRN: channels that turn less often than this are interpolated by ``factor``."""
    mscale: float = 1.0
    mscale_all_dim: float = 0.0
    """YaRN: cos and sin are multiplied by m(mscale)/m(mscale_all_dim), m(s) = 0.1 s ln(factor) + 1; the softmax
    scale of latent attention by m(mscale_all_dim) squared, as DeepSeek-V3's released code does."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    """Llama 3: wavelengths between original_length/high and original_length/low are blended."""


@dataclass(frozen=True)
class GQA:
    """Grouped-query attention (Ainslie et al. 2023)."""

    n_heads: int = 4
    n_kv_heads: int = 2
    head_dim: int = 32
    qkv_bias: bool = False
    """Qwen2 adds a bias to queries, keys and values."""
    qk_norm: bool = False
    """Qwen3 normalises each head's query and key."""
    kind: Literal["gqa"] = "gqa"


@dataclass(frozen=True)
class MLA:
    """Multi-head latent attention (DeepSeek-V2). The cache holds kv_rank + rope_dim numbers per token and layer."""

    n_heads: int = 4
    q_rank: int | None = None
    """Rank of the query latent; None projects the queries directly."""
    kv_rank: int = 32
    nope_dim: int = 32
    """Per-head query/key channels without position."""
    rope_dim: int = 16
    """Channels with position; the key's are shared by all heads."""
    v_dim: int = 32
    kind: Literal["mla"] = "mla"


@dataclass(frozen=True)
class MoE:
    """Mixture of experts with DeepSeek-V3's router (arXiv 2412.19437, section 2.1.2) or softmax routing."""

    n_experts: int = 8
    top_k: int = 2
    d_ff: int = 64
    """Inner width of one expert."""
    n_shared: int = 1
    """Experts that see every token, fused into one MLP of width n_shared * d_ff."""
    scoring: Literal["sigmoid", "softmax"] = "sigmoid"
    n_groups: int = 1
    top_groups: int = 1
    """Group-limited routing: a token's experts come from the ``top_groups`` groups with the best sum of their two best
    biased scores."""
    renormalize: bool = True
    """Divide the chosen scores by their sum."""
    scale: float = 1.0
    """Multiplies the gate weights after renormalising (2.5 in V3)."""
    bias: bool = True
    """A per-expert bias added for selection only, moved by the balancing rule and not by the gradient."""


@dataclass(frozen=True)
class Segment:
    """A run of layers of one kind. Its parameters are stacked and scanned."""

    ff: Literal["dense", "moe"] = "dense"
    count: int = 1


@dataclass(frozen=True)
class Model:
    """One decoder-only transformer: pre-norm, SwiGLU, and one attention kind throughout.

    Raises:
      ConfigError: if the fields contradict each other (a MoE segment without ``moe``, heads that do not divide, ...).
    """

    vocab_size: int = 512
    d_model: int = 128
    d_ff: int = 256
    """Inner width of the dense feed-forward."""
    segments: tuple[Segment, ...] = (Segment(),)
    attention: GQA | MLA = field(default_factory=GQA)
    moe: MoE | None = None
    rope: Rope = field(default_factory=Rope)
    norm_eps: float = 1e-6
    tied: bool = False
    """The output head is the embedding's transpose."""
    mtp_depth: int = 0
    """Multi-token-prediction modules (V3 has 1)."""
    init_std: float = 0.02
    dtype: DType = "float32"
    """Activations between matrix products."""
    matmul_dtype: MatmulDType = "float32"
    """Operands of matrix products; they accumulate in float32. ``fp8`` is V3's recipe (arXiv 2412.19437, section 3.3; see
    ``nn.fp8``): E4M3 with a factor per tile, forward and backward. Embedding, output head, the merging matrix of multi-token
    prediction, router, norms and attention's own products stay out of it."""
    param_dtype: DType = "float32"
    attention_kernel: AttentionKernel = "auto"
    """How packed rows attend, to the same values: ``reference`` holds the scores of all pairs of tokens of a row, ``chunked``
    goes by blocks, with memory in proportion to the row, and ``fused`` is the accelerator's own kernel (tokamax on NVIDIA,
    splash attention on TPU). ``auto`` takes the fused one where there is one, and elsewhere ``chunked`` for long rows."""
    remat: Remat = "none"
    """What the backward pass computes again instead of keeping it, from the most memory to the least: ``none``; ``dots``, all
    but products with weights, which is nearly free; ``attention``, all but a layer's input and its attention's output, for long
    rows; ``layer``, all but a layer's input, which costs a forward pass; ``offload``, as ``layer``, with these inputs in the
    host's memory until they are needed, for more layers or tokens than then still fit."""
    capacity_factor: float | None = None
    """Where experts lie over several devices (``mesh.expert``): room for the tokens that go from a device to another, and for
    the choices that a device's experts work on, as a multiple of what they are when loads are even. A choice that finds no room
    is dropped, and counted in ``expert/dropped``. None drops nothing: there is room for all tokens on one device."""
    overlap: Literal[1, 2] = 1
    """2 takes the rows of a micro-batch through each layer in two halves that do not wait for each other: while the tokens of
    one half travel to their experts and back (``mesh.expert``), the other computes. The values are the same. Training and
    scoring only."""

    def __post_init__(self):
        if self.capacity_factor is not None and not self.capacity_factor > 0:
            raise ConfigError(
                f"model.capacity_factor is {self.capacity_factor}; it must be above 0 (1.25 is room for a quarter more than "
                "even loads need), or None to drop nothing"
            )
        uses_moe = self.mtp_depth > 0 and self.moe is not None or any(s.ff == "moe" for s in self.segments)
        if uses_moe and self.moe is None:
            raise ConfigError("model.segments has a 'moe' segment, but model.moe is None; set model.moe")
        if not self.segments:
            raise ConfigError("model.segments is empty; give at least one Segment(ff, count)")
        for i, segment in enumerate(self.segments):
            if segment.count < 1:
                raise ConfigError(f"model.segments.{i}.count is {segment.count}; a segment has at least 1 layer")
        if self.mtp_depth not in (0, 1):
            raise ConfigError(f"model.mtp_depth is {self.mtp_depth}; 0 and 1 are supported (DeepSeek-V3 has 1)")
        a = self.attention
        if a.kind == "gqa" and a.n_heads % a.n_kv_heads:
            raise ConfigError(
                f"model.attention.n_heads {a.n_heads} is not a multiple of model.attention.n_kv_heads {a.n_kv_heads}"
            )
        rope_dim = a.rope_dim if a.kind == "mla" else a.head_dim
        if rope_dim % 2:
            raise ConfigError(f"rotary channels come in pairs, but model.attention has {rope_dim} of them; make it even")
        if self.moe is not None:
            m = self.moe
            if m.n_experts % m.n_groups:
                raise ConfigError(f"model.moe.n_experts {m.n_experts} is not a multiple of model.moe.n_groups {m.n_groups}")
            if not 1 <= m.top_groups <= m.n_groups:
                raise ConfigError(f"model.moe.top_groups is {m.top_groups}; it must be 1..n_groups={m.n_groups}")
            if m.n_groups > 1 and m.n_experts // m.n_groups < 2:
                raise ConfigError("model.moe: a group needs at least 2 experts, its score is the sum of its two best")
            if not 1 <= m.top_k <= m.n_experts // m.n_groups * m.top_groups:
                raise ConfigError(
                    f"model.moe.top_k is {m.top_k}, but only {m.n_experts // m.n_groups * m.top_groups} experts "
                    "can be chosen from (n_experts / n_groups * top_groups)"
                )

    @property
    def head_dtype(self) -> DType:
        """Operands of the products that are never in FP8: embedding and output head."""
        return "bfloat16" if self.matmul_dtype == "fp8" else self.matmul_dtype

    @property
    def n_layers(self) -> int:
        return sum(segment.count for segment in self.segments)


CONFIG_671B = Model(
    vocab_size=129_280,
    d_model=7168,
    d_ff=18_432,
    segments=(Segment("dense", 3), Segment("moe", 58)),
    attention=MLA(n_heads=128, q_rank=1536, kv_rank=512, nope_dim=128, rope_dim=64, v_dim=128),
    moe=MoE(n_experts=256, top_k=8, d_ff=2048, n_shared=1, n_groups=8, top_groups=4, scale=2.5),
    rope=Rope(interleaved=True, scaling="yarn", factor=40.0, original_length=4096, mscale=1.0, mscale_all_dim=1.0),
    mtp_depth=1,
    init_std=0.006,
    dtype="bfloat16",
    matmul_dtype="bfloat16",
    param_dtype="bfloat16",
    remat="layer",
)
"""DeepSeek-V3 and R1 (arXiv 2412.19437, section 4.2). 671.03B parameters without the MTP module."""
