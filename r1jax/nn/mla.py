"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1; V3's released code for the scale).

Keys and values of all heads come from one latent of ``kv_rank`` channels, and one rotary key is shared by all heads: the
cache holds these ``kv_rank + rope_dim`` numbers per token. Two paths give the same values: *expanded* makes every head's
keys and values (cheaper for many queries), *absorbed* folds those projections into the query and the output (cheaper for one
query against a cache).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from r1jax import config
from r1jax.lora import Adapted, is_adapted
from r1jax.nn import attention, norms
from r1jax.nn.attention import Packed, attend_cached, packed_mask, softmax, write_rows
from r1jax.nn.matmul import einsum, kernel_of, project
from r1jax.nn.quantized import is_quantized
from r1jax.nn.rope import mscale, rotate
from r1jax.params import ParamSpec
from r1jax.sharding import constrain

LATENT_EPS = 1e-6  # the released models use this for the latent norms whatever the model's own eps


def specs(model: config.Model) -> dict:
    a, d = model.attention, model.d_model

    def kernel(shape, axes, inputs=1):
        return ParamSpec(shape, axes, std=model.init_std, dtype=model.param_dtype, inputs=inputs)

    qk = a.nope_dim + a.rope_dim
    if a.q_rank is None:
        query = {"q": kernel((d, a.n_heads, qk), ("embed", "heads", None))}
    else:
        query = {
            "q_a": kernel((d, a.q_rank), ("embed", None)),
            "q_norm": norms.specs(a.q_rank, model.param_dtype),
            "q_b": kernel((a.q_rank, a.n_heads, qk), ("rank", "heads", None)),
        }
    return query | {
        "kv_a": kernel((d, a.kv_rank + a.rope_dim), ("embed", None)),
        "kv_norm": norms.specs(a.kv_rank, model.param_dtype),
        "k_b": kernel((a.kv_rank, a.n_heads, a.nope_dim), ("rank", "heads", None)),
        "v_b": kernel((a.kv_rank, a.n_heads, a.v_dim), ("rank", "heads", None)),
        "o": kernel((a.n_heads, a.v_dim, d), ("heads", None, "embed"), inputs=2),
    }


TIME = (1,)
"""The axis of positions in the array of the cache."""


def cache_shapes(model: config.Model, rows: int, length: int) -> tuple[tuple[tuple[int, ...], tuple[str | None, ...]], ...]:
    """Latent and rotary key of one layer side by side, [B, S, R + rope]: its shape and logical axes."""
    a = model.attention
    return (((rows, length, a.kv_rank + a.rope_dim), ("batch", None, None)),)


def softmax_scale(model: config.Model) -> float:
    """``(nope + rope)^-0.5``, times m(mscale_all_dim)^2 under YaRN."""
    a, rope = model.attention, model.rope
    m = mscale(rope.factor, rope.mscale_all_dim) if rope.scaling == "yarn" else 1.0
    return (a.nope_dim + a.rope_dim) ** -0.5 * m * m


def attend(params, x, angles, packed: Packed, *, model: config.Model, cache=None, positions=None, keep: bool = False,
           absorbed: bool | None = None):  # fmt: skip
    """Self-attention of x[B, T, D].

    Args:
      angles: (cos, sin), each float32[B, T, rope_dim / 2].
      packed: which sequence each token is of; read without a cache.
      cache: this layer's blocks, or None. The latents of x are written at ``positions`` before attending, by the absorbed path,
        and a query at position p sees places 0..p.
      positions: int32[B, T], consecutive in each row; read with a cache.
      keep: return the latents of x as a cache of one block.
      absorbed: which path without a cache; None is the expanded one.

    Returns:
      ([B, T, D], the layer's cache or None).
    """
    a = model.attention
    if a.q_rank is None:
        q = project(x, params["q"], model.matmul_dtype)
    else:
        latent = norms.rms_norm(project(x, params["q_a"], model.matmul_dtype), params["q_norm"]["scale"], LATENT_EPS)
        q = project(latent, params["q_b"], model.matmul_dtype)
    q = constrain(q, "batch", "sequence", "heads", None)
    q_nope, q_rope = jnp.split(q, [a.nope_dim], axis=-1)
    q_rope = rotate(q_rope, *angles, model.rope.interleaved)

    latent, k_rope = jnp.split(project(x, params["kv_a"], model.matmul_dtype), [a.kv_rank], axis=-1)
    latent = norms.rms_norm(latent, params["kv_norm"]["scale"], LATENT_EPS)
    k_rope = rotate(k_rope[:, :, None], *angles, model.rope.interleaved)[:, :, 0]
    if cache is not None:
        blocks = write_rows(tuple(block[0] for block in cache), jnp.concatenate([latent, k_rope], -1), positions[:, 0], 1)
        cache, out = tuple((block,) for block in blocks), _cached(params, q_nope, q_rope, blocks, positions, model)
    else:
        inner = _absorbed if absorbed else _expanded
        out = inner(params, q_nope, q_rope, latent, k_rope, packed, model)
        if keep:
            cache = ((jnp.concatenate([latent, k_rope], axis=-1),),)
    return project(out, params["o"], model.matmul_dtype, contract=2), cache


def _cached(params, q_nope, q_rope, blocks, positions, model):
    """The absorbed path against the cache. A query of latent and rotary part meets a place as it lies, and of the weighted sum
    of places the latent part is read: splitting the places would copy them."""
    k_b, v_b = (kernel_of(params[name], q_nope.dtype) for name in ("k_b", "v_b"))
    q_latent = einsum("btnh,rnh->btnr", q_nope, k_b, model.matmul_dtype).astype(q_nope.dtype)
    b, t, n, rank = q_latent.shape
    q = jnp.concatenate([q_latent, q_rope], axis=-1).reshape(b, 1, t * n, -1)
    keys, values = [jnp.swapaxes(x, 1, 2)[:, None] for x in blocks], [x[:, None] for x in blocks]
    out = attend_cached(q, keys, values, positions, softmax_scale(model), model.matmul_dtype)
    return einsum("btnr,rnh->btnh", out[..., :rank].reshape(b, t, n, rank), v_b, model.matmul_dtype).astype(q_nope.dtype)


def _expanded(params, q_nope, q_rope, latent, k_rope, packed, model):
    q = jnp.concatenate([q_nope, q_rope], axis=-1)

    def keys(latent, k_rope, *leaves):
        k_b, v_b = kernels.unflatten(leaves)
        k, v = (project(latent, kernel, model.matmul_dtype) for kernel in (k_b, v_b))
        k_rope = jnp.broadcast_to(k_rope[:, :, None], (*k.shape[:3], k_rope.shape[-1]))
        return jnp.concatenate([k, k_rope], axis=-1), v

    leaves, kernels = jax.tree.flatten((params["k_b"], params["v_b"]))
    how = {"scale": softmax_scale(model), "dtype": model.matmul_dtype, "kernel": model.attention_kernel}
    if model.matmul_dtype != "fp8" and not any(map(is_quantized, (params["k_b"], params["v_b"]))):  # tiles lie across heads
        token, axes = ("batch", "sequence", None), [_axes(params[name]) for name in ("k_b", "v_b")]
        axes = jax.tree.leaves(axes, is_leaf=lambda a: type(a) is tuple)
        held = (latent, k_rope, *leaves)
        if (out := attention.attend_made(q, held, (token, token, *axes), keys, packed, **how)) is not None:
            return out
    return attention.attend(q, *keys(latent, k_rope, *leaves), packed, **how)


def _axes(kernel):
    """Logical axes of the arrays of ``k_b`` or ``v_b``."""
    axes = (None, "heads", None)
    return Adapted(axes, (None, None), axes, kernel.scale) if is_adapted(kernel) else axes


def _absorbed(params, q_nope, q_rope, latent, k_rope, packed, model):
    k_b, v_b = (kernel_of(params[name], latent.dtype) for name in ("k_b", "v_b"))
    q_latent = einsum("btnh,rnh->btnr", q_nope, k_b, model.matmul_dtype).astype(latent.dtype)
    scores = einsum("btnr,bsr->bnts", q_latent, latent, model.matmul_dtype)
    scores += einsum("btnh,bsh->bnts", q_rope, k_rope, model.matmul_dtype)
    weights = softmax(scores * softmax_scale(model), packed_mask(*packed), latent.dtype)
    # "bntr" and not "btnr": XLA:CPU cannot run the transposed bfloat16 product with float32 sums.
    out = einsum("bnts,bsr->bntr", weights, latent, model.matmul_dtype).astype(latent.dtype)
    return einsum("bntr,rnh->btnh", out, v_b, model.matmul_dtype).astype(latent.dtype)
