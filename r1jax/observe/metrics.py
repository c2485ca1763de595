"""Metrics on disk: ``metrics.jsonl``, TensorBoard events and, with the extra ``wandb``, Weights & Biases."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from r1jax.observe import jsonl

FILE = "metrics.jsonl"


class MetricsWriter:
    """Writes one row of metrics per call to every place that the run was asked to write to.

    ``metrics.jsonl`` holds one object per line, ``{"step": 3, "reward/total": 0.5, ...}``, in strict JSON: a value that is
    not finite is ``null`` (and NaN again in ``read_metrics``). TensorBoard gets the value itself.

    Args:
      path: the run directory; made if absent.
      tensorboard: write events under ``tb/``.
      wandb: project name; None writes nothing there. ``WANDB_MODE=offline`` is honoured. The run's id is kept in
        ``wandb_id``, so that a resumed run goes on in the same place.
      config: shown by wandb beside the run.
      resumed_at: the step of the checkpoint that a resumed run goes on from. What an earlier attempt wrote past it is
        dropped from ``metrics.jsonl`` and hidden by TensorBoard. wandb keeps what it saw first for a step.

    Raises:
      ValueError: ``wandb`` is named but the package is not installed.
    """

    def __init__(
        self,
        path: Path,
        *,
        tensorboard: bool = True,
        wandb: str | None = None,
        config: dict | None = None,
        resumed_at: int | None = None,
    ):
        path = Path(path)
        self._wandb = _wandb_run(path, wandb, config) if wandb else None
        self._lines = jsonl.Appender(path / FILE, resumed_at)
        self._tensorboard = _TensorBoard(path / "tb", resumed_at) if tensorboard else None

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """``metrics`` are scalars: Python numbers or 0-d arrays. A step may be written in several rows, with other keys."""
        values = {key: float(value) for key, value in metrics.items()}
        self._lines.write({"step": int(step), **values})
        if self._tensorboard is not None:
            self._tensorboard.write(int(step), values)
        if self._wandb is not None:
            self._wandb.log(values, step=int(step))

    def flush(self) -> None:
        """Brings the TensorBoard events to the disk; the rows of ``metrics.jsonl`` are there as soon as they are written."""
        if self._tensorboard is not None:
            self._tensorboard.flush()

    def close(self) -> None:
        self._lines.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def read_metrics(path: Path) -> list[dict]:
    """The rows of a run directory or of a ``metrics.jsonl``, in the order written; a torn last line is left out.

    Raises:
      ValueError: there is no such file, or a line before the last is broken.
    """
    file = path / FILE if path.is_dir() else path
    if not file.exists():
        raise ValueError(f"{file} does not exist; name a run directory that has written metrics")
    return [{key: math.nan if value is None else value for key, value in row.items()} for row in jsonl.read(file)]


def series(rows: Iterable[Mapping[str, Any]], key: str) -> list[tuple[int, float]]:
    """``(step, value)`` of every row that has ``key``."""
    return [(row["step"], row[key]) for row in rows if key in row]


class _TensorBoard:
    """Scalars as TensorBoard events under ``path``, one event per step; steps past ``resumed_at`` start over."""

    def __init__(self, path: Path, resumed_at: int | None):
        # Not SummaryWriter: its thread dies of a full disk without a word, and whoever writes then waits for it for ever. It
        # also rewrites names such as eval/pass@1 and logs a warning for every value that is not finite.
        from tensorboardX.event_file_writer import EventsWriter  # slow to import
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary

        self._event, self._summary = Event, Summary
        path.mkdir(parents=True, exist_ok=True)
        # tensorboardX names files by the second and overwrites; the count keeps two starts within one second apart.
        self._writer = EventsWriter(str(path / "events"), f".{len(list(path.glob('events.*'))):03d}")
        if resumed_at is not None:
            start = SessionLog(status=SessionLog.START)
            self._writer.write_event(Event(wall_time=time.time(), step=resumed_at + 1, session_log=start))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        scalars = [self._summary.Value(tag=key, simple_value=value) for key, value in values.items()]
        self._writer.write_event(self._event(wall_time=time.time(), step=step, summary=self._summary(value=scalars)))
        self._writer.flush()

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def _wandb_run(path: Path, project: str, config: dict | None):
    try:
        import wandb
    except ImportError as error:
        raise ValueError(
            f"log.wandb is {project!r}, but the package wandb is not installed; "
            "install the extra with pip install 'r1jax[wandb]', or leave log.wandb unset"
        ) from error
    path.mkdir(parents=True, exist_ok=True)
    kept = path / "wandb_id"
    if not kept.exists():
        kept.write_text(uuid.uuid4().hex[:8] + "\n")
    run_id = kept.read_text().strip()
    return wandb.init(project=project, id=run_id, name=path.name, dir=str(path), config=config, resume="allow")
