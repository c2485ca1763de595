"""What the devices do: prompts become a cache, and a loop appends tokens to all rows until they have ended."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import struct

from r1jax import config
from r1jax.models import cache as caches
from r1jax.models import decoder
from r1jax.nn.matmul import project
from r1jax.rollout.sampling import row_keys, sample_tokens
from r1jax.sharding import constrain
from r1jax.types import GOING


@struct.dataclass
class Decoding:
    """S rows on their way. ``C`` is the answer's cap."""

    cache: tuple[jax.Array, ...]
    tokens: jax.Array
    """int32[S, C]"""
    logprobs: jax.Array
    """float32[S, C]"""
    length: jax.Array
    """int32[S]: tokens sampled so far."""
    finish: jax.Array
    """int32[S]: index into ``types.FINISH``, or GOING."""
    prompt_length: jax.Array
    """int32[S]"""
    keys: jax.Array
    step: jax.Array
    """int32[]: index of the next token within the answers."""


@dataclass(frozen=True)
class Loop:
    """The two programs of a sampler, to be jitted. They stand apart from it: a sampler whose methods were jitted would be part
    of a cycle, and its weights would stay until the garbage collector comes by."""

    model: config.Model
    slots: int
    """Rows decoded together: S."""
    end_ids: tuple[int, ...]
    seed: int

    def prefill(self, params, tokens, lengths, owner, prompt_id, sample, rows, round, temperature, *, cap, greedy, top_p):
        """Runs the prompts int32[Q, P] once, gives each of the S rows its question's cache, and samples every row's first
        token."""
        height, width = tokens.shape
        positions = jnp.broadcast_to(jnp.arange(width), tokens.shape)
        segments = (positions < lengths[:, None]).astype(jnp.int32)
        fresh = caches.create(self.model, height, width)
        hidden, _, cache = decoder.forward(params, tokens, positions, segments, model=self.model, cache=fresh)
        last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)
        state = Decoding(
            cache=caches.extend(cache, self.model, self.slots, width + cap, owner),
            tokens=jnp.zeros((self.slots, cap), jnp.int32),
            logprobs=jnp.zeros((self.slots, cap), jnp.float32),
            length=jnp.zeros(self.slots, jnp.int32),
            finish=jnp.where(jnp.arange(self.slots) < rows, jnp.int32(GOING), 0),
            prompt_length=lengths[owner],
            keys=row_keys(self.seed, round, prompt_id, sample),
            step=jnp.zeros((), jnp.int32),
        )
        logits = self._logits(params, last)[owner]
        return self._append(state, logits, temperature, greedy, top_p)

    def decode(self, params, *, state: Decoding, until, temperature, greedy, top_p) -> Decoding:
        """Appends tokens until step ``until`` or until every row has ended. No row leaves the device on the way."""

        def going(state):
            return (state.step < until) & (state.finish == GOING).any()

        def step(state):
            newest = jax.lax.dynamic_index_in_dim(state.tokens, state.step - 1, axis=1)
            position = (state.prompt_length + state.step - 1)[:, None]
            live = (state.finish == GOING)[:, None].astype(jnp.int32)
            hidden, _, cache = decoder.forward(params, newest, position, live, model=self.model, cache=state.cache)
            return self._append(state.replace(cache=cache), self._logits(params, hidden), temperature, greedy, top_p)

        state = jax.lax.while_loop(going, step, state)
        # A row that is still going at its cap ended by length.
        at_cap = (state.finish == GOING) & (state.length >= state.tokens.shape[1])
        return state.replace(finish=jnp.where(at_cap, 0, state.finish))

    def _logits(self, params, hidden) -> jax.Array:
        """float32[B, V] for [B, 1, D], a row's as a whole on one device."""
        logits = project(hidden[:, 0], decoder.head_kernel(params), self.model.head_dtype).astype(jnp.float32)
        return constrain(constrain(logits, "batch", "vocab"), "batch", None)

    def _append(self, state: Decoding, logits, temperature, greedy, top_p) -> Decoding:
        """Samples a token for each row that goes on; the others keep what they have."""
        token, logprob = sample_tokens(logits, state.keys, state.step, temperature=temperature, greedy=greedy, top_p=top_p)
        live = state.finish == GOING
        at = (0, state.step)
        ended = jnp.isin(token, jnp.array(self.end_ids, jnp.int32))
        return state.replace(
            tokens=jax.lax.dynamic_update_slice(state.tokens, jnp.where(live, token, 0)[:, None], at),
            logprobs=jax.lax.dynamic_update_slice(state.logprobs, jnp.where(live, logprob, 0.0)[:, None], at),
            length=state.length + live,
            finish=jnp.where(live & ended, 1, state.finish),
            step=state.step + 1,
        )
