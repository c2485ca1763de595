"""Rows by index: from files, a task generator or a function; and several sources mixed into one endless sequence."""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from r1jax.config import ConfigError, FileOptions, Source, from_json
from r1jax.data import files
from r1jax.data.split import held_out as is_held_out
from r1jax.rewards.load import load_file

GYM_TEST_SHARE = 1 / 4
GYM_TRIES = 200
"""Questions drawn for one row before giving up: only a task with a handful of different questions needs so many."""


def load(source: Source, *, held_out: bool = False) -> Rows:
    """The rows of a source.

    - ``NAME.jsonl``, ``NAME.parquet``, a folder of such files, ``gs://BUCKET/PATH``, or a data set on the Hub,
      ``org/name[@revision]``: ``options`` are ``config.FileOptions``.
    - ``reasoning_gym:TASK``: ``options`` are the task's, beside ``seed`` and ``size``. A question's hash decides its split.
      A row also carries ``task`` and ``entry``, for the reward ``reasoning_gym``.
    - ``pkg.mod:f`` or ``file.py:f``: ``f(split, **options)`` returns a sequence of rows.

    Args:
      source: where from.
      held_out: take the ``test`` split, whatever ``source.split`` says.

    Raises:
      ConfigError: there is no such source or split, it has no rows, or a row is malformed, with its file and line or its index.
        Rows of functions and tasks are checked as they are read.
    """
    split = "test" if held_out else source.split
    target, colon, name = source.path.rpartition(":")
    if target == "reasoning_gym":
        rows = Rows(source, _gym(source, name, split), source.path)
    elif colon and target and name and "://" not in source.path and not Path(source.path).expanduser().exists():
        rows = Rows(source, _call(source, target, name, split), source.path)
    elif "/" not in source.path and not Path(source.path).exists():
        kinds = "org/name of the Hub, gs://BUCKET/PATH, reasoning_gym:TASK, pkg.mod:f or file.py:f"
        raise _error(source, f"path {source.path!r} is no file or folder here, nor {kinds}")
    else:
        table = _files(source, split)
        rows = Rows(source, table.rows, None, table.digest, table.commit)
    if not len(rows):
        raise _error(source, f"{source.path} has no rows in split {split!r}")
    return rows


class Rows(Sequence):
    """A source's rows: checked, cut to its ``limit``, and with its name. ``digest`` names the content of files, ``commit`` the
    state of their repository on the Hub."""

    def __init__(
        self, source: Source, rows: Sequence[dict], where: str | None, digest: str = "", commit: str | None = None
    ):
        """``where`` is what a complaint about a row calls the source; None if the rows have been checked."""
        self.source, self.rows, self.where, self.digest, self.commit = source, rows, where, digest, commit
        self.length = len(rows) if source.limit is None else min(len(rows), source.limit)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int | slice) -> dict | list[dict]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.length))]
        if not -self.length <= index < self.length:
            raise IndexError(f"row {index} of {self.length}")
        index %= self.length
        row = self.rows[index]
        if self.where is not None and (problem := _problem(row)):
            raise _error(self.source, f"{self.where} row {index}: {problem}")
        return {"prompt": None, "answer": None, **row, "source": self.source.name}


class Mixture:
    """Several sources as one endless sequence: ``mixture[i]``, for any i >= 0, is a function of sources, seed and i alone.

    In every prefix each source has its share by weight, to within a row. A source's rows come once each before any comes
    again, in another order each time.
    """

    def __init__(self, sources: Sequence[tuple[Source, Sequence[dict]]], seed: int):
        # Here because grain imports jax, which takes seconds and is not needed to read rows.
        import grain

        sources = [(source, rows) for source, rows in sources if source.weight > 0]
        if not sources:
            raise ConfigError("every source has weight 0; give at least one a positive weight")
        self._fingerprint = _hash([seed, [_identity(source, rows) for source, rows in sources]])
        self._mixed = grain.MapDataset.mix(
            [
                grain.MapDataset.source(rows).shuffle(seed=int(_hash([seed, source.name])[:8], 16)).repeat()
                for source, rows in sources
            ],
            [source.weight for source, _ in sources],
        )

    def __getitem__(self, index: int) -> dict:
        if index < 0:
            raise IndexError(f"row {index} of a mixture; rows count from 0 and have no end")
        return self._mixed[index]

    @property
    def fingerprint(self) -> str:
        """Names the whole sequence: the same for the same sources, weights, options, rows and seed. Of rows that are made by
        code, only a few are looked at."""
        return self._fingerprint


def _identity(source: Source, rows: Sequence[dict]) -> Any:
    probes = sorted({i * (len(rows) - 1) // 7 for i in range(8)})
    content = rows.digest if isinstance(rows, Rows) else ""
    return [source.name, source.weight, source.split, source.options, len(rows), content, [_json(rows[i]) for i in probes]]


def _json(value: Any) -> str:
    """``value`` as JSON in one fixed form; what JSON cannot hold stands as its ``str``."""
    return json.dumps(value, sort_keys=True, default=str)


def _hash(value: Any) -> str:
    return hashlib.sha256(_json(value).encode()).hexdigest()


def _error(source: Source, message: str) -> ConfigError:
    return ConfigError(f"source {source.name!r}: {message}")


def _problem(row: Any) -> str | None:
    """What is wrong with a row, None if nothing is."""
    if not isinstance(row, dict):
        return f"a row is an object with 'prompt' and 'answer', not {type(row).__name__}"
    if problem := prompt_problem(row):
        return problem
    if "answer" not in row and "completion" not in row:
        return f"no 'answer' (it has {', '.join(map(repr, row))})"
    if not isinstance(row.get("completion", ""), str):
        return f"'completion' is {type(row['completion']).__name__}; it must be a string"
    return None


def prompt_problem(row: dict) -> str | None:
    """What is wrong with a row's prompt, None if nothing is."""
    if "prompt" not in row:
        return f"no 'prompt' (it has {', '.join(map(repr, row)) or 'no fields'})"
    prompt = row["prompt"]
    if isinstance(prompt, list):
        if not prompt:
            return "'prompt' is an empty list of messages"
        for message in prompt:
            if not (isinstance(message, dict) and all(isinstance(message.get(k), str) for k in ("role", "content"))):
                return f"'prompt' holds {message!r:.80}, not a message {{'role': str, 'content': str}}"
    elif not isinstance(prompt, str):
        return f"'prompt' is {type(prompt).__name__}; it must be a string or a list of messages"
    return None


def _files(source: Source, split: str) -> files.Table:
    try:
        return files.load(source.path, split, from_json(FileOptions, source.options, "options"), _problem)
    except ValueError as e:
        raise _error(source, str(e)) from e


class _Gym(Sequence):
    """Questions of one reasoning-gym task that are on one side of the split."""

    def __init__(self, create: Callable[..., Any], task: str, test: bool, seed: int, size: int):
        self.create, self.task, self.test, self.seed, self.size = create, task, test, seed, size
        self.datasets = [create(seed=seed, size=size)]

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict:
        for number in range(GYM_TRIES):
            if number == len(self.datasets):  # question i has the seed + i: go on where the last dataset ended
                self.datasets.append(self.create(seed=self.seed + number * self.size, size=self.size))
            entry = self.datasets[number][index]
            if is_held_out(entry["question"], GYM_TEST_SHARE) == self.test:
                return {"prompt": entry["question"], "answer": entry["answer"], "task": self.task, "entry": entry}
        side = "test" if self.test else "train"
        raise ConfigError(f"reasoning_gym:{self.task} has too few different questions for a {side} split; change its options")


def _gym(source: Source, task: str, split: str) -> _Gym:
    if split not in ("train", "test"):
        raise _error(source, f"reasoning_gym has no split {split!r}; use 'train' or 'test'")
    try:
        import reasoning_gym
    except ModuleNotFoundError as e:
        if e.name != "reasoning_gym":
            raise
        raise _error(source, "the package reasoning-gym is not installed; pip install 'r1jax[reasoning-gym]'") from e
    tasks = reasoning_gym.factory.DATASETS
    if task not in tasks:
        raise _error(source, f"reasoning_gym has no task {task!r}{_nearest(task, tasks)}")
    options = dict(source.options)
    seed = options.pop("seed", 0)
    size = options.pop("size", 512 if split == "test" else 10_000)
    try:
        return _Gym(functools.partial(reasoning_gym.create_dataset, task, **options), task, split == "test", seed, size)
    except (TypeError, ValueError, AssertionError) as e:  # its configs check themselves with assert
        raise _error(source, f"reasoning_gym:{task} does not take options {source.options}: {e}") from e


def _call(source: Source, target: str, name: str, split: str) -> Sequence[dict]:
    function = _import(source, target, name)
    try:
        inspect.signature(function).bind(split, **source.options)
    except TypeError as e:
        raise _error(source, f"{source.path} does not take (split, **{source.options}): {e}") from e
    try:
        rows = function(split, **source.options)
    except ValueError as e:
        raise _error(source, str(e)) from e
    if not (hasattr(rows, "__len__") and hasattr(rows, "__getitem__")):
        raise _error(source, f"{source.path} returned {type(rows).__name__}; return a list or a sequence")
    return rows


def _import(source: Source, target: str, name: str) -> Callable[..., Sequence[dict]]:
    try:
        module = load_file(Path(target)) if target.endswith(".py") else importlib.import_module(target)
    except (ImportError, OSError, SyntaxError) as e:
        raise _error(source, f"cannot import {target}: {e}") from e
    function = vars(module).get(name)
    if not callable(function):
        raise _error(source, f"{target} has no function {name!r}{_nearest(name, vars(module))}")
    return function


def _nearest(name: str, names: Any) -> str:
    import difflib

    near = difflib.get_close_matches(name, [n for n in names if not n.startswith("_")], n=3)
    return f"; did you mean {' or '.join(near)}?" if near else ""
