"""A run directory on ``gs://``, which has a copy on this machine.

A file in a bucket cannot be appended to. So a run writes what grows (metrics, events, samples) and what is small into a folder
below ``~/.cache/r1jax/runs``, and that is copied to the bucket at each save, before the checkpoint is: a machine that vanishes
takes with it no more than what came after the last save. A run that goes on begins with what the bucket holds, whatever this
machine has kept. Checkpoints never lie here: they are written to the bucket and read from there.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from r1jax import hub

if TYPE_CHECKING:  # slow to import
    from etils import epath

SCHEME = "gs://"
ORDER = {"config.json": 0, "metrics.jsonl": 2, "finished.json": 3}
"""File -> when it is copied; any other is 1. Without the first a directory is no run, with the last it is a finished one, and
what a stage that makes rows has sampled counts once its metrics say so."""
FIRST = "config.json"
LEASE = "lease.json"
"""Who trains there, see ``r1jax.lease``; in the bucket alone."""
CHECKPOINTS, EXPORTS, LOGS = "checkpoints", "exports", "logs"
"""Folders of a run. The first is never here; of the second only names are fetched, so that a run that goes on knows which there
are; the third is what this machine printed."""


def is_remote(name: str | os.PathLike) -> bool:
    return os.fspath(name).startswith(SCHEME)


def here(name: str, process: int = 0) -> Path:
    """The copy of ``gs://bucket/run`` on this machine; each process has its own.

    Raises:
      ValueError: no folder is named.
    """
    bucket, _, path = name.removeprefix(SCHEME).rstrip("/").partition("/")
    if not bucket or not path or ".." in path.split("/"):
        raise ValueError(f"{name}: name a folder in the bucket, as in gs://BUCKET/runs/NAME")
    return _root() / str(process) / bucket / path


def there(path: Path) -> Path | epath.Path:
    """Where a path in a run directory is for good: in the bucket that it is a copy of, or else ``path`` itself."""
    root = _root()
    if not path.is_relative_to(root):
        return path
    from etils import epath

    hub.list_buckets_anew()
    return epath.Path(SCHEME + "/".join(path.relative_to(root).parts[1:]))


def check() -> None:
    """Raises:
    ValueError: what reads buckets is not installed.
    """
    if importlib.util.find_spec("gcsfs") is None:
        raise ValueError("run directories on gs:// need gcsfs; pip install 'r1jax[gs]'")


def fetch(path: Path) -> None:
    """Makes a copy on this machine what the bucket holds.

    Raises:
      ValueError: the bucket cannot be read, or holds something else there.
    """
    place = there(path)
    check()
    with hub.bucket_errors(str(place)):
        files = [f for f in below(place, apart=(CHECKPOINTS, EXPORTS, LOGS)) if f != place / LEASE]
        exports = [folder for stage in {place, *(f.parent for f in files)} for folder in (stage / EXPORTS).glob("*")]
    if files and place / FIRST not in files:
        raise ValueError(f"{place} already holds {', '.join(f.name for f in files[:3])}; name a new or an empty directory")
    for old in path.glob("[!.]*"):
        if old.name != LOGS:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    with hub.bucket_errors(str(place)):
        for file in files:
            _copy(file, path / file.relative_to(place))
    for folder in exports:
        (path / folder.relative_to(place)).mkdir(parents=True, exist_ok=True)


def below(folder: Path | epath.Path, apart: tuple[str, ...] = ()) -> list:
    """The files under a folder, here or in a bucket, at any depth, but for folders with the names in ``apart``."""
    return sorted(_walk(folder, apart), key=str)


def _walk(folder: Path | epath.Path, apart: tuple[str, ...]) -> Iterator:
    for found in folder.iterdir() if folder.is_dir() else ():
        if not found.is_dir():
            yield found
        elif found.name not in apart:
            yield from _walk(found, apart)


class Uploads:
    """Copies what a run wrote on this machine to its bucket.

    Args:
      path: the copy of a run directory, or of a stage's in it.
    """

    def __init__(self, path: Path):
        self._path = path
        self._done: dict[Path, tuple[int, int]] = {}

    def upload(self) -> None:
        """Copies the files that changed since the last time, and removes the exports that are no longer here.

        Raises:
          ValueError: the bucket does not take them.
        """
        place = there(self._path)
        with hub.bucket_errors(str(place)):
            files = [f for f in below(self._path, apart=(CHECKPOINTS,)) if not f.name.startswith(".")]
            for file in sorted(files, key=lambda f: ORDER.get(f.name, 1)):
                state = file.stat().st_size, file.stat().st_mtime_ns
                if self._done.get(file) != state:
                    _copy(file, there(file))
                    self._done[file] = state
            if (self._path / EXPORTS).is_dir():
                for folder in (place / EXPORTS).glob("*"):
                    if not (self._path / EXPORTS / folder.name).exists():
                        folder.rmtree()


def _copy(source: Path | epath.Path, target: Path | epath.Path) -> None:
    """A file, which appears as a whole: in a bucket always, and here by a rename."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target if is_remote(target) else target.with_name(f".{target.name}.part")
    with source.open("rb") as read, part.open("wb") as write:
        shutil.copyfileobj(read, write, 1 << 24)
    if part is not target:
        part.replace(target)


def _root() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "r1jax" / "runs"
