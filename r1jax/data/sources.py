"""Rows by index: from files, a task generator or a function; and several sources mixed into one endless sequence."""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib
import inspect
import json
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from r1jax.config import ConfigError, FileOptions, Source, from_json
from r1jax.data import files, known
from r1jax.data.split import held_out as is_held_out
from r1jax.rewards.load import load_file

GYM_TEST_SHARE = 1 / 4
GYM_TRIES = 200
"""Questions drawn for one row before giving up: only a task with a handful of different questions needs so many."""
SHORT = {"arithmetic": "r1jax.data.arithmetic:rows"} | {name: k.path for name, k in known.KNOWN.items()}
"""Names for the command line."""
KINDS = "org/name of the Hub, gs://BUCKET/PATH, reasoning_gym:TASK, pkg.mod:f or file.py:f"


def named(text: str, *, split: str | None = None, reward: str | None = None, limit: int | None = None) -> Source:
    """The source that a command line calls ``text``: a path or the name of a known data set, and then perhaps options as a
    JSON object, ``rows.jsonl{"test_share":0.1}``.

    Args:
      split: None is the one with the problems: of a known data set its own, of a single file without ``test_share`` all of
        it, else ``test``.
      reward: None is the known data set's, of reasoning_gym the task's own, else ``accuracy``.

    Raises:
      ConfigError: the options are no JSON object, or a bare name is neither known nor here.
    """
    path, brace, rest = text.partition("{")
    if path not in SHORT and re.fullmatch(r"[\w-]+", path) and not Path(path).exists():
        near = difflib.get_close_matches(path, SHORT, n=1)
        known_names = f"did you mean {near[0]}? Names are" if near else "names are"
        raise ConfigError(f"no {path!r} in {Path.cwd()}; {known_names} {', '.join(SHORT)}; else give {KINDS}")
    try:
        options = json.loads(brace + rest) if brace else {}
    except json.JSONDecodeError as e:
        raise ConfigError(f'{text}: its options are not JSON, {e.msg}; write them as {path}{{"NAME":VALUE}}') from e
    if path in known.KNOWN:
        options = {"known": path} | options
    usual = known.KNOWN.get(options.get("known"))
    if split is None:
        whole = files.TABLE.search(path) is not None
        split = "test" if "test_share" in options else "train" if whole else usual.split if usual else "test"
    if reward is None:
        reward = usual.reward if usual else "reasoning_gym" if path.startswith("reasoning_gym:") else "accuracy"
    return Source(path=SHORT.get(path, path), name=text, split=split, limit=limit, options=options, rewards={reward: 1.0})


def load(source: Source, *, held_out: bool = False) -> Rows:
    """The rows of a source.

    - ``NAME.jsonl``, ``NAME.parquet``, ``NAME.array_record``, a folder of such files, ``gs://BUCKET/PATH``, or a data set on
      the Hub, ``org/name[@revision]``: ``options`` are ``config.FileOptions``.
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
        raise _error(source, f"path {source.path!r} is no file or folder here (in {Path.cwd()}), nor {KINDS}")
    else:
        table = _files(source, split)
        rows = Rows(source, table.rows, None, table.digest, table.commit)
    if not len(rows):
        within = f" with a pass_rate in {list(source.pass_rate)}" if source.pass_rate else ""
        share = source.options.get("test_share") if split == "test" else None
        few = f": test_share {share:g} of so few is none; add rows, raise it, or set eval.every to 0" if share else ""
        raise _error(source, f"{source.path} has no rows in split {split!r}{within}{few}")
    return rows


class Rows(Sequence):
    """A source's rows: checked, those within its ``pass_rate``, cut to its ``limit``, and with its name. ``digest`` names the
    content of files, ``commit`` the state of their repository on the Hub."""

    def __init__(
        self, source: Source, rows: Sequence[dict], where: str | None, digest: str = "", commit: str | None = None
    ):
        """``where`` is what a complaint about a row calls the source; None if the rows have been checked."""
        if source.pass_rate:
            low, high = source.pass_rate
            rows = [row for row in rows if low <= _pass_rate(source, row) <= high]
        self.source, self.rows, self.where, self.digest, self.commit = source, rows, where, digest, commit
        self.length = len(rows) if source.limit is None else min(len(rows), source.limit)

    def __len__(self) -> int:
        return self.length

    @property
    def identity(self) -> str:
        """``sha256:`` and the digest of the files; of rows that code makes, ``rows:`` and a hash of their number and eight of
        them."""
        return f"sha256:{self.digest}" if self.digest else f"rows:{_hash([len(self), _probes(self)])}"

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

    In every prefix each source has its share by weight, to within a row per other source. A source's rows come once each
    before any comes again, in another order each time, or by ``source.order``.
    """

    def __init__(self, sources: Sequence[tuple[Source, Sequence[dict]]], seed: int):
        # Here because grain imports jax, which takes seconds and is not needed to read rows.
        import grain

        sources = [(source, rows) for source, rows in sources if source.weight > 0]
        if not sources:
            raise ConfigError("every source has weight 0; give at least one a positive weight")
        self._fingerprint = _hash([seed, [_identity(source, rows) for source, rows in sources]])
        total = sum(source.weight for source, _ in sources)
        self._per_row = {source.name: source.weight / total / len(rows) for source, rows in sources}

        def epoch(source: Source, rows: Sequence[dict]) -> grain.MapDataset:
            key = int(_hash([seed, source.name])[:8], 16)
            if source.order == "easy_first":
                return grain.MapDataset.source(_easy_first(source, rows, key)).map(rows.__getitem__)
            return grain.MapDataset.source(rows).shuffle(seed=key)

        weights = [source.weight for source, _ in sources]
        self._mixed = grain.MapDataset.mix([epoch(*pair).repeat() for pair in sources], weights)

    def __getitem__(self, index: int) -> dict:
        if index < 0:
            raise IndexError(f"row {index} of a mixture; rows count from 0 and have no end")
        return self._mixed[index]

    def epochs(self, index: int) -> dict[str, float]:
        """Source name -> how often its rows have come in the ``index`` first rows, to within a row per other source."""
        return {name: index * share for name, share in self._per_row.items()}

    @property
    def fingerprint(self) -> str:
        """Names the whole sequence: the same for the same sources, weights, options, rows and seed. Of rows that are made by
        code, only a few are looked at."""
        return self._fingerprint


def _identity(source: Source, rows: Sequence[dict]) -> Any:
    content = rows.digest if isinstance(rows, Rows) else ""
    chosen = [source.name, source.weight, source.split, source.options, source.pass_rate, source.order]
    return [*chosen, len(rows), content, _probes(rows)]


def _probes(rows: Sequence[dict]) -> list[str]:
    """Eight rows, or all, from the first to the last."""
    return [_json(rows[i]) for i in sorted({i * (len(rows) - 1) // 7 for i in range(8)})]


def _easy_first(source: Source, rows: Sequence[dict], seed: int) -> list[int]:
    """Indices of the rows by falling pass rate; equal ones in an order drawn from the seed."""
    rates = [_pass_rate(source, rows[i]) for i in range(len(rows))]
    rng = random.Random(seed)
    drawn = [rng.random() for _ in rates]  # the one stream that Python promises to keep from version to version
    return sorted(range(len(rates)), key=lambda i: (-rates[i], drawn[i]))


def _pass_rate(source: Source, row: dict) -> float:
    rate = row.get("pass_rate") if isinstance(row, dict) else None
    if not isinstance(rate, int | float) or not 0 <= rate <= 1:
        raise _error(source, f"no 'pass_rate' from 0 to 1 in the row {row!r:.80}; r1jax data pass-rate measures it")
    return rate


def _json(value: Any) -> str:
    """``value`` as JSON in one fixed form; what JSON cannot hold stands as its ``str``."""
    return json.dumps(value, sort_keys=True, default=str)


def _hash(value: Any) -> str:
    return hashlib.sha256(_json(value).encode()).hexdigest()


def _error(source: Source, message: str) -> ConfigError:
    return ConfigError(f"source {source.name!r}: {message}")


def _problem(row: Any) -> str | None:
    """What is wrong with a row, None if nothing is. Beside ``prompt`` it has

    - ``answer``, what a reward compares with;
    - ``completion``, the assistant's turn to train on, and perhaps ``label``, 1 for a good one and 0 for a bad one, or
      ``safe``, whether it is harmless;
    - ``chosen`` and ``rejected``, the better and the worse of two completions, and perhaps ``margin``, by how much.
    """
    if not isinstance(row, dict):
        return f"a row is an object with 'prompt' and 'answer', not {type(row).__name__}"
    if problem := prompt_problem(row):
        return problem
    if not row.keys() & {"answer", "completion", "chosen", "rejected"}:
        return f"no 'answer' (it has {', '.join(map(repr, row))})"
    for field in ("completion", "chosen", "rejected"):
        if not isinstance(row.get(field, ""), str):
            return f"{field!r} is {type(row[field]).__name__}; it must be a string"
    if "chosen" in row or "rejected" in row:
        if not {"chosen", "rejected"} <= row.keys():
            return "a preference has both 'chosen' and 'rejected'"
        if row["chosen"] == row["rejected"]:
            return f"'chosen' and 'rejected' are the same, {row['chosen']!r:.60}"
    if "safe" in row and not (isinstance(row["safe"], bool) and "completion" in row):
        return f"'safe' is {row['safe']!r:.60}; it is true or false, and says so of a 'completion'"
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
