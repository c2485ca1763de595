"""Run directories: where a run keeps what it writes, and the rules by which it is resumed.

    RUN/config.json      the complete config        RUN/checkpoints/   see ``r1jax.checkpoint``
    RUN/metrics.jsonl    one object per line        RUN/tb/            TensorBoard events
    RUN/experts.jsonl    load of each expert        RUN/profile/       what --profile traced
    RUN/samples.jsonl    rollouts                   RUN/finished.json  step and time, when the last step was made
    RUN/model/           what the weights are: architecture, tokenizer, template, and of a LoRA run its base
    RUN/exports/STEP/    Hugging Face directories, if export.every asks for them
    RUN/ended.json       how and when the last attempt ended, and why; a killed one leaves none
    RUN/report.html      the run on a page: see ``r1jax.observe.report``
    RUN/logs/            of several processes: what each printed (rank-1.log), and what it did last (rank-1.json); the stacks of
                         one that did not move (stalled-0.txt)
    RUN/not-finite-STEP.npz  the batch of an update that stopped the run

The run of a pipeline holds config.json, ledger.json and a run directory per stage: RUN/sft, RUN/grpo. A stage that is run anew
leaves what it was before in RUN/grpo.1, RUN/grpo.2, ... A stage that makes rows has no checkpoints and no model but

    RUN/rows.jsonl       the rows that were kept    RUN/report.jsonl   the answers that were not, and why
    RUN/samples.jsonl    every answer               RUN/statistics.json

A run on ``gs://`` has a copy on this machine, and its paths are those of the copy: see ``r1jax.mirror``. Its checkpoints are in
the bucket alone.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from r1jax import config, durable, lease, lock, mirror
from r1jax.lease import Lease

if TYPE_CHECKING:  # slow to import
    from etils import epath

FOUND = ("commits", "digests", "chosen", "inputs")
"""What ``record`` adds to a config."""
MAKES_ROWS = "rejection_sampling"
"""The kind of stage that has no checkpoints."""
MAKES_A_JUDGE = "reward_model"
"""The kind of stage whose model writes no text."""
_ENDED = "ended.json"
End = Literal["finished", "guard", "pre-empted", "interrupted", "failed"]


@dataclass(frozen=True)
class RunDir:
    """A run's directory and the config it was made with. Built by ``create`` or ``open_or_resume``, it holds the run's lock;
    built directly it only names the paths, as processes after the first and readers do."""

    path: Path
    config: dict
    """As in config.json."""
    _lock: TextIO | None = None
    _uploads: mirror.Uploads | None = None
    lease: Lease | None = None
    """Of a run on ``gs://``: without it nothing is written there."""

    @property
    def name(self) -> str:
        """The directory as a person calls it."""
        return str(mirror.there(self.path))

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        return self.path / "samples.jsonl"

    @property
    def checkpoints(self) -> Path | epath.Path:
        return checkpoints(self.path)

    @property
    def exports(self) -> Path:
        return self.path / "exports"

    @property
    def events(self) -> Path:
        return self.path / "tb"

    @property
    def finished(self) -> dict | None:
        """``{"step": int, "time": str}`` once the last step was made, else None."""
        file = self.path / "finished.json"
        return json.loads(file.read_text()) if file.exists() else None

    def is_finished(self, steps: int) -> bool:
        return self.finished is not None and self.finished["step"] >= steps

    def record(
        self,
        commits: dict[str, str],
        digests: dict[str, str],
        chosen: dict[str, int] | None = None,
        inputs: dict[str, str] | None = None,
    ) -> None:
        """Writes into config.json what was found behind the names in it, beside the settings and none of them.

        Args:
          commits: what names on the Hub stood for; left out if there are none.
          digests: of the rows of each source.
          chosen: what settings that were left to the machine became.
          inputs: of a pipeline's stage, the ``identity`` of what each earlier stage made that it begins with.
        """
        found = zip(FOUND, (commits, digests, chosen, inputs), strict=True)
        _write(self.path / "config.json", self.config | {name: values for name, values in found if values})

    def finish(self, step: int) -> None:
        """Marks the run as done with its last step."""
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        _write(self.path / "finished.json", {"step": step, "time": now})

    def end(self, how: End, why: str = "") -> None:
        """Notes how this attempt ends."""
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        _write(self.path / _ENDED, {"how": how, "why": why, "time": now})

    def begin(self) -> None:
        """Forgets how the last attempt ended: this one goes on."""
        (self.path / _ENDED).unlink(missing_ok=True)
        if mirror.is_remote(place := mirror.there(self.path)):
            (place / _ENDED).unlink(missing_ok=True)

    def upload(self) -> None:
        """Of a run on ``gs://``, copies what was written since the last time to the bucket.

        Raises:
          ValueError: the bucket does not take it.
          config.ConfigError: another machine trains there by now.
        """
        if self._uploads is not None:
            if self.lease is not None:
                self.lease.renew()
            self._uploads.upload()

    def close(self) -> None:
        """Uploads, and lets another process train here. The kernel does the second too when this process dies."""
        try:
            self.upload()
        finally:
            if self._lock is not None:
                self._lock.close()


def find(name: str, process: int = 0) -> Path:
    """The directory of a run that is called ``name``. If that is on ``gs://`` it is a copy of what the bucket holds now.

    Args:
      process: each has a copy of its own.

    Raises:
      ValueError: the bucket cannot be read, or holds something else there.
      config.ConfigError: another process on this machine trains there.
    """
    if not mirror.is_remote(name):
        return Path(name)
    path = mirror.here(name, process)
    path.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(lock.take(path)):
        mirror.fetch(path)
    return path


def checkpoints(stage: Path) -> Path | epath.Path:
    """Where the checkpoints of a stage lie."""
    return mirror.there(stage) / mirror.CHECKPOINTS


def saved_steps(stage: Path) -> list[int]:
    """The steps of the checkpoints of a stage's run directory, which need not exist."""
    found = [p for p in checkpoints(stage).glob("*") if p.name.isdigit()]
    # In a bucket one is there once it has its last file: see ``r1jax.checkpoint``.
    return [int(p.name) for p in found if not mirror.is_remote(p) or (p / "about.json").exists()]


def create(name: str, config_json: dict, path: Path | None = None, held: Lease | None = None) -> RunDir:
    """A new run directory, by default ``runs/NAME-YYYYMMDD-HHMMSS``.

    Raises:
      config.ConfigError: it cannot be made, or holds something already.
    """
    if path is None:
        path = unused(name)
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        # A process killed in here leaves no more than its lock and a part of the config; its parent has made the logs.
        left = {lock.FILE, lease.MARK, durable.unfinished(path / "config.json").name, mirror.LOGS}
        if already := sorted({p.name for p in path.iterdir()} - left):
            place = mirror.there(path)
            raise config.ConfigError(f"{place} already holds {', '.join(already[:3])}; name a new or an empty directory")
        taken = lock.take(path)
        _write(path / "config.json", config_json)
    except OSError as error:
        raise config.ConfigError(
            f"cannot make the run directory {path}: {error.strerror}; name another with --run-dir"
        ) from error
    return RunDir(path, config_json, taken, _uploads(path), held)


def open_or_resume(
    path: Path, config_json: dict, safe: Collection[str] | None = None, held: Lease | None = None
) -> RunDir:
    """The run in ``path``, or a new one if there is none yet.

    A run with the same config, but for the fields named in ``safe``, goes on with the new values of those. More steps than it
    finished with make it unfinished; whether it is finished is for the caller to look at. A stage that has saved nothing yet,
    one that stopped over a mistake in its config for instance, takes any config. So does a pipeline, as long as it still has
    the stages that it had, in their order: what becomes of a stage that changed is decided for each, see ``stages.decide``.

    Args:
      safe: top-level fields of a stage that may change; None is ``config.safe_to_change``.

    Raises:
      config.ConfigError: another process trains there; other fields changed; or the directory holds something else.
    """
    path = Path(path)
    if not is_run(path):
        return create(path.name, config_json, path, held)
    try:
        taken = lock.take(path)
    except OSError as error:
        raise config.ConfigError(f"cannot write to the run directory {path}: {error.strerror}") from error
    old, name = _settings(path), mirror.there(path)
    was, asked = (stages_of(c) or [c["kind"]] for c in (old, config_json))
    pipeline = bool(stages_of(old)) and bool(stages_of(config_json))
    safe = config.safe_to_change(config_json.get("kind")) if safe is None else safe
    if was != ([name for name in asked if name in was] if pipeline else asked) and last_saved(path):
        taken.close()
        raise config.ConfigError(
            f"{name} is a run of another config: its stages are {', '.join(was)}, not {', '.join(asked)}; name another place"
        )
    changes = config.diff(old, config_json)
    refused = [c for c in changes if c[0].split(".")[0] not in safe]
    if refused and not pipeline and has_saved(path):
        taken.close()
        raise config.ConfigError(
            f"{name} was trained with another config: {tell(refused)}. A resumed run may change only {', '.join(safe)}; "
            f"start a new run with --init {name}@STEP, or give the old values"
        )
    # The mark goes first: killed between the two, the run is still resumed.
    if any(place.split(".")[-1] == "steps" and (new or 0) > (was or 0) for place, was, new in changes):
        (path / "finished.json").unlink(missing_ok=True)
    if changes:
        found = read_config(path)
        _write(path / "config.json", config_json | {name: found[name] for name in FOUND if name in found})
    return RunDir(path, config_json, taken, _uploads(path), held)


def is_run(path: Path) -> bool:
    """Whether a directory is a run, of a stage or a pipeline; a Hugging Face directory has a config.json too."""
    if not (Path(path) / "config.json").is_file():
        return False
    found = read_config(path)
    return is_stage(found) or bool(stages_of(found))


def ended(path: Path) -> dict | None:
    """``{"how": End, "why": str, "time": str}`` of the last attempt; None of one that goes on or was killed."""
    file = Path(path) / _ENDED
    return json.loads(file.read_text()) if file.exists() else None


def is_held(path: Path) -> bool | None:
    """Whether a process trains in this run directory now, of one on ``gs://`` on any machine; None where the file system has no
    locks."""
    here = lock.is_taken(path)
    return lease.is_held(path) if here is False else here


def parse_run_name(name: str) -> tuple[Path, int | Literal["best"] | None]:
    """``RUN@120`` is (RUN, 120), ``RUN@best`` (RUN, "best"), ``RUN`` (RUN, None)."""
    match = re.fullmatch(r"(.+)@(\d+|best)", name)
    if match is None:
        return Path(name), None
    return Path(match[1]), "best" if match[2] == "best" else int(match[2])


def has_checkpoint(stage: Path) -> bool:
    """Whether the run directory of a stage, which need not exist, has one."""
    return bool(saved_steps(stage))


def has_saved(stage: Path) -> bool:
    """Whether the run directory of a stage, which need not exist, holds work that goes on: a checkpoint, or sampled answers."""
    if not is_run(stage):
        return False
    return has_checkpoint(stage) or (read_config(stage).get("kind") == MAKES_ROWS and (stage / "samples.jsonl").exists())


def changes(stage: Path, config_json: dict) -> list[tuple[str, Any, Any]]:
    """What a resumed run may not change and ``config_json`` does, as ``config.diff`` gives it."""
    old = _settings(stage)
    safe = config.safe_to_change(config_json["kind"]) if old.get("kind") == config_json["kind"] else ()
    return [c for c in config.diff(old, config_json) if c[0].split(".")[0] not in safe]


def inputs(stage: Path) -> dict[str, str]:
    """What a stage recorded as ``inputs``."""
    return read_config(stage).get("inputs", {})


def identity(stage: Path) -> str:
    """Names what a stage made, by content: its newest checkpoint, or its rows; '' if there is none."""
    if steps := saved_steps(stage):
        files, name = sorted((checkpoints(stage) / str(max(steps))).glob("digests-*")), f"step {max(steps)}, "
    else:
        files, name = [f for f in [rows_of(stage)] if f.exists()], ""
    if not files:
        return ""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            hashlib.file_digest(content, lambda: digest)
    return f"{name}sha256:{digest.hexdigest()}"


def rows_of(stage: Path) -> Path:
    """Where a stage writes the rows that it makes."""
    return stage / "rows.jsonl"


def put_aside(stage: Path) -> Path:
    """Renames the run directory of a stage to the first of NAME.1, NAME.2, ... that is free, and returns it. Not on ``gs://``,
    where all that is in it would have to be copied."""
    number = 1
    while (place := stage.with_name(f"{stage.name}.{number}")).exists():
        number += 1
    stage.rename(place)
    return place


def chosen(stage: Path | None) -> dict[str, int]:
    """What a stage with a checkpoint recorded as ``chosen``; empty where there is none."""
    return read_config(stage).get("chosen", {}) if stage is not None and has_checkpoint(stage) else {}


def last_saved(path: Path) -> str:
    """What a run has saved last in words, ``step 20``, ``step 20 of grpo`` or ``answers of rejection``; empty if nothing."""
    if not is_run(path):
        return ""
    found = read_config(path)
    for name in [""] if is_stage(found) else reversed(stages_of(found)):
        if steps := saved_steps(path / name):
            return f"step {max(steps)}" + (f" of {name}" if name else "")
        if has_saved(path / name):
            return "its answers" if not name else f"answers of {name}"
    return ""


def last_stage(path: Path) -> Path:
    """The run directory of a pipeline's last stage that has a policy's checkpoint; of a single stage, the directory itself.

    Raises:
      config.ConfigError: nothing has a checkpoint yet.
    """
    path = Path(path)
    found = read_config(path)
    writing = [name for name in reversed(stages_of(found)) if found[name]["kind"] != MAKES_A_JUDGE]
    candidates = [path] if is_stage(found) else [path / name for name in writing]
    for stage in candidates:
        if has_checkpoint(stage):
            return stage
    name = mirror.there(path)
    if found.get("kind") == MAKES_ROWS:
        raise config.ConfigError(f"{name} made rows, no model; they are in {mirror.there(rows_of(path))}")
    raise config.ConfigError(f"{name} has no checkpoint yet; train it with --run-dir {name}")


def is_stage(found: Any) -> bool:
    """Whether what config.json holds is the config of a stage, not of a pipeline."""
    return isinstance(found, dict) and "kind" in found and "sources" in found


def stages_of(found: Any) -> list[str]:
    """The stages of a pipeline's config, in order."""
    return [name for name, value in found.items() if is_stage(value)] if isinstance(found, dict) else []


def tell(changes: list[tuple[str, Any, Any]], most: int = 8) -> str:
    """What ``config.diff`` found, in words."""

    def short(value: Any) -> str:
        text = json.dumps(value)
        return text if len(text) <= 60 else text[:57] + "..."

    told = [f"{place or 'all'} was {short(was)}, now {short(new)}" for place, was, new in changes[:most]]
    more = [f"and {len(changes) - most} more"] if len(changes) > most else []
    return "; ".join(told + more)


def _settings(path: Path) -> dict:
    """The config of a run as it would be written today: fields that are newer than the run have their defaults."""
    found = {name: value for name, value in read_config(path).items() if name not in FOUND}
    if is_stage(found):
        return _with_defaults(found)
    return {name: _with_defaults(value) if is_stage(value) else value for name, value in found.items()}


def _with_defaults(stage: dict) -> dict:
    """One that cannot be read today, for a field that is no more for instance, stays as it is."""
    try:
        return config.to_json(config.from_json(config.SFT | config.GRPO | config.RewardModel | config.RejectionSampling, stage))
    except config.ConfigError:
        return stage


def read_config(path: Path) -> Any:
    """What a run's config.json holds: the settings, and beside them what was ``FOUND``.

    Raises:
      config.ConfigError: it is not JSON.
    """
    file = Path(path) / "config.json"
    try:
        return json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise config.ConfigError(f"{file} is not JSON ({error}); restore it or start a new run") from error


def _write(path: Path, value: dict) -> None:
    durable.write(path, json.dumps(value, indent=1) + "\n")


def _uploads(path: Path) -> mirror.Uploads | None:
    return mirror.Uploads(path) if mirror.is_remote(mirror.there(path)) else None


def unused(name: str) -> Path:
    """Where a new run lies by default: ``runs/NAME-YYYYMMDD-HHMMSS``, with a number behind it if two start in one second."""
    path = Path("runs") / f"{name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    candidate, number = path, 2
    while candidate.exists():
        candidate, number = path.with_name(f"{path.name}-{number}"), number + 1
    return candidate
