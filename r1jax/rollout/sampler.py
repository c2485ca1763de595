"""The rollout engine: a question is prefilled once, its answers are decoded together, inside one compiled loop.

A stage knows ``load`` and ``generate`` and no more, and who shows an answer as it comes ``stream``, so another engine can stand
here.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from r1jax import config, sharding
from r1jax.models import cache as caches
from r1jax.models import decoder
from r1jax.nn.quantized import read
from r1jax.rollout.loop import Decoding, Loop
from r1jax.types import FINISH, GOING, Trajectories

ROUND_TO = 8  # prompt lengths are padded to a multiple of this


class Sampler:
    """Generates with one set of weights.

    Args:
      model: the architecture.
      engine: static shapes. ``slots`` is rounded up to the devices that share the batch.
      mesh: where to run.
      end_ids: tokens that end an answer.
      text: token ids -> str; needed for stop strings.
      seed: of the run. The key of a token is folded from (seed, round, prompt id, sample, position).
    """

    def __init__(self, model: config.Model, engine: config.Engine, mesh: jax.sharding.Mesh, *, end_ids: Sequence[int],
                 text: Callable[[list[int]], str] | None = None, seed: int = 0):  # fmt: skip
        self.model, self.engine, self.mesh, self.text = model, engine, mesh, text
        self.rules = sharding.rules("decode", model.attention.kind)
        self.ways = sharding.batch_ways(mesh, self.rules)
        self.slots = -(-engine.slots // self.ways) * self.ways
        self.specs = decoder.read_specs(model, engine.weights)
        self.shardings = sharding.param_shardings(self.specs, mesh, self.rules)
        self._reshard = jax.jit(partial(read, specs=self.specs), out_shardings=self.shardings)
        self._layout = self._decoding_shardings()
        loop = Loop(model, self.slots, tuple(end_ids), seed)
        self._prefill = jax.jit(loop.prefill, static_argnames=("cap", "greedy", "top_p"), out_shardings=self._layout)
        self._decode = jax.jit(
            loop.decode, static_argnames=("greedy", "top_p"), donate_argnames=("state",), out_shardings=self._layout
        )
        self.params = None

    def load(self, params, *, copy: bool = True) -> None:
        """Takes a model's weights into the decode layout, kernels in the type that the products read or in ``engine.weights``.

        Args:
          copy: False keeps ``params`` themselves, which must be in the types of ``specs`` and laid out by ``shardings``.
        """
        self.params = None  # or there would be two copies beside the trainer's while the new one is made
        self.params = self._reshard(params) if copy else params

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: config.Sampling,
        *,
        samples: int = 1,
        round: int = 0,
        ids: Sequence[int] | None = None,
        progress: Callable[[Trajectories], None] = lambda part: None,
    ) -> Trajectories:
        """``samples`` answers to every prompt.

        Args:
          prompts: token ids, each with at least one token.
          round: which rollout of the run; another round draws other tokens.
          ids: int32 name of each prompt in the random stream; their index if None.
          progress: called with the answers as they come; its calls together have what is returned, in the same order.

        Raises:
          ValueError: no weights are loaded, a prompt is empty or longer than ``engine.max_prompt_tokens``, or no bucket is
          long enough.
        """
        self._check(prompts, sampling)
        ids = np.arange(len(prompts)) if ids is None else np.asarray(ids)
        # A pass over the slots holds whole questions, or a part of one that has more answers than there are slots.
        together, width = max(1, self.slots // samples), min(samples, self.slots)
        parts = []
        for start in range(0, len(prompts), together):
            questions = np.arange(start, min(start + together, len(prompts)))
            for first in range(0, samples, width):
                numbers = np.arange(first, min(first + width, samples))
                (whole,) = self._run(prompts, questions, numbers, together, ids, sampling, round)
                parts.append(whole)
                progress(whole)
        return concatenate(parts)

    def stream(
        self, prompt: Sequence[int], sampling: config.Sampling, *, chunk: int, round: int = 0, id: int = 0
    ) -> Iterator[Trajectories]:
        """The one answer of ``generate([prompt], sampling, round=round, ids=[id])`` as it grows: after every ``chunk`` tokens,
        and as a whole. Its ``finish`` is GOING until then.

        Raises:
          ValueError: as ``generate`` does.
        """
        self._check([prompt], sampling)
        yield from self._run([prompt], np.arange(1), np.arange(1), 1, np.array([id]), sampling, round, chunk)

    def _check(self, prompts, sampling: config.Sampling) -> None:
        if self.params is None:
            raise ValueError("the sampler has no weights; call load(params) before generate")
        if sampling.stop and self.text is None:
            raise ValueError("stop strings need the tokenizer: give Sampler(text=tokenizer.decode)")
        longest = max((len(p) for p in prompts), default=0)
        if not prompts or min(len(p) for p in prompts) == 0:
            raise ValueError("there is no prompt, or an empty one; every prompt needs at least one token")
        if longest > self.engine.max_prompt_tokens:
            raise ValueError(
                f"a prompt has {longest} tokens, the engine was sized for {self.engine.max_prompt_tokens}; "
                "raise engine.max_prompt_tokens"
            )

    def _run(
        self, prompts, questions, numbers, together: int, ids, sampling: config.Sampling, round: int, shown: int | None = None
    ) -> Iterator[Trajectories]:
        """Decodes the answers ``numbers`` to each of ``questions``: as they are at their end, and before it after every
        ``shown`` steps. Slots that are left over are dead from the start."""
        cap = sampling.max_new_tokens
        # Stop strings are searched for by the host: a string may straddle tokens, which no token id tells.
        chunk = shown or (self.engine.chunk if sampling.stop else cap)
        height = -(-together // self.ways) * self.ways
        tokens = np.zeros((height, self._prompt_width(max(len(prompts[q]) for q in questions), cap)), np.int32)
        lengths = np.ones(height, np.int32)
        for i, q in enumerate(questions):
            tokens[i, : len(prompts[q])] = prompts[q]
            lengths[i] = len(prompts[q])
        rows = len(questions) * len(numbers)
        owner, sample = (np.zeros(self.slots, np.int32) for _ in range(2))
        owner[:rows], sample[:rows] = np.repeat(np.arange(len(questions)), len(numbers)), np.tile(numbers, len(questions))
        prompt_id = ids[questions].astype(np.int32)[np.minimum(owner, len(questions) - 1)]

        how = {"greedy": sampling.temperature == 0, "top_p": sampling.top_p}
        temperature = np.float32(sampling.temperature or 1.0)
        with sharding.using(self.mesh, self.rules):
            state = self._prefill(
                self.params, tokens, lengths, owner, prompt_id, sample, np.int32(rows), np.int32(round), temperature,
                cap=cap, **how,
            )  # fmt: skip
        each = [prompts[questions[i]] for i in owner[:rows]]
        for start in range(0, cap, chunk):
            until = min(start + chunk, cap)
            with sharding.using(self.mesh, self.rules):
                state = self._decode(self.params, state=state, until=np.int32(until), temperature=temperature, **how)
            if sampling.stop:
                state = self._end_at_stop_strings(state, sampling.stop, start)
            finish = sharding.fetch(state.finish)[:rows]
            ended = (finish != GOING).all()
            if ended or shown:
                tokens, logprobs, length = (sharding.fetch(x)[:rows] for x in (state.tokens, state.logprobs, state.length))
                yield _trajectories(each, prompt_id[:rows], sample[:rows], tokens, logprobs, length, finish)
            if ended:
                return

    def _prompt_width(self, longest: int, cap: int) -> int:
        """Padded prompt length: one of a few, so that few programs are compiled."""
        if not self.engine.buckets:
            widths = {-(-self.engine.max_prompt_tokens // (ROUND_TO * parts)) * ROUND_TO for parts in (1, 2, 4, 8)}
            return min(w for w in widths if w >= longest)
        fitting = [b - cap for b in self.engine.buckets if b - cap >= longest]
        if not fitting:
            raise ValueError(
                f"a prompt of {longest} tokens with answers of up to {cap} needs {longest + cap} tokens, but the "
                f"largest of engine.buckets is {self.engine.buckets[-1]}; add a larger one"
            )
        return fitting[0]

    def _decoding_shardings(self) -> Decoding:
        """Where the rows lie, whichever program they come from: so the next one is compiled once."""

        def lay(*axes):
            return NamedSharding(self.mesh, sharding.partition(axes, self.rules))

        row, table = lay("batch"), lay("batch", None)
        cache = tuple(lay(*axes) for _, axes in caches.shapes(self.model, self.slots, 1))
        return Decoding(
            cache=cache, tokens=table, logprobs=table, length=row, finish=row, prompt_length=row, keys=row, step=lay()
        )

    def _end_at_stop_strings(self, state: Decoding, stop: tuple[str, ...], searched: int) -> Decoding:
        """Ends rows whose text holds a stop string at the token that completes it, and forgets what came after. The first
        ``searched`` tokens hold none: of these only as many are looked at as a string that goes on behind them may have, a
        byte being the least that a token adds to a text."""
        tokens, length, finish = (sharding.fetch(x).copy() for x in (state.tokens, state.length, state.finish))
        first = max(0, searched - max(len(s.encode()) for s in stop))
        grown = np.flatnonzero(length > searched)
        for row in grown:
            ids = tokens[row, first : length[row]].tolist()

            def holds(n: int, ids=ids) -> bool:
                text = self.text(ids[:n])
                return any(s in text for s in stop)

            if holds(len(ids)):
                length[row] = first + bisect_left(range(len(ids)), True, lo=searched - first, key=holds)
                finish[row] = FINISH.index("stop_string")
        if not (finish[grown] == FINISH.index("stop_string")).any():
            return state
        kept = np.arange(tokens.shape[1]) < length[:, None]
        return state.replace(
            tokens=jax.device_put(jnp.where(kept, state.tokens, 0), self._layout.tokens),
            logprobs=jax.device_put(jnp.where(kept, state.logprobs, 0.0), self._layout.logprobs),
            length=sharding.put(length, self.mesh, self.rules, "batch"),
            finish=sharding.put(finish, self.mesh, self.rules, "batch"),
        )


def _trajectories(prompts, prompt_id, sample, answers, logprobs, length, finish) -> Trajectories:
    """Puts each answer behind its prompt."""
    rows, prompt_length = len(prompts), np.array([len(p) for p in prompts], np.int32)
    total = prompt_length + length
    tokens = np.zeros((rows, int(total.max())), np.int32)
    mask, placed = np.zeros(tokens.shape, bool), np.zeros(tokens.shape, np.float32)
    for i, prompt in enumerate(prompts):
        here = slice(len(prompt), int(total[i]))
        tokens[i, : len(prompt)] = prompt
        tokens[i, here], placed[i, here], mask[i, here] = answers[i, : length[i]], logprobs[i, : length[i]], True
    return Trajectories(
        tokens=tokens, prompt_length=prompt_length, length=total.astype(np.int32), loss_mask=mask, logprobs=placed,
        finish=finish.astype(np.int8), prompt_id=prompt_id, sample=sample,
    )  # fmt: skip


def concatenate(parts: Sequence[Trajectories]) -> Trajectories:
    """One set of rows out of several, padded to the longest."""
    width = max(p.tokens.shape[1] for p in parts)

    def join(*arrays):
        return np.concatenate([np.pad(a, ((0, 0), (0, width - a.shape[1]))) if a.ndim == 2 else a for a in arrays])

    return jax.tree.map(join, *parts)
