"""What the host knows of a rollout: the answers to be sampled, which of them begin together, and what was used."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from r1jax import config
from r1jax.nn.moe import unrecorded
from r1jax.types import GOING, Trajectories

ROUND_TO = 8  # prompt and cache lengths are multiples of this
SHORTEST_BUCKET, MOST_BUCKETS = 256, 6  # each is a program to compile, and a shorter cache saves next to nothing


@dataclass
class Job:
    """An answer to be sampled, and what there is of it."""

    index: int
    """Its row in what ``generate`` returns."""
    prompt: Sequence[int]
    prompt_id: int
    sample: int
    cap: int
    round: int = 0
    """The rollout in which it began."""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    """Of the weights that sampled each token."""
    finish: int = GOING
    routes: np.ndarray | None = None
    """[n, L, K] of the first n tokens, the prompt's too, as in ``Trajectories.routes``; None if they are not recorded, or none
    was read."""

    @property
    def known(self) -> list[int]:
        """What a prefill reads."""
        return [*self.prompt, *self.tokens]


@dataclass
class Usage:
    """What a call of ``generate`` used."""

    steps: int = 0
    """Decode steps."""
    busy: int = 0
    """Rows that took part in them: at most ``steps`` times the slots."""
    tokens: int = 0
    """Tokens sampled by them: one for each such row, or up to two of a speculative engine."""
    accepted: int = 0
    """Drafts that were kept, of ``busy`` of a speculative engine."""
    cache_peak: int = 0
    """Bytes of the cache on all devices, at its largest."""
    cache_bytes: int = 0
    """Bytes of the cache, summed over looks; with ``cache_tokens`` what a token that is held costs."""
    cache_tokens: int = 0
    """Tokens held by rows that go on, summed over looks."""
    device_loads: tuple[float, float] | None = None
    """The busiest device's experts over the mean, without the copies of ``engine.hot_experts`` and with them."""

    def metrics(self, slots: int) -> dict[str, float]:
        """``r1jax/observe/README.md`` says what they mean."""
        loads = dict(zip(("rollout/device_load_alone", "rollout/device_load"), self.device_loads or (), strict=False))
        return loads | {
            "rollout/slots_busy": self.busy / max(1, self.steps * slots),
            "rollout/tokens_per_step": self.tokens / max(1, self.busy),
            "rollout/drafts_accepted": self.accepted / max(1, self.busy),
            "rollout/cache_peak_bytes": float(self.cache_peak),
            "rollout/cache_bytes_per_token": self.cache_bytes / max(1, self.cache_tokens),
        }


def refill(slots: int, platform: str) -> int:
    """How many ended slots are refilled together: a prefill of one row costs nearly as much as of some, on a CPU of more."""
    return max(1, slots // (4 if platform == "cpu" else 8))


def take(waiting: deque[Job], free: Sequence[int], room: Callable[[int], int]) -> dict[int, Job]:
    """The next jobs in their order, a free slot each, as long as these last and at most ``room(n)`` prompts, the longest of n
    tokens, are prefilled; at least one."""
    began: dict[int, Job] = {}
    known: set[tuple[int, ...]] = set()
    for slot in free:
        if not waiting:
            break
        more = known | {tuple(waiting[0].known)}
        if known and len(more) > len(known) and len(more) > room(max(map(len, more))):
            break
        known = more
        began[slot] = waiting.popleft()
    return began


def prefill_heights(jobs: Sequence[Job], slots: int, ways: int, together: int) -> list[int]:
    """How many prompts a prefill may have, rising: what ``together`` slots that are refilled usually need, and what all slots
    do."""
    distinct = len({(job.prompt_id, job.sample if job.tokens else None) for job in jobs})
    most = min(distinct, -(-slots * distinct // len(jobs)) + 1, slots)
    few = min(most, -(-together * distinct // len(jobs)) + 1)
    return sorted({-(-n // ways) * ways for n in (few, most)})


def cache_lengths(engine: config.Engine, longest: int, cap: int) -> list[int]:
    """The lengths of the cache that programs are compiled for, rising: ``engine.buckets``, or what is needed at the most, its
    half, and so on while this is at least 256.

    Args:
      longest: tokens of the longest prompt.

    Raises:
      ValueError: no bucket is long enough.
    """
    if engine.buckets:
        if longest + cap > engine.buckets[-1]:
            raise ValueError(
                f"a prompt of {longest} tokens with answers of up to {cap} needs {longest + cap} tokens, but the "
                f"largest of engine.buckets is {engine.buckets[-1]}; add a larger one"
            )
        return list(engine.buckets)
    total = -(-(prompt_width(longest, engine, longest) + cap) // ROUND_TO) * ROUND_TO
    parts = {-(-(total >> halvings) // ROUND_TO) * ROUND_TO for halvings in range(MOST_BUCKETS)}
    return sorted({total} | {length for length in parts if length >= SHORTEST_BUCKET})


def prompt_width(longest: int, engine: config.Engine, most: int) -> int:
    """Padded prompt length: one of a few, so that few programs are compiled. An answer that goes on is read like a prompt and
    may be longer than one; ``most`` is then what there is."""
    widths = {-(-engine.max_prompt_tokens // (ROUND_TO * parts)) * ROUND_TO for parts in (1, 2, 4, 8)}
    return min((w for w in widths if w >= longest), default=most)


def trajectories(jobs: Sequence[Job]) -> Trajectories:
    """The jobs' rows."""
    prompt_length = np.array([len(job.prompt) for job in jobs], np.int32)
    total = prompt_length + np.array([len(job.tokens) for job in jobs], np.int32)
    tokens = np.zeros((len(jobs), int(total.max())), np.int32)
    mask, logprobs, version = np.zeros(tokens.shape, bool), np.zeros(tokens.shape, np.float32), np.zeros(tokens.shape, np.int32)
    for i, job in enumerate(jobs):
        here = slice(len(job.prompt), int(total[i]))
        tokens[i, : total[i]] = job.known
        logprobs[i, here], version[i, here], mask[i, here] = job.logprobs, job.versions, True
    routes = None
    if (first := next((job.routes for job in jobs if job.routes is not None), None)) is not None:
        routes = np.full((*tokens.shape, *first.shape[1:]), unrecorded(first.dtype), first.dtype)
        for i, job in enumerate(jobs):
            if job.routes is not None:
                routes[i, : len(job.routes)] = job.routes
    return Trajectories(
        tokens=tokens, prompt_length=prompt_length, length=total, loss_mask=mask, logprobs=logprobs,
        finish=np.array([job.finish for job in jobs], np.int8), prompt_id=np.array([job.prompt_id for job in jobs], np.int32),
        sample=np.array([job.sample for job in jobs], np.int32), routes=routes, version=version,
    )  # fmt: skip


def jobs_of(t: Trajectories, rounds: Sequence[int], caps: Sequence[int]) -> list[Job]:
    """The inverse of ``trajectories``, which holds neither the rounds in which answers began nor their caps."""
    jobs = []
    for i, (start, end) in enumerate(zip(t.prompt_length.tolist(), t.length.tolist(), strict=True)):
        here = slice(start, end)
        routes = None if t.routes is None or end == start else t.routes[i, : end - 1].copy()
        jobs.append(Job(
            i, t.tokens[i, :start].tolist(), int(t.prompt_id[i]), int(t.sample[i]), int(caps[i]), int(rounds[i]),
            t.tokens[i, here].tolist(), t.logprobs[i, here].tolist(), t.version[i, here].tolist(), int(t.finish[i]), routes,
        ))  # fmt: skip
    return jobs
