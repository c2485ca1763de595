"""Log-probabilities and entropy from hidden states, in vocabulary chunks: ``[B, T, V]`` never exists."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from r1jax.lora import merged
from r1jax.nn.matmul import dot, project
from r1jax.sharding import one_device

CHUNK = 16_384  # the most vocabulary entries at a time
ROWS = 512  # the most positions at a time where a mask leaves some out


def chunk_size(vocab: int) -> int:
    """Entries in each of the fewest equal chunks; where they do not divide ``vocab``, the last overlaps the one before."""
    return -(-vocab // -(-vocab // CHUNK))


def token_logprobs(
    hidden, kernel, targets, *, mask=None, temperature: float = 1.0, dtype: str = "float32"
) -> tuple[jax.Array, jax.Array]:
    """Log-probability of each target, and entropy of its distribution, in nats.

    One pass over the vocabulary keeps a running maximum m, ``sum exp(l - m)`` and ``sum exp(l - m) l`` of the logits l; the
    entropy is ``H = log Z - E[l]``. The backward pass makes each chunk's logits once more, and from them
    ``dl_i = g_logprob (1[i is the target] - p_i) - g_entropy p_i (log p_i + H)``. Reverse-mode gradients only.

    Args:
      hidden: [B, T, D].
      kernel: [D, V], or an ``Adapted`` one.
      targets: int32[B, T].
      mask: None, or bool[B, T]: the positions that are asked for; what the others hold means nothing. On one device those cost
        nothing, forward or backward; over several their rows would have to travel.
      temperature: divides the logits; the rollout's, so that ratios compare the distributions that were sampled. A number or
        float32[], a constant to the gradient.
      dtype: operand type of the products, which sum in float32, forward and backward.

    Returns:
      (float32[B, T], float32[B, T]).
    """
    mask = jnp.asarray(mask) if mask is not None and one_device() else None
    temperature = jnp.asarray(temperature, jnp.float32)
    return _logprobs(jnp.asarray(hidden), merged(kernel), jnp.asarray(targets), mask, temperature, jnp.dtype(dtype).name)


def most_probable(hidden, kernel, *, dtype: str = "float32") -> jax.Array:
    """int32[B, T]: the token with the largest logit, the first of equal ones. Arguments as of ``token_logprobs``."""
    hidden, kernel = jnp.asarray(hidden), merged(kernel)

    def step(carry, start):
        top, token = carry
        logits, entries, _ = _logits(hidden, kernel, start, jnp.float32(1), jnp.dtype(dtype).name)
        largest = logits.max(-1)
        return (jnp.maximum(top, largest), jnp.where(largest > top, entries[logits.argmax(-1)], token)), None

    zero = jnp.zeros(hidden.shape[:2], jnp.int32)
    return jax.lax.scan(step, (zero - jnp.inf, zero), _chunks(kernel))[0][1]


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _logprobs(hidden, kernel, targets, mask, temperature, dtype):
    return _forward(hidden, kernel, targets, mask, temperature, dtype)[0]


def _forward(hidden, kernel, targets, mask, temperature, dtype):
    if mask is None:
        values, entropy, log_z = _statistics(hidden, kernel, targets, temperature, dtype)
    else:
        rows, (flat, named), (blocks, order, _) = mask.size, _flat(hidden, targets), _blocks(mask)

        def block(i, out):
            at = order[i]
            found = _statistics(flat[at], kernel, named[at], temperature, dtype)
            return tuple(whole.at[at].set(part) for whole, part in zip(out, found, strict=True))

        out = jax.lax.fori_loop(0, blocks, block, (jnp.zeros(rows, jnp.float32),) * 3)
        values, entropy, log_z = (x.reshape(mask.shape) for x in out)
    return (values, entropy), (hidden, kernel, targets, mask, temperature, entropy, log_z)


def _backward(dtype, saved, g):
    hidden, kernel, targets, mask, temperature, entropy, log_z = saved
    known = (targets, entropy, log_z, *g)
    d_hidden, d_kernel = jnp.zeros(hidden.shape, jnp.float32), jnp.zeros(kernel.shape, jnp.float32)
    if mask is None:
        d_hidden, d_kernel = _gradients(hidden, kernel, known, d_kernel, temperature, dtype)
    else:
        (flat, *known), (blocks, order, asked) = _flat(hidden, *known), _blocks(mask)

        def block(i, carry):
            d_flat, d_kernel = carry
            at = order[i]
            *of_rows, g_value, g_entropy = (x[at] for x in known)
            g = (jnp.where(asked[i], x, 0) for x in (g_value, g_entropy))
            d_rows, d_kernel = _gradients(flat[at], kernel, (*of_rows, *g), d_kernel, temperature, dtype)
            return d_flat.at[at].add(d_rows), d_kernel

        d_hidden, d_kernel = jax.lax.fori_loop(0, blocks, block, (d_hidden.reshape(flat.shape), d_kernel))
        d_hidden = d_hidden.reshape(hidden.shape)
    return d_hidden.astype(hidden.dtype), d_kernel.astype(kernel.dtype), None, None, None


_logprobs.defvjp(_forward, _backward)


def _flat(hidden, *rest):
    """[B T, D] and [B T] each."""
    return hidden.reshape(-1, hidden.shape[-1]), *(x.reshape(-1) for x in rest)


def _blocks(mask):
    """The positions that are asked for, in blocks: (how many blocks have one, int32[blocks, rows] where they lie, bool[blocks,
    rows] whether they are asked for)."""
    count, size = mask.size, min(ROWS, mask.size)
    order = jnp.argsort(~mask.reshape(-1), stable=True).astype(jnp.int32)
    order = jnp.pad(order, (0, -count % size)).reshape(-1, size)
    asked = mask.sum()
    return -(-asked // size), order, jnp.arange(order.size).reshape(order.shape) < asked


def _logits(hidden, kernel, start, temperature, dtype):
    """(float32[..., size] of the chunk that begins at ``start``, its entries' numbers int32[size], [D, size] of the kernel).
    What the last chunk shares with the one before is masked there: it counts once."""
    vocab, size = kernel.shape[1], chunk_size(kernel.shape[1])
    begin = jnp.minimum(start, vocab - size)
    part = jax.lax.dynamic_slice_in_dim(kernel, begin, size, axis=1)
    logits = project(hidden.astype(jnp.float32), part, dtype) / temperature
    entries = begin + jnp.arange(size)
    return jnp.where(entries >= start, logits, -1e30) if vocab % size else logits, entries, part


def _rows(x):
    """Over two axes: what is summed over one, XLA:CPU multiplies as float32 where it is bfloat16. Rows of [B, T, N] stay split
    over devices as they are."""
    return x if x.ndim == 3 else x.reshape(1 + (len(x) % 2 == 0), -1, x.shape[-1])


def _chunks(kernel):
    return jnp.arange(0, kernel.shape[1], chunk_size(kernel.shape[1]))


def _statistics(hidden, kernel, targets, temperature, dtype):
    """(log-prob of the target, entropy, log Z), each float32[...], for hidden[..., D] and int32 targets[...]."""

    def step(carry, start):
        top, total, weighted, target = carry
        logits, entries, _ = _logits(hidden, kernel, start, temperature, dtype)
        new_top = jnp.maximum(top, logits.max(-1))
        scale, e = jnp.exp(top - new_top), jnp.exp(logits - new_top[..., None])
        here = (targets >= start) & (targets <= entries[-1])
        index = jnp.clip(targets - entries[0], 0, entries.size - 1)[..., None]
        target = jnp.where(here, jnp.take_along_axis(logits, index, axis=-1)[..., 0], target)
        return (new_top, total * scale + e.sum(-1), weighted * scale + (e * logits).sum(-1), target), None

    zero = jnp.zeros(targets.shape, jnp.float32)
    (top, total, weighted, target), _ = jax.lax.scan(step, (zero - 1e30, zero, zero, zero), _chunks(kernel))
    log_z = top + jnp.log(total)
    return target - log_z, log_z - weighted / total, log_z


def _gradients(hidden, kernel, known, d_kernel, temperature, dtype):
    """(float32[..., D] of ``hidden``, ``d_kernel`` plus that of the kernel). ``known`` is targets, entropy, log Z and the two
    cotangents, each [...]."""
    targets, entropy, log_z, g_value, g_entropy = (x[..., None] for x in known)
    last = (hidden.ndim - 1,)

    def step(carry, start):
        d_hidden, d_kernel = carry
        logits, entries, part = _logits(hidden, kernel, start, temperature, dtype)
        log_p = logits - log_z
        mine = (targets == entries) & (entries >= start)
        d = (jnp.where(mine, g_value, 0) - jnp.exp(log_p) * (g_value + g_entropy * (log_p + entropy))) / temperature
        before = jax.lax.dynamic_slice_in_dim(d_kernel, entries[0], entries.size, axis=1)
        after = before + dot(_rows(hidden), _rows(d), dtype, (0, 1), (0, 1))
        d_kernel = jax.lax.dynamic_update_slice_in_dim(d_kernel, after, entries[0], axis=1)
        return (d_hidden + dot(d, part, dtype, last, (1,)), d_kernel), None

    (d_hidden, d_kernel), _ = jax.lax.scan(step, (jnp.zeros(hidden.shape, jnp.float32), d_kernel), _chunks(kernel))
    return d_hidden, d_kernel
