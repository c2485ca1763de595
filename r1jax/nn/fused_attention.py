"""The accelerators' own kernels for packed attention: tokamax on NVIDIA GPUs, splash attention on TPUs."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from r1jax.nn import kernels
from r1jax.nn.chunked_attention import Seen
from r1jax.nn.matmul import precision
from r1jax.sharding import platform

LANES = 128  # splash attention's rows come in multiples of this
TILE = 512  # and in blocks of at most so many


def missing(dtype: str, *, shared: bool, split: bool) -> str:
    """Why there is no fused kernel, to follow a 'but'; empty if there is one.

    Args:
      dtype: operand type of the model's products.
      shared: prompts are shared: tokens see a second segment.
      split: a row lies over several devices.
    """
    if platform() == "tpu":
        if dtype == "float32":
            return "splash attention rounds operands to bfloat16 and matmul_dtype is float32"
        if shared:
            return "splash attention knows one segment per token and share_prompts is on"
        return "splash attention needs whole rows and mesh.context splits them" if split else ""
    return "tokamax is not installed (pip install 'r1jax[cuda]')" if kernels.tokamax() is None else ""


def fused(q: jax.Array, k: jax.Array, v: jax.Array, seen: Seen, scale: float, dtype: str, *, causal: bool) -> jax.Array:
    """``nn.chunked_attention.chunked`` with operands in ``dtype``, by the kernel of the platform.

    Args:
      causal: the queries are all of the keys, in their order, so that what lies above the diagonal need not be visited.
    """
    q, k, operand = q.astype(dtype), k.astype(dtype), v.astype(dtype)
    if platform() == "tpu":
        return splash(q, k, operand, seen.segments, scale).astype(v.dtype)
    mask = seen.mask(jnp.arange(k.shape[1]))[:, None]
    out = kernels.tokamax().dot_product_attention(
        q, k, operand, mask=mask, scale=scale, is_causal=causal, precision=precision(dtype)
    )
    return out.astype(v.dtype)


def splash(
    q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, scale: float, *, interpret: bool = False
) -> jax.Array:
    """Causal attention within the segments of whole rows: [B, T, N, Hv].

    Args:
      interpret: runs the kernel step by step on any platform, for tests.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as library

    length, n = q.shape[1], q.shape[2]
    size = length + -length % LANES
    tile = next(t for t in range(min(TILE, size), 0, -LANES) if size % t == 0)
    q, k, v = (jnp.pad(jnp.swapaxes(x, 1, 2), ((0, 0), (0, 0), (0, size - length), (0, 0))) for x in (q * scale, k, v))
    segments = jnp.pad(segments, ((0, 0), (0, size - length)), constant_values=-1)
    mask = library.MultiHeadMask([library.CausalMask((size, size)) for _ in range(n)])
    blocks = library.BlockSizes(
        block_q=tile, block_kv=tile, block_q_dkv=tile, block_kv_dkv=tile, block_kv_dkv_compute=tile,
        block_q_dq=tile, block_kv_dq=tile,
    )  # fmt: skip
    kernel = library.make_splash_mha(
        mask, block_sizes=blocks, head_shards=1, q_seq_shards=1, interpret=interpret,
        residual_checkpoint_name="attention",
    )  # fmt: skip
    out = jax.vmap(kernel)(q, k, v, segment_ids=library.SegmentIds(segments, segments))
    return jnp.swapaxes(out, 1, 2)[:, :length]
