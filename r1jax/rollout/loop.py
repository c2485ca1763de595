"""What the devices do: rows are admitted into slots by a prefill, and a loop appends tokens to all rows that go on.

A step appends one token to each row. A speculative one has the multi-token-prediction module draft a token, reads it together
with the newest, and appends one or two; the module's own keys are the cache's last layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import struct

from r1jax import config
from r1jax.models import cache as caches
from r1jax.models import decoder
from r1jax.nn.attention import Packed
from r1jax.nn.moe import route_dtype
from r1jax.rollout.sampling import draft_tokens, row_keys, sample_tokens, verify_tokens
from r1jax.rollout.weights import read
from r1jax.sharding import constrain
from r1jax.types import GOING


@struct.dataclass
class Drafting:
    """What the next draft is made from, and how the ones before fared."""

    hidden: jax.Array
    """[S, 2, D]: the trunk's, of the ``kept`` positions before the newest token's."""
    following: jax.Array
    """int32[S, 2]: the token after each of them."""
    kept: jax.Array
    """int32[S]: 1 or 2. What stands behind is of a draft that was not kept."""
    made: jax.Array
    """int32[S]: drafts in this slot, so the steps that it took part in."""
    accepted: jax.Array
    """int32[S]: of these."""


@struct.dataclass
class Decoding:
    """S slots. ``C`` is the largest cap of an answer."""

    cache: caches.Cache
    tokens: jax.Array
    """int32[S, C]: the answer's; what was sampled before the row was admitted is not held."""
    logprobs: jax.Array
    """float32[S, C]"""
    newest: jax.Array
    """int32[S]: the token that the next step reads."""
    length: jax.Array
    """int32[S]: tokens of the answer so far."""
    cap: jax.Array
    """int32[S]: an answer of so many tokens has ended."""
    finish: jax.Array
    """int32[S]: index into ``types.FINISH``, or GOING. An empty slot has ended too."""
    prompt_length: jax.Array
    """int32[S]"""
    keys: jax.Array
    routes: jax.Array | None = None
    """uint8 or uint16[S, C, L * K]: the experts that the answer's tokens went to, as ``models.decoder.join_routes`` lays them,
    of the tokens that the decode loop read: not of the newest. None if they are not recorded."""
    drafting: Drafting | None = None
    """With a speculative loop."""
    loads: jax.Array | None = None
    """int32[L, E]: how often each expert of the L layers that have some was chosen, by prompts too. None if not counted."""


@struct.dataclass
class Admission:
    """Rows that begin: P prompts of up to T tokens, and what each of the S slots takes of them."""

    tokens: jax.Array
    """int32[P, T]: prompts, and behind them what was sampled of an answer before."""
    lengths: jax.Array
    """int32[P]"""
    owner: jax.Array
    """int32[S]: the slot's row of ``tokens``."""
    taken: jax.Array
    """bool[S]: slots that begin anew."""
    prompt_length: jax.Array
    """int32[S]: of the prompt alone."""
    cap: jax.Array
    """int32[S]"""
    prompt_id: jax.Array
    """int32[S]"""
    sample: jax.Array
    """int32[S]: which of the question's answers."""


@dataclass(frozen=True)
class Loop:
    """The programs of a sampler, to be jitted. They stand apart from it: a sampler whose methods were jitted would be part
    of a cycle, and its weights would stay until the garbage collector comes by."""

    model: config.Model
    slots: int
    """Rows decoded together: S."""
    end_ids: tuple[int, ...]
    seed: int
    record_routes: bool = False
    speculative: bool = False
    count_loads: bool = False

    def empty(self, *, length: int, cap: int) -> Decoding:
        """No row anywhere, and a cache of ``length`` positions."""
        zero = jnp.zeros(self.slots, jnp.int32)
        drafting = None
        if self.speculative:
            hidden = jnp.zeros((self.slots, 2, self.model.d_model), self.model.dtype)
            drafting = Drafting(hidden, jnp.zeros((self.slots, 2), jnp.int32), zero + 1, zero, zero)
        return Decoding(
            cache=self.block(length=length),
            tokens=jnp.zeros((self.slots, cap), jnp.int32),
            logprobs=jnp.zeros((self.slots, cap), jnp.float32),
            newest=zero,
            length=zero,
            cap=zero,
            finish=zero,
            prompt_length=zero,
            keys=row_keys(self.seed, 0, zero, zero),
            routes=self._no_routes(cap) if self.record_routes else None,
            drafting=drafting,
            loads=jnp.zeros((moe_layers(self.model), self.model.moe.n_experts), jnp.int32) if self.count_loads else None,
        )

    def block(self, *, length: int) -> caches.Cache:
        """What a cache grows by."""
        return caches.create(self.model, self.slots, length, mtp=self.speculative)

    def admit(
        self, params, rows: Admission, round, temperature, *, state: Decoding, greedy, top_p
    ) -> tuple[Decoding, jax.Array | None]:
        """Runs each prompt once, gives every slot that begins its own copy of the prompt's keys, and samples its first token.
        The other slots keep what they have. Beside the state it returns what routes the prompts took, [P, T, L * K] as in
        ``Decoding.routes``; None if they are not recorded."""
        positions = jnp.broadcast_to(jnp.arange(rows.tokens.shape[1]), rows.tokens.shape)
        segments = (positions < rows.lengths[:, None]).astype(jnp.int32)
        params = read(params, round)
        angles = decoder.angles_of(rows.tokens.shape[1], self.model)
        hidden, aux, fresh = decoder.forward(
            params, rows.tokens, positions, segments, model=self.model, keep=True, angles=angles
        )
        last = jnp.take_along_axis(hidden, (rows.lengths - 1)[:, None, None], axis=1)

        def begin(new, old):
            return jnp.where(rows.taken.reshape(-1, *(1,) * (old.ndim - 1)), new, old)

        drafting = state.drafting
        if self.speculative:
            # The prompt's last token has no successor yet: what is kept of it is written anew by the first draft.
            following = jnp.roll(rows.tokens, -1, axis=1)
            packed = Packed(segments, None)
            *_, more = decoder.look_ahead(
                params, hidden, following, positions, segments, model=self.model, packed=packed, keep=True, angles=angles
            )  # fmt: skip
            fresh = (*fresh, more)
            drafting = drafting.replace(
                hidden=begin(jnp.pad(last, ((0, 0), (0, 1), (0, 0)))[rows.owner], drafting.hidden), kept=begin(1, drafting.kept)
            )
        known = rows.lengths[rows.owner] - rows.prompt_length
        state = state.replace(
            cache=caches.place(state.cache, fresh, self.model, rows.owner, rows.taken),
            tokens=begin(0, state.tokens),
            logprobs=begin(0.0, state.logprobs),
            length=begin(known, state.length),
            cap=begin(rows.cap, state.cap),
            finish=begin(GOING, state.finish),
            prompt_length=begin(rows.prompt_length, state.prompt_length),
            keys=begin(row_keys(self.seed, round, rows.prompt_id, rows.sample), state.keys),
            loads=self._count(state.loads, aux),
        )
        routes = decoder.join_routes(aux.routes, self.model) if self.record_routes else None
        logits = self._logits(params, last)[:, 0][rows.owner]
        token, logprob = sample_tokens(logits, state.keys, state.length, temperature=temperature, greedy=greedy, top_p=top_p)
        if self.speculative:
            following = begin(jnp.stack([token, token], axis=1), drafting.following)
            state = state.replace(drafting=drafting.replace(following=following))
        return self._append(state, token, logprob, rows.taken), routes

    def decode(self, params, *, state: Decoding, steps, enough, temperature, greedy, top_p) -> Decoding:
        """Takes up to ``steps`` steps, and stops earlier once ``enough`` slots have ended. No row leaves the device on the
        way."""
        one = self._speculate if self.speculative else self._extend
        angles = decoder.angles_of(sum(caches.lengths(state.cache, self.model)), self.model)

        def going(carry):
            step, state = carry
            return (step < steps) & ((state.finish != GOING).sum() < enough)

        def step(carry):
            step, state = carry
            # Nor is the table widened as a whole before the loop, as XLA:CPU would do with what it gathers rows of.
            embed, _ = jax.lax.optimization_barrier((params["embed"], step))
            weights = read({**params, "embed": embed}, step)
            return step + 1, one(weights, state, angles, temperature=temperature, greedy=greedy, top_p=top_p)

        return jax.lax.while_loop(going, step, (jnp.zeros((), jnp.int32), state))[1]

    def _no_routes(self, cap: int) -> jax.Array:
        return jnp.zeros((self.slots, cap, moe_layers(self.model) * self.model.moe.top_k), route_dtype(self.model.moe))

    def _count(self, loads: jax.Array | None, aux: decoder.Aux) -> jax.Array | None:
        if loads is None:
            return None
        return loads + jnp.concatenate([load for load in aux.load if load is not None]).astype(jnp.int32)

    def _extend(self, params, state: Decoding, angles, **how) -> Decoding:
        """A token for each row that goes on."""
        position = (state.prompt_length + state.length - 1)[:, None]
        live = state.finish == GOING
        # A row that has ended reads its last place again, whatever stands there.
        hidden, aux, cache = decoder.forward(
            params, state.newest[:, None], jnp.maximum(position, 0), live[:, None].astype(jnp.int32), model=self.model,
            cache=state.cache, angles=angles,
        )  # fmt: skip
        if self.record_routes:
            routes = decoder.join_routes(aux.routes, self.model)[:, 0]
            state = state.replace(routes=_write(state.routes, routes, jnp.maximum(state.length - 1, 0), live))
        token, logprob = sample_tokens(self._logits(params, hidden)[:, 0], state.keys, state.length, **how)
        state = state.replace(cache=cache, loads=self._count(state.loads, aux))
        return self._append(state, token, logprob, live)

    def _speculate(self, params, state: Decoding, angles, **how) -> Decoding:
        """One or two tokens for each row that goes on.

        With the newest token at position p the trunk has read all before it, and the module all before p - kept. What is
        written for a draft that is not kept is written anew by the next step, before any query sees it.
        """
        before, position = state.drafting, state.prompt_length + state.length - 1
        live = state.finish == GOING
        counted = jnp.broadcast_to(live[:, None], (self.slots, 2)).astype(jnp.int32)

        def places(first):
            return jnp.maximum(first, 0)[:, None] + jnp.arange(2)

        hidden, _, ahead = decoder.look_ahead(
            params, before.hidden, before.following, places(position - before.kept), counted, model=self.model,
            cache=state.cache[-1], angles=angles,
        )  # fmt: skip
        hidden = jnp.take_along_axis(hidden, (before.kept - 1)[:, None, None], axis=1)
        guess = self._logits(params, hidden)[:, 0]
        draft = draft_tokens(guess, state.keys, state.length, **how)
        hidden, aux, cache = decoder.forward(
            params, jnp.stack([state.newest, draft], axis=1), places(position), counted, model=self.model,
            cache=state.cache[:-1], angles=angles,
        )  # fmt: skip
        logits = self._logits(params, hidden)
        now, then, kept = verify_tokens(draft, guess, logits[:, 0], logits[:, 1], state.keys, state.length, **how)
        drafting = Drafting(
            hidden=hidden,
            following=jnp.stack([now[0], then[0]], axis=1),
            kept=1 + kept,
            made=before.made + live,
            accepted=before.accepted + (live & kept),
        )
        state = state.replace(cache=(*cache, ahead), drafting=drafting, loads=self._count(state.loads, aux))
        state = self._append(state, *now, live)
        return self._append(state, *then, live & kept & (state.finish == GOING))

    def _logits(self, params, hidden) -> jax.Array:
        """float32[B, T, V] for [B, T, D], a row's as a whole on one device."""
        logits = decoder.logits(params, hidden, self.model)
        return constrain(constrain(logits, "batch", None, "vocab"), "batch", None, None)

    def _append(self, state: Decoding, token, logprob, live) -> Decoding:
        """A token for each row of bool[S] ``live``; the others keep what they have."""
        length = state.length + live
        ended = jnp.isin(token, jnp.array(self.end_ids, jnp.int32))
        finish = jnp.where(ended, 1, jnp.where(length >= state.cap, 0, GOING))
        return state.replace(
            tokens=_write(state.tokens, token, state.length, live),
            logprobs=_write(state.logprobs, logprob, state.length, live),
            newest=jnp.where(live, token, state.newest),
            length=length,
            finish=jnp.where(live, finish, state.finish),
        )


def moe_layers(model: config.Model) -> int:
    return sum(s.count for s in model.segments if s.ff == "moe")


def _write(table: jax.Array, new: jax.Array, at: jax.Array, live: jax.Array) -> jax.Array:
    """table[S, C] with new[b] at ``[b, at[b]]`` where ``live``. A slice per row, so that rows stay on their devices."""

    def row(table, new, at, live):
        new = jnp.where(live, new, jax.lax.dynamic_index_in_dim(table, at, keepdims=False))
        return jax.lax.dynamic_update_index_in_dim(table, new, at, 0)

    return jax.vmap(row)(table, new, at, live)
