"""Checkpoints of a run: written in the background, committed by one rename, and checked byte for byte before they are used.

A checkpoint is a directory named by its step:

    120/state/           Orbax: the arrays, as a flat dict from path ("params/segments/0/attention/q") to array
    120/about.json       step, score, meta, the shape and dtype of every array, the leaves that are plain Python values
    120/answers.npz      arrays of the host whose shapes change from save to save; only if there are some
    120/digests-0-of-1   sha256 of every file above, as ``sha256sum -c`` reads it; the last line is the sha256 of the others

While it is written it is called ``.saving-120``. The rename to ``120``, after the digests, makes it a checkpoint, so a save
that was killed is never taken for one. Orbax does not notice a flipped byte in a data file (it comes back as a wrong weight):
every file is hashed (with P processes each takes a P-th of them) and hashed again before it is restored. That is coarser than a
digest per array shard and catches more: metadata and the digests themselves are covered too.

Needs a file system that all processes share and on which a directory is renamed at once (POSIX), or a bucket (``gs://``). A
bucket has no rename, but a file in it is there as a whole or not at all: ``120`` is written in place there, and ``about.json``,
which comes last and goes first, makes it a checkpoint.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import json
import logging
import math
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from r1jax import durable, hub, mirror, processes
from r1jax.params import path_name

if TYPE_CHECKING:
    from etils import epath

Tree = Any

# Orbax tells every step of a save, and logs the traceback of each thread that failed beside raising what we turn into one line.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname or record.levelno == logging.WARNING)

ANSWERS = "answers.npz"


class CheckpointError(ValueError):
    """A checkpoint that cannot be written, found or trusted; the message is one line for the person who runs it."""


class Damaged(CheckpointError):
    """A checkpoint with a file that is missing or is not as it was written."""

    def __init__(self, problem: str, way_out: str):
        super().__init__(f"damaged checkpoint: {problem}; {way_out}")
        self.problem = problem


class Checkpointer:
    """Saves and restores the state of one run. With several processes, each must make the same calls in the same order.

    Args:
      directory: where the checkpoints lie, ``RUN/checkpoints``, here or in a bucket; made by the first save.
      keep: how many of the newest checkpoints stay; the one with the best score stays beside them.
      read_only: never deletes anything, for reading a run that another process trains.
    """

    def __init__(self, directory: Path | epath.Path, *, keep: int = 2, read_only: bool = False):
        self._in_bucket = mirror.is_remote(directory)
        self.directory = directory if self._in_bucket else Path(directory).absolute()
        self._keep = keep
        self._pending: tuple[int, concurrent.futures.Future] | None = None
        self._checked: int | None = None
        # Weights hardly compress, and trying costs more time than the writing.
        self._orbax = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_compression=False))
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        if not read_only and jax.process_index() == 0:
            left = [*self.directory.glob(".saving-*"), *self.directory.glob(".deleting-*")]
            if self._in_bucket:
                whole = self.steps()
                left = [p for p in self.directory.glob("[0-9]*") if p.name.isdigit() and int(p.name) not in whole]
            for path in left:
                durable.discard(path)

    # ---------------------------------------------------------------- saving

    def save(
        self, step: int, state: Tree, meta: dict, score: float | None = None, answers: Mapping[str, np.ndarray] | None = None
    ) -> None:
        """Copies the state off the devices and returns; the writing goes on behind. Only where the save before is still being
        written does it wait for that, so that no more than one copy of the state is held.

        A checkpoint that exists at this step is replaced.

        Args:
          state: leaves are arrays (typed PRNG keys too), None, or plain int, float, bool and str.
          meta: JSON values; the same on every process.
          score: the higher the better; None and NaN take no part in ``best``.
          answers: arrays of any names and shapes, for ``answers`` to give back; the same on every process. They must not be
            changed afterwards.

        Raises:
          CheckpointError: this or the previous save could not be written.
        """
        self.wait()
        arrays, about = _flatten(state)
        about |= {"step": step, "score": None if score is None or math.isnan(score) else score, "meta": meta}
        part = self._part(step)
        try:
            with hub.bucket_errors() if self._in_bucket else contextlib.nullcontext():
                if jax.process_index() == 0:
                    if self._in_bucket:
                        self._remove(step)
                    durable.discard(part)
                    part.mkdir(parents=True)
                self._orbax.save(part / "state", args=ocp.args.PyTreeSave(arrays))
        except (OSError, ValueError) as error:
            raise self._cannot_save(step, error) from error
        text = json.dumps(about, indent=1) + "\n"
        self._pending = step, self._thread.submit(self._commit, step, part, text, answers or {})

    @property
    def _run(self) -> Path | epath.Path:
        return self.directory.parent if self.directory.name == "checkpoints" else self.directory

    def _part(self, step: int) -> Path | epath.Path:
        """Where a checkpoint is written."""
        return self.directory / (str(step) if self._in_bucket else f".saving-{step}")

    @property
    def failed(self) -> bool:
        """Whether the save under way has ended without a checkpoint on this process; ``wait`` then raises."""
        return self._pending is not None and self._pending[1].done() and self._pending[1].exception() is not None

    def wait(self) -> None:
        """Returns when the save under way is a checkpoint.

        Raises:
          CheckpointError: it could not be written, on this process or another. The checkpoints before it are untouched.
        """
        if self._pending is None:
            return
        (step, future), self._pending = self._pending, None
        error = future.exception()
        if processes.any_of("saved", error is not None):
            raise self._cannot_save(step, error) from error

    def close(self) -> None:
        """Waits for the save under way and ends the threads. Raises as ``wait`` does."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            self._orbax.close()

    def _commit(self, step: int, part: Path | epath.Path, about: str, answers: Mapping[str, np.ndarray]) -> None:
        """Runs in the thread. A process that fails still meets the others at both barriers: they must not wait for it."""
        self._orbax.wait_until_finished()
        process, count = jax.process_index(), jax.process_count()
        try:
            try:
                if answers and process == 0:
                    durable.write_arrays(part / ANSWERS, answers)
                files = [p.relative_to(part).as_posix() for p in mirror.below(part / "state")]
                files = [ANSWERS, *files] if answers else files  # the first, so that the process which writes it hashes it
                mine = files[process::count]
                lines = "".join(f"{digest}  {name}\n" for name, digest in durable.digests(part, mine))
                if process == 0:
                    lines += f"{hashlib.sha256(about.encode()).hexdigest()}  about.json\n"
                durable.write(part / f"digests-{process}-of-{count}", durable.signed(lines))
            finally:
                processes.meet(f"digests of step {step}")
            if process == 0 and len(list(part.glob("digests-*-of-*"))) == count:
                durable.write(part / "about.json", about)
                if not self._in_bucket:
                    self._remove(step)
                    part.rename(self.directory / str(step))
                    durable.sync_directory(self.directory)
                self._prune(step)
        finally:
            processes.meet(f"checkpoint of step {step}")

    def _prune(self, saved: int) -> None:
        try:
            best = self.best()
        except CheckpointError:
            return  # with a damaged one among them, which is the best is not known
        steps = self.steps()
        for old in set(steps) - set(steps[-self._keep :]) - {best, saved}:
            self._remove(old)

    def _remove(self, step: int) -> None:
        """Renamed first, or without about.json: a checkpoint is there as a whole or not at all."""
        path, doomed = self.directory / str(step), self.directory / f".deleting-{step}"
        if self._in_bucket:
            (path / "about.json").unlink(missing_ok=True)
            durable.discard(path)
        elif path.exists():
            shutil.rmtree(doomed, ignore_errors=True)
            path.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)

    def _cannot_save(self, step: int, error: BaseException | None) -> CheckpointError:
        if jax.process_index() == 0:
            durable.discard(self._part(step))
        why = "another process failed" if error is None else " ".join(str(error).split())
        if by_system := re.search(r"([^:]+) \[os_error_code", why):  # a paragraph of tensorstore's
            why = by_system[1].strip()
        if self._in_bucket:
            return CheckpointError(f"could not save step {step} to {self.directory}: {why[:400]}; those before it are intact")
        latest = self.latest()
        rest = (
            "no checkpoint was saved before" if latest is None else f"the checkpoint of step {latest} is intact: resume from it"
        )
        return CheckpointError(f"could not save step {step} to {self.directory}: {why[:400]}; {rest}")

    # ---------------------------------------------------------------- finding

    def steps(self) -> list[int]:
        """The steps that can be restored, rising."""
        found = [p for p in self.directory.glob("[0-9]*") if p.name.isdigit()]
        return sorted(int(p.name) for p in found if not self._in_bucket or (p / "about.json").exists())

    def latest(self) -> int | None:
        return max(self.steps(), default=None)

    def newest_good(self) -> tuple[int | None, str]:
        """The newest step whose files are all as they were written (``restore`` does not check these again), None if there is
        no checkpoint, and what is wrong with newer ones, '' if there are none.

        These are renamed to ``damaged-STEP`` and no checkpoints from then on; in a bucket the next run that goes on removes
        them. Then checkpoints over ``keep``, which a kill has left, are removed.

        Raises:
          Damaged: there are checkpoints, and none is whole.
        """
        damaged: dict[int, str] = {}
        for step in reversed(self.steps()):
            try:
                self._verify(step)
            except Damaged as error:
                damaged[step] = error.problem
                continue
            self._checked = step
            if jax.process_index() == 0:
                for other in damaged:
                    self._put_aside(other)
                self._prune(step)
            processes.meet("checkpoint chosen")
            return step, _tell(damaged)
        if damaged:
            raise Damaged(_tell(damaged), f"no other is left: remove {self._run} to train it from its beginning")
        return None, ""

    def _put_aside(self, step: int) -> None:
        if self._in_bucket:
            (self.directory / str(step) / "about.json").unlink(missing_ok=True)
            return
        aside = self.directory / f"damaged-{step}"
        durable.discard(aside)
        (self.directory / str(step)).rename(aside)

    def best(self) -> int | None:
        """The step with the highest score, the later of equals; None if no checkpoint has a score."""
        scored = [(about["score"], step) for step in self.steps() if (about := self._about(step))["score"] is not None]
        return max(scored)[1] if scored else None

    def meta(self, step: int) -> dict:
        """What ``save`` was given as ``meta``."""
        return self._about(step)["meta"]

    def answers(self, step: int) -> dict[str, np.ndarray]:
        """What ``save`` was given as ``answers``; nothing if it was given none.

        Raises:
          CheckpointError: they are damaged.
        """
        expected, path = self._expected(step), self.directory / str(step)
        if ANSWERS not in expected:
            return {}
        if problem := durable.check(path, [ANSWERS], expected):
            raise self._damaged(step, problem)
        with (path / ANSWERS).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)

    # ---------------------------------------------------------------- restoring

    def restore(self, abstract_state: Tree, step: int | None = None) -> tuple[Tree, dict]:
        """The state and meta of a step, by default the latest.

        Args:
          abstract_state: the tree to fill. A ``jax.ShapeDtypeStruct`` with a sharding, or an array, gives an array laid out so,
            whatever mesh it was saved from; one without a sharding gives a numpy array; a plain value gives the saved value.

        Raises:
          CheckpointError: no such checkpoint, a damaged one, or one of another model.
        """
        if step is None and (step := self.latest()) is None:
            raise CheckpointError(f"{self.directory} holds no checkpoint yet")
        if step != self._checked:
            self._verify(step)
        about = self._about(step)
        return self._fill(abstract_state, step, about, whole=True), about["meta"]

    def restore_part(self, step: int, abstract_subtree: Tree) -> Tree:
        """The arrays of a subtree, ``{"params": ...}``; else as ``restore``."""
        self._verify(step)
        return self._fill(abstract_subtree, step, self._about(step), whole=False)

    def _fill(self, abstract: Tree, step: int, about: dict, whole: bool) -> Tree:
        leaves, structure = jax.tree_util.tree_flatten_with_path(abstract)
        wanted = {path_name(key): leaf for key, leaf in leaves}
        path = self.directory / str(step)
        if problem := _mismatch(wanted, about, whole):
            raise CheckpointError(f"{path} is of another model: {problem}; use the config it was saved with")
        data, args = {}, {}
        for name, leaf in wanted.items():
            if not _is_plain(leaf):
                data[name], args[name] = _request(leaf)
        values = dict(about["plain"])
        if data:
            request = ocp.args.PyTreeRestore(item=data, restore_args=args, partial_restore=True)
            values |= self._orbax.restore(path / "state", args=request)
        for name, impl in about["keys"].items():
            if name in data:
                values[name] = jax.random.wrap_key_data(values[name], impl=impl)
        return jax.tree.unflatten(structure, [values[name] for name in wanted])

    # ---------------------------------------------------------------- digests

    def _about(self, step: int) -> dict:
        path = self.directory / str(step)
        if not path.is_dir():
            have = ", ".join(map(str, self.steps())) or "none"
            raise CheckpointError(f"{self.directory} holds no checkpoint of step {step}; there are: {have}")
        if problem := durable.check(path, ["about.json"], self._expected(step)):
            raise self._damaged(step, problem)
        return json.loads((path / "about.json").read_text())

    def _expected(self, step: int) -> dict[str, str]:
        """{file: sha256} from the digest files, which vouch for themselves."""
        path = self.directory / str(step)
        files = sorted(path.glob("digests-*-of-*"))
        if not files:
            raise self._damaged(step, f"{path} has no digests")
        count = files[0].name.rpartition("-")[2]
        expected = {}
        for process in range(int(count) if count.isdigit() else 1):
            file = path / f"digests-{process}-of-{count}"
            if not file.is_file():
                raise self._damaged(step, f"{file} is missing")
            content = file.read_bytes()
            lines = content.decode(errors="replace").splitlines(keepends=True)[:-1]
            if durable.signed("".join(lines)).encode() != content:
                raise self._damaged(step, f"{file} has changed since it was written")
            expected |= {name: digest for digest, name in (line.rstrip("\n").split("  ", 1) for line in lines)}
        return expected

    def _verify(self, step: int) -> None:
        """Hashes every file of the checkpoint; with P processes each hashes a P-th, and all agree on what is damaged."""
        path, problem = self.directory / str(step), None
        try:
            self._about(step)
            expected = self._expected(step)
            mine = sorted(expected)[jax.process_index() :: jax.process_count()]
            problem = durable.check(path, mine, expected)
        except Damaged as error:
            problem = error.problem
        if processes.any_of("checked the checkpoint", problem is not None):
            raise self._damaged(step, problem or f"{path}: another process found a damaged file")

    def _damaged(self, step: int, problem: str) -> Damaged:
        run = self._run
        others = [s for s in self.steps() if s != step]
        earlier = max([s for s in others if s < step] or others, default=None)
        way_out = f"start from {run}@{earlier}, or remove {self.directory / str(step)} to resume from the one before"
        if earlier is None:
            way_out = f"no other checkpoint is left: remove {run} to train it from its beginning"
        return Damaged(problem, way_out)


def _tell(damaged: Mapping[int, str]) -> str:
    """Step -> what is wrong, in words."""
    return "; ".join(f"the checkpoint of step {step} is damaged ({problem})" for step, problem in damaged.items())


def _flatten(state: Tree) -> tuple[dict[str, jax.Array | np.ndarray], dict[str, dict]]:
    """The arrays by path, and what about.json tells of the leaves."""
    arrays: dict[str, Any] = {}
    about: dict[str, dict] = {"arrays": {}, "keys": {}, "plain": {}}
    for key, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = path_name(key)
        if name in arrays or name in about["plain"]:
            raise ValueError(f"two leaves of the state are called {name!r}; rename one")
        if _is_plain(leaf):
            about["plain"][name] = leaf
            continue
        about["arrays"][name] = _kind(leaf)
        if _is_key(leaf):
            about["keys"][name] = str(jax.random.key_impl(leaf))
        data = jax.random.key_data(leaf) if _is_key(leaf) else leaf
        arrays[name] = _copied(data) if _lies_on_host(data) else data
    return arrays, about


def _mismatch(wanted: dict[str, Any], about: dict, whole: bool) -> str | None:
    """The first leaf that was not saved as it is wanted; with ``whole``, also one that is not wanted at all."""
    have = about["arrays"] | dict.fromkeys(about["plain"], "a plain value")
    for name, leaf in wanted.items():
        if have.get(name) != (need := "a plain value" if _is_plain(leaf) else _kind(leaf)):
            return f"{name} is {have.get(name, 'not in it')} where {need} is needed"
    extra = [name for name in have if name not in wanted] if whole else []
    return f"it holds {', '.join(extra[:3])} ({len(extra)} in all), for which there is no place" if extra else None


def _request(leaf: Any) -> tuple[jax.ShapeDtypeStruct, ocp.RestoreArgs]:
    """What Orbax wants to know about one array."""
    data = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
    target = jax.ShapeDtypeStruct(data.shape, data.dtype)
    if (sharding := getattr(leaf, "sharding", None)) is None:
        return target, ocp.RestoreArgs(restore_type=np.ndarray, dtype=data.dtype)
    return target, ocp.ArrayRestoreArgs(sharding=sharding, global_shape=data.shape, dtype=data.dtype)


def _lies_on_host(x: Any) -> bool:
    return isinstance(x, jax.Array) and x.sharding.memory_kind == "pinned_host"


def _copied(x: jax.Array) -> jax.Array:
    """What is on a device is copied off it. What is on the host would be written while the next update changes it."""
    return jax.device_put(x, x.sharding, may_alias=False)


def _is_plain(leaf: Any) -> bool:
    return isinstance(leaf, bool | int | float | str) and not isinstance(leaf, np.generic)


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _kind(leaf: Any) -> str:
    """``float32[8, 4]``."""
    return f"{leaf.dtype}{list(leaf.shape)}"
