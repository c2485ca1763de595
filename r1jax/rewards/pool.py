"""Scores answers in worker processes: a bad reward or a bad answer costs one score, never the run."""

from __future__ import annotations

import itertools
import json
import queue
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from r1jax.config import Workers
from r1jax.rewards.process import START_SECONDS, Died, Late, WorkerProcess
from r1jax.rewards.score import Score

CHUNK = 32
"""Answers sent to a worker at once."""
CLOSED = "the reward pool was closed while it was scoring"


@dataclass(frozen=True)
class Item:
    """One answer and the names of the rewards that score it."""

    prompt: Any
    """str, or messages."""
    completion: str
    """The assistant's whole turn, with what the template pre-filled."""
    row: dict
    """The question's row; JSON values only."""
    rewards: tuple[str, ...]


class Pool:
    """``workers.count`` worker processes, started when they are first needed. A context manager.

    Its methods may be called from any thread. At most ``workers.queue`` items are under way at once.
    """

    def __init__(self, workers: Workers):
        self._queue = workers.queue
        self._tasks: queue.SimpleQueue[_Chunk | _Check | None] = queue.SimpleQueue()
        self._feeders = [_Feeder(workers, self._tasks, self._scored) for _ in range(workers.count)]
        self._loadable: set[str] = set()
        self._closed = False
        self._under_way = 0
        self._room = threading.Condition()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def check(self, names: Sequence[str]) -> None:
        """Loads the rewards in a worker.

        Raises:
          ValueError: one or more cannot be loaded; one line that names each with its reason.
        """
        unknown = tuple(sorted(set(names) - self._loadable))
        if not unknown:
            return
        check = _Check(unknown, Future())
        self._put(check, 0)
        failed = check.future.result()
        if failed:
            raise ValueError("; ".join(failed.values()))
        self._loadable.update(unknown)

    def submit(self, items: Sequence[Item]) -> Future[list[dict[str, Score]]]:
        """Starts scoring; waits while ``workers.queue`` items are under way. The future holds what ``score`` returns.

        Raises:
          ValueError: a reward cannot be loaded, a row is not JSON, or the pool is closed.
        """
        self.check([name for item in items for name in item.rewards])
        batch = _Batch(items)
        size = max(1, min(CHUNK, self._queue, -(-len(items) // (4 * len(self._feeders)))))
        try:
            for first in range(0, len(items), size):
                indices = range(first, min(first + size, len(items)))
                self._put(_Chunk(batch, indices, [_encode(i, items[i]) for i in indices]), len(indices))
        except ValueError as e:
            batch.fail(e)
            raise
        return batch.future

    def score(self, items: Sequence[Item]) -> list[dict[str, Score]]:
        """The scores of each item by reward, in the order of ``items``.

        Raises:
          ValueError: a reward cannot be loaded, a row is not JSON, or the pool is closed.
        """
        return self.submit(items).result()

    def stream(self, items: Iterable[Item]) -> Iterator[dict[str, Score]]:
        """The scores of each item by reward, in the order of ``items``, of which at most ``workers.queue`` are read ahead.

        Raises:
          ValueError: as ``score``.
        """
        left, waiting = iter(items), deque()
        size = max(1, min(self._queue // 4, 4 * CHUNK * len(self._feeders)))
        while part := list(itertools.islice(left, size)):
            waiting.append(self.submit(part))
            if len(waiting) == self._queue // size:
                yield from waiting.popleft().result()
        for future in waiting:
            yield from future.result()

    def close(self) -> None:
        """Ends the workers. Scores still being computed fail with ``ValueError``."""
        with self._room:
            if self._closed:
                return
            self._closed = True
            for _ in self._feeders:
                self._tasks.put(None)
        for feeder in self._feeders:
            feeder.close()

    def _put(self, task: _Chunk | _Check, items: int) -> None:
        with self._room:
            self._room.wait_for(lambda: self._closed or self._under_way + items <= self._queue)
            if self._closed:
                raise ValueError("this reward pool is closed; score inside its 'with' block")
            self._under_way += items
            self._tasks.put(task)

    def _scored(self, items: int) -> None:
        with self._room:
            self._under_way -= items
            self._room.notify_all()


@dataclass(frozen=True)
class _Check:
    names: tuple[str, ...]
    future: Future

    def fail(self, error: Exception) -> None:
        self.future.set_exception(error)


class _Batch:
    """The results of one call, filled in by the feeders."""

    def __init__(self, items: Sequence[Item]):
        self.future: Future = Future()
        self.items = items
        self.scores: list[dict[str, Score]] = [{} for _ in items]
        self._left = len(items)
        self._lock = threading.Lock()
        if not items:
            self.future.set_result(self.scores)

    def done(self, count: int) -> None:
        with self._lock:
            self._left -= count
            if self._left == 0 and not self.future.done():
                # Rewards finish in the order they were run, which a crash can change.
                ordered = [{n: s[n] for n in item.rewards} for item, s in zip(self.items, self.scores, strict=True)]
                self.future.set_result(ordered)

    def fail(self, error: Exception) -> None:
        with self._lock:
            if not self.future.done():
                self.future.set_exception(error)


@dataclass(frozen=True)
class _Chunk:
    batch: _Batch
    indices: range
    requests: Sequence[str]
    """Per index, the JSON of the item's prompt, completion and row, without the opening brace."""

    def fail(self, error: Exception) -> None:
        self.batch.fail(error)


class _Feeder:
    """The thread that owns one worker process and replaces it when it dies."""

    def __init__(self, workers: Workers, tasks: queue.SimpleQueue, scored: Callable[[int], None]):
        self._workers, self._tasks, self._scored = workers, tasks, scored
        self._process: WorkerProcess | None = None
        self._loaded: set[str] = set()
        self._unloadable: dict[str, str] = {}
        self._closing = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="reward worker", daemon=True)
        self._thread.start()

    def close(self) -> None:
        with self._lock:
            self._closing = True
            if self._process is not None:
                self._process.kill()
        self._thread.join()

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            try:
                if isinstance(task, _Check):
                    self._ready(task.names)
                    task.future.set_result({n: self._unloadable[n] for n in task.names if n in self._unloadable})
                elif not task.batch.future.done():
                    self._score(task)
            except Exception as e:  # handed to whoever waits for the result
                task.fail(e)
            if isinstance(task, _Chunk):
                self._scored(len(task.indices))
        self._end()

    def _score(self, chunk: _Chunk) -> None:
        scores, deaths = chunk.batch.scores, Counter()
        requests = dict(zip(chunk.indices, chunk.requests, strict=True))
        todo = deque((i, name) for i in chunk.indices for name in dict.fromkeys(chunk.batch.items[i].rewards))
        names = {name for _, name in todo}
        while todo:
            process = self._ready(names)
            for i, name in [pair for pair in todo if pair[1] in self._unloadable]:
                scores[i][name] = Score(0.0, "error", self._unloadable[name])
                todo.remove((i, name))
            for i, pairs in itertools.groupby(todo, key=lambda pair: pair[0]):
                rewards = json.dumps([name for _, name in pairs])
                process.send(f'{{"id": {i}, "rewards": {rewards}, {requests[i]}\n'.encode())
            try:
                while todo:
                    reply, value, status, why = process.score()
                    if reply != todo[0][0]:
                        raise Died("the worker's replies are out of step; did the reward fork?")
                    i, name = todo.popleft()
                    scores[i][name] = Score(value, status, why)
            except (Died, Late) as e:
                self._end()
                if self._closing:
                    raise ValueError(CLOSED) from e
                i, name = todo[0]  # replies come in order: the first that is missing was being scored
                deaths[i, name] += 1
                if isinstance(e, Late):
                    late = f"took longer than {self._workers.timeout:g} s and had to be killed"
                    scores[i][name] = Score(0.0, "timeout", late)
                    todo.popleft()
                elif deaths[i, name] >= e.allowed:
                    scores[i][name] = Score(0.0, "crash", str(e))
                    todo.popleft()
        chunk.batch.done(len(chunk.indices))

    def _ready(self, names: Iterable[str]) -> WorkerProcess:
        """A live worker that has loaded what can be loaded of ``names``."""
        deaths = Counter()
        while True:
            process = self._running()
            name = next((n for n in names if n not in self._loaded and n not in self._unloadable), None)
            if name is None:
                return process
            try:
                why = process.load(name)
            except Died as e:
                self._end()
                deaths[name] += 1
                why = f"reward {name!r}: {e} while importing it" if deaths[name] >= e.allowed else ""
            except Late:
                self._end()
                why = f"reward {name!r}: importing it took longer than {START_SECONDS:g} s"
            if why is None:
                self._loaded.add(name)
            elif why:
                self._unloadable[name] = why

    def _running(self) -> WorkerProcess:
        if self._process is not None and not self._process.alive():
            self._end()
        with self._lock:
            if self._closing:
                raise ValueError(CLOSED)
            if self._process is None:
                self._process = WorkerProcess(self._workers)
        return self._process

    def _end(self) -> None:
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            process.close()
        self._loaded.clear()


def _encode(index: int, item: Item) -> str:
    if not isinstance(item.completion, str):
        raise ValueError(f"item {index}: completion is a {type(item.completion).__name__}; it must be a string")
    try:
        return json.dumps({"prompt": item.prompt, "completion": item.completion, "row": item.row})[1:]
    except (TypeError, ValueError) as e:
        raise ValueError(f"item {index}: its prompt or row does not fit JSON ({e}); rewards get rows as JSON values") from e
