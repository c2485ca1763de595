"""The rollout engine: continuous batching over slots. A question is prefilled once, its answers are decoded together with
those of other questions inside one compiled loop, and a slot whose answer has ended takes the next one.

A stage knows ``load`` and ``generate`` and no more; who shows an answer as it comes knows ``stream``, and who keeps answers
that have not ended ``go_on``: so another engine can stand here.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from r1jax import config, lora, sharding
from r1jax.models import cache as caches
from r1jax.models import decoder
from r1jax.rollout import stopping
from r1jax.rollout.hot_experts import HotExperts, busiest
from r1jax.rollout.jobs import Job, Usage, cache_lengths, prefill_heights, prompt_width, refill, take, trajectories
from r1jax.rollout.loop import Admission, Decoding, Drafting, Loop
from r1jax.rollout.weights import Weights
from r1jax.types import FINISH, GOING, Trajectories

NO_ADAPTERS = config.LoRA()


class Sampler:
    """Generates with one set of weights.

    Args:
      model: the architecture.
      engine: static shapes. ``slots`` is rounded up to the devices that share the batch.
      mesh: where to run.
      end_ids: tokens that end an answer.
      text: token ids -> str; needed for stop strings.
      seed: of the run. The key of a token is folded from (seed, round, prompt id, sample, position).
      adapters: which kernels of the weights have adapters.
      record_routes: keep the experts that every token went to (``Trajectories.routes``).

    Raises:
      ConfigError: ``engine`` asks for what the model has not.
      ValueError: routes are to be recorded and the model has no experts, or drafts are made.
    """

    def __init__(self, model: config.Model, engine: config.Engine, mesh: jax.sharding.Mesh, *, end_ids: Sequence[int],
                 text: Callable[[list[int]], str] | None = None, seed: int = 0,
                 adapters: config.LoRA = NO_ADAPTERS, record_routes: bool = False):  # fmt: skip
        if record_routes and not any(s.ff == "moe" for s in model.segments):
            raise ValueError("record_routes is on, but the model has no experts; leave it off")
        if record_routes and engine.speculative:
            raise ValueError("routes are recorded by the ordinary loop only; leave engine.speculative or routing_replay off")
        engine.check(model)
        engine.check_mesh(mesh.shape["expert"])
        self.model, self.engine, self.mesh, self.text = model, engine, mesh, text
        self.rules = sharding.rules("decode", model.attention.kind)
        self.ways = sharding.batch_ways(mesh, self.rules)
        self.slots = -(-engine.slots // self.ways) * self.ways
        self.refill = refill(self.slots, sharding.platform_of(mesh))
        self.specs = lora.adapt(decoder.read_specs(model, engine.weights), adapters)
        self._weights = Weights(self.specs, mesh, self.rules, lora.moving(self.specs, adapters))
        self.shardings = self._weights.shardings
        self._hot = None
        if engine.hot_experts:
            self._hot = HotExperts(model, engine.hot_experts, mesh, self.rules, self._weights.apart)
        self._loads: np.ndarray | None = None
        self._loop = Loop(
            model, self.slots, tuple(end_ids), seed, record_routes, engine.speculative, count_loads=self._hot is not None
        )
        self._programs: dict[int, Programs] = {}
        self.params = None
        self.version = 0
        self.usage = Usage()

    def load(self, params, *, copy: bool = True, version: int = 0) -> None:
        """Takes a model's weights into the decode layout, kernels in the type that the products read, layer by layer. With
        adapters, what is beside them is taken once, see ``Weights``.

        Args:
          copy: False takes ``params`` over and deletes them; they have the types of ``specs`` and lie as ``shardings`` say.
          version: what ``Trajectories.version`` says of the tokens that they sample.
        """
        self.version = version
        self.params = None  # or there would be two copies beside the trainer's while the new one is made
        self.params = self._weights.take(params) if copy else self._weights.take_over(params)
        if self._hot is not None:
            self.params = self._hot.attach(self.params, self._loads)

    @property
    def reshard_bytes(self) -> int:
        """What the last ``load`` wrote, on all devices together."""
        return self._weights.written + (self._hot.written if self._hot is not None else 0)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: config.Sampling,
        *,
        samples: int = 1,
        round: int = 0,
        ids: Sequence[int] | None = None,
        caps: Sequence[int] | None = None,
        progress: Callable[[np.ndarray, Trajectories], None] = lambda rows, part: None,
    ) -> Trajectories:
        """``samples`` answers to every prompt, those to one prompt side by side.

        Args:
          prompts: token ids, each with at least one token.
          round: which rollout of the run; another round draws other tokens.
          ids: int32 name of each prompt in the random stream; their index if None.
          caps: the most tokens of each answer, at most ``sampling.max_new_tokens``, which it is if None.
          progress: called with answers as they end, in any order: their rows, int[n], in what is returned, and themselves.

        Raises:
          ValueError: no weights are loaded, a prompt is empty or longer than ``engine.max_prompt_tokens``, a cap is out of
          range, or no bucket is long enough.
        """
        self._check(prompts, sampling)
        most = sampling.max_new_tokens
        caps = [most] * (len(prompts) * samples) if caps is None else list(caps)
        if len(caps) != len(prompts) * samples or not all(1 <= cap <= most for cap in caps):
            raise ValueError(f"caps must be {len(prompts) * samples} numbers from 1 to max_new_tokens {most}")
        names = range(len(prompts)) if ids is None else ids
        jobs = [
            Job(i, prompts[i // samples], int(names[i // samples]), i % samples, cap, round) for i, cap in enumerate(caps)
        ]
        for ended in self._run(jobs, sampling):
            if ended:
                progress(np.array([job.index for job in ended]), trajectories(ended))
        return trajectories(jobs)

    def go_on(self, jobs: Sequence[Job], sampling: config.Sampling, enough: Callable[[list[Job]], bool]) -> None:
        """Goes on with answers that have not ended, wherever they are, until all have or it is enough. What was sampled of an
        answer before is read by a prefill, and the next token is the one that it would have been without the break: but for
        rounding, and for a speculative engine, which draws another one with the same probabilities.

        Args:
          jobs: answers of any rounds; those that have ended already are left alone. Written to.
          enough: asked after every look of the host, and given the answers that have ended since the last, in the order of
            their slots. Every process must say the same.

        Raises:
          ValueError: as ``generate`` does.
        """
        going = [job for job in jobs if job.finish == GOING]
        if not going:
            return
        self._check([job.prompt for job in going], sampling)
        for _ in self._run(going, sampling, enough=enough):
            pass

    def stream(
        self, prompt: Sequence[int], sampling: config.Sampling, *, chunk: int, round: int = 0, id: int = 0
    ) -> Iterator[Trajectories]:
        """The one answer of ``generate([prompt], sampling, round=round, ids=[id])`` as it grows: after every ``chunk`` decode
        steps, of a token each if the engine is not speculative, and as a whole. Its ``finish`` is GOING until then.

        Raises:
          ValueError: as ``generate`` does.
        """
        self._check([prompt], sampling)
        job = Job(0, prompt, id, 0, sampling.max_new_tokens, round)
        for _ in self._run([job], sampling, shown=chunk):
            yield trajectories([job])

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
        self, jobs: Sequence[Job], sampling: config.Sampling, shown: int | None = None,
        enough: Callable[[list[Job]], bool] = lambda ended: False,
    ) -> Iterator[list[Job]]:  # fmt: skip
        """Decodes until every job has ended or it is ``enough``, and yields after each look of the host those that ended since
        the last. With ``shown`` it looks after every so many steps and writes into the jobs that go on too.

        Every process of several takes the same decisions: they follow from what all of them fetch.
        """
        run = _Run(self, jobs, sampling)
        chunk = shown or self.engine.chunk
        while run.waiting or run.held:
            fresh: set[int] = set()
            while run.waiting and (self.slots - len(run.held) >= self.refill or not run.held):
                fresh |= run.admit()
            run.decode(chunk - bool(fresh), self.refill if run.waiting else self.slots)
            ended = run.look(fresh, everything=shown is not None)
            if enough(ended):
                run.keep()
                break
            yield ended
        self._look_at_loads(run.state)

    def _look_at_loads(self, state: Decoding) -> None:
        """Of the answers just sampled: by these the next ``load`` chooses which experts have copies."""
        if self._hot is not None:
            self._loads, devices = sharding.fetch(state.loads).copy(), self._hot.devices
            self.usage.device_loads = (busiest(self._loads, devices), busiest(self._loads, devices, self._hot.chosen))

    def programs(self, blocks: int) -> Programs:
        """For a cache of so many blocks."""
        if blocks not in self._programs:
            self._programs[blocks] = Programs.of(self._loop, self._layout(blocks))
        return self._programs[blocks]

    def abstract(self, length: int, cap: int) -> tuple[Any, Decoding]:
        """Weights, and what is decoded in a cache of ``length`` positions, as ShapeDtypeStructs with shardings."""
        with sharding.using(self.mesh, self.rules):  # the type of the cache is a platform's
            empty = jax.eval_shape(partial(self._loop.empty, length=length, cap=cap))
        state = jax.tree.map(
            lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), empty, self._layout(1)
        )
        weights = self._weights.abstract()
        return weights if self._hot is None else self._hot.abstract(weights), state

    def lower_decode(self, length: int, sampling: config.Sampling) -> jax.stages.Lowered:
        """The decode loop over a cache of ``length`` positions, to be compiled; creates no array."""
        params, state = self.abstract(length, sampling.max_new_tokens)
        number, real = jax.ShapeDtypeStruct((), np.int32), jax.ShapeDtypeStruct((), np.float32)
        with sharding.using(self.mesh, self.rules):
            return self.programs(1).decode.lower(
                params, state=state, steps=number, enough=number, temperature=real,
                greedy=sampling.temperature == 0, top_p=sampling.top_p,
            )  # fmt: skip

    def _layout(self, blocks: int) -> Decoding:
        """Where the rows lie, whichever program they come from: so the next one is compiled once."""

        def lay(*axes):
            return NamedSharding(self.mesh, sharding.partition(axes, self.rules))

        row, table = lay("batch"), lay("batch", None)
        drafting = Drafting(lay("batch", None, None), table, row, row, row) if self.engine.speculative else None
        arrays = caches.shapes(self.model, self.slots, 1)
        layer = (tuple(lay(*sharding.few_whole(*array, self.mesh, self.rules)) for array in arrays),) * blocks
        return Decoding(
            cache=(layer,) * (self.model.n_layers + self.engine.speculative), tokens=table, logprobs=table, newest=row,
            length=row, cap=row, finish=row, prompt_length=row, keys=row,
            routes=lay("batch", None, None) if self._loop.record_routes else None, drafting=drafting,
            loads=lay(None, None) if self._loop.count_loads else None,
        )  # fmt: skip


@dataclass(frozen=True)
class Programs:
    """The compiled functions of a sampler."""

    empty: Callable[..., Decoding]
    block: Callable[..., caches.Cache]
    admit: Callable[..., tuple[Decoding, jax.Array | None]]
    decode: Callable[..., Decoding]

    @classmethod
    def of(cls, loop: Loop, layout: Decoding) -> Programs:
        static = {"static_argnames": ("greedy", "top_p"), "donate_argnames": ("state",)}
        one = tuple(layer[:1] for layer in layout.cache)
        return cls(
            jax.jit(loop.empty, static_argnames=("length", "cap"), out_shardings=layout),
            jax.jit(loop.block, static_argnames=("length",), out_shardings=one),
            jax.jit(loop.admit, **static, out_shardings=(layout, layout.routes)),
            jax.jit(loop.decode, **static, out_shardings=layout),
        )


class _Run:
    """One call of ``generate``: which job is in which slot, and how far it is."""

    def __init__(self, sampler: Sampler, jobs: Sequence[Job], sampling: config.Sampling):
        self.sampler, self.sampling = sampler, sampling
        self.how = {"greedy": sampling.temperature == 0, "top_p": sampling.top_p}
        self.temperature = np.float32(sampling.temperature or 1.0)
        self.waiting, self.held = deque(jobs), dict[int, Job]()
        self.length = np.zeros(sampler.slots, np.int64)
        """Tokens of each slot's answer."""
        self.drafts = np.zeros((2, sampler.slots), np.int64)
        """Made and accepted in each slot."""
        most = max(sampling.max_new_tokens, *(job.cap for job in jobs))
        self.lengths = cache_lengths(sampler.engine, max(len(job.prompt) for job in jobs), most)
        self.heights = prefill_heights(jobs, sampler.slots, sampler.ways, sampler.refill)
        self.usage = sampler.usage = Usage()
        self.read: list[tuple[dict[int, Job], Admission, jax.Array]] = []
        """Prefills whose routes were not fetched yet: the jobs by slot, what was read, and the routes."""
        programs = sampler.programs(1)
        with self._using():
            self.state = programs.empty(length=self.lengths[0], cap=most)

    def admit(self) -> set[int]:
        """Gives waiting jobs the slots that are free. Returns these."""
        free = [slot for slot in range(self.sampler.slots) if slot not in self.held]
        began = take(self.waiting, free, lambda longest: self._heights(self._width(longest))[-1])
        self.held |= began
        for slot, job in began.items():
            self.length[slot] = len(job.tokens) + 1
        self._fit(0)
        with self._using():
            rows, rounds = self._admission(began)
            self.state, routes = self._programs.admit(
                self.sampler.params, rows, rounds, self.temperature, state=self.state, **self.how
            )
        if routes is not None:
            self.read.append((began, rows, routes))
        return set(began)

    def decode(self, steps: int, enough: int) -> None:
        """Takes up to ``steps`` steps with all rows that go on, or fewer once ``enough`` slots are empty or have ended."""
        self._fit(steps)
        self._account()
        with self._using():
            self.state = self._programs.decode(
                self.sampler.params, state=self.state, steps=np.int32(steps), enough=np.int32(enough),
                temperature=self.temperature, **self.how,
            )  # fmt: skip

    def look(self, fresh: set[int], everything: bool) -> list[Job]:
        """Fetches how far the rows are, frees the slots of those that have ended, and returns their jobs.

        Args:
          fresh: slots that were admitted since the last look.
          everything: write into the jobs that go on too.
        """
        finish, reached = sharding.fetch(self.state.finish).copy(), sharding.fetch(self.state.length).copy()
        self._count(reached)
        stop = self.sampling.stop
        rows = [slot for slot in self.held if stop or everything or finish[slot] != GOING]
        tokens, logprobs = (sharding.fetch_rows(x, rows) for x in (self.state.tokens, self.state.logprobs))
        if stop:
            for slot, job in self.held.items():
                ids = [*job.tokens, *tokens[slot, len(job.tokens) : reached[slot]].tolist()]
                searched = int(self.length[slot]) - (slot in fresh)
                if (end := stopping.find(ids, searched, stop, self.sampler.text)) is not None:
                    reached[slot], finish[slot] = end, FINISH.index("stop_string")
            self.state = self.state.replace(finish=sharding.put(finish, self.sampler.mesh, self.sampler.rules, "batch"))
        self._fetch_prefilled()
        self.length = reached.astype(np.int64)
        ended = [slot for slot in self.held if finish[slot] != GOING]
        for slot in self.held if everything else ended:
            self.held[slot].finish = int(finish[slot])
            self._take_out(slot, tokens, logprobs)
        return [self.held.pop(slot) for slot in ended]

    def keep(self) -> None:
        """Writes what there is into the jobs that go on."""
        tokens, logprobs = sharding.fetch(self.state.tokens), sharding.fetch(self.state.logprobs)
        for slot in self.held:
            self._take_out(slot, tokens, logprobs)

    def _take_out(self, slot: int, tokens: np.ndarray, logprobs: np.ndarray) -> None:
        """The tokens of a slot that its job has not got."""
        job = self.held[slot]
        here = slice(len(job.tokens), int(self.length[slot]))
        job.tokens += tokens[slot, here].tolist()
        job.logprobs += logprobs[slot, here].tolist()
        job.versions += [self.sampler.version] * (here.stop - here.start)
        if job.routes is not None:
            routes = sharding.fetch(self.state.routes[slot])[len(job.routes) - len(job.prompt) : here.stop - 1]
            job.routes = np.concatenate([job.routes, routes.reshape(-1, *job.routes.shape[1:])])

    def _fetch_prefilled(self) -> None:
        """The answers to a prompt share one array of its routes. Of an answer that goes on those stay that its tokens took
        before."""
        for began, rows, routes in self.read:
            fetched = sharding.fetch(routes)
            fetched = fetched.reshape(*fetched.shape[:2], -1, self.sampler.model.moe.top_k)
            prompts = [known[:length].copy() for known, length in zip(fetched, rows.lengths, strict=True)]
            for slot, job in began.items():
                routes = prompts[rows.owner[slot]]
                job.routes = routes if job.routes is None else np.concatenate([job.routes, routes[len(job.routes) :]])
        self.read.clear()

    def _count(self, reached: np.ndarray) -> None:
        """The steps since the last look, in which the answers became so long."""
        grown = turns = (reached - self.length)[list(self.held)]
        if (drafting := self.state.drafting) is not None:
            drafts = np.stack([sharding.fetch(x) for x in (drafting.made, drafting.accepted)]).astype(np.int64)
            (turns, accepted), self.drafts = drafts - self.drafts, drafts
            self.usage.accepted += int(accepted.sum())
        self.usage.steps += int(turns.max())
        self.usage.busy += int(turns.sum())
        self.usage.tokens += int(grown.sum())

    @property
    def _programs(self) -> Programs:
        return self.sampler.programs(len(self.state.cache[0]))

    def _using(self):
        return sharding.using(self.sampler.mesh, self.sampler.rules)

    def _fit(self, steps: int) -> None:
        """Makes the cache as long as the longest row needs for so many more steps, or for its cap. What no row needs any more
        is given back."""
        tokens = steps * (2 if self.sampler.engine.speculative else 1)
        longest = max(len(job.prompt) + int(self.length[slot]) for slot, job in self.held.items())
        blocks = 1 + bisect_left(self.lengths, min(longest + tokens - 1, self.lengths[-1]))  # newest: not in it yet
        if (held := len(self.state.cache[0])) < blocks:
            cache = self.state.cache
            for more, before in zip(self.lengths[held:blocks], self.lengths[held - 1 :], strict=False):
                cache = caches.grow(cache, self.sampler.programs(1).block(length=more - before))
            self.state = self.state.replace(cache=cache)
        elif held > blocks:
            self.state = self.state.replace(cache=caches.shrink(self.state.cache, blocks))

    def _account(self) -> None:
        model = self.sampler.model
        each = caches.per_token(model, mtp=self.sampler.engine.speculative, dtype=caches.dtype(model))
        size = self.lengths[len(self.state.cache[0]) - 1] * self.sampler.slots * each
        self.usage.cache_peak = max(self.usage.cache_peak, size)
        self.usage.cache_bytes += size
        self.usage.cache_tokens += sum(len(job.prompt) + int(self.length[slot]) for slot, job in self.held.items())

    def _width(self, longest: int) -> int:
        """Of a prefill with so many tokens: that of a prompt, or of a cache where an answer goes on that is longer."""
        most = next(length for length in self.lengths if length >= longest)
        return prompt_width(longest, self.sampler.engine, most)

    def _heights(self, width: int) -> list[int]:
        """A prefill of longer rows has fewer, so that it holds no more tokens than one of prompts may have."""
        room = self.heights[-1] * prompt_width(self.sampler.engine.max_prompt_tokens, self.sampler.engine, 0)
        return [height for height in self.heights if height * width <= room] or [self.sampler.ways]

    def _admission(self, began: dict[int, Job]) -> tuple[Admission, np.ndarray]:
        """The rows that begin, and the round of each slot's."""
        prompts: dict[tuple[int, ...], int] = {}
        for job in began.values():
            prompts.setdefault(tuple(job.known), len(prompts))
        width = self._width(max(map(len, prompts)))
        height = next(h for h in self._heights(width) if h >= len(prompts))
        tokens, lengths = np.zeros((height, width), np.int32), np.ones(height, np.int32)
        for ids, row in prompts.items():
            tokens[row, : len(ids)], lengths[row] = ids, len(ids)
        slots = self.sampler.slots
        rows = Admission(tokens, lengths, np.zeros(slots, np.int32), np.zeros(slots, bool), *np.zeros((4, slots), np.int32))
        rounds = np.zeros(slots, np.int32)
        for slot, job in began.items():
            rows.owner[slot], rows.taken[slot] = prompts[tuple(job.known)], True
            rows.prompt_length[slot], rows.cap[slot] = len(job.prompt), job.cap
            rows.prompt_id[slot], rows.sample[slot], rounds[slot] = job.prompt_id, job.sample, job.round
        return rows, rounds
