"""Files that are there as a whole or not at all, here or in a bucket, and lists of digests that tell whether they still are."""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from r1jax import mirror

if TYPE_CHECKING:  # slow to import
    import numpy as np
    from etils import epath


def discard(path: Path | epath.Path) -> None:
    """Removes a directory, if there is one and as far as it can."""
    if not mirror.is_remote(path):
        shutil.rmtree(path, ignore_errors=True)
        return
    with contextlib.suppress(Exception):  # gcsfs, aiohttp and google-auth have no error in common
        path.rmtree()


def write(path: Path | epath.Path, text: str) -> None:
    """The file is there as a whole, on the disk, or not at all."""
    if mirror.is_remote(path):
        path.write_text(text)
        return
    part = unfinished(path)
    with open(part, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def unfinished(path: Path) -> Path:
    """What a file is called while ``write`` writes it."""
    return path.with_name(f".{path.name}.part")


def write_arrays(path: Path | epath.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """As ``numpy.savez``, and on the disk."""
    import numpy as np

    with path.open("wb") as file:
        np.savez(file, **arrays)
        if not mirror.is_remote(path):
            file.flush()
            os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Makes a rename in it outlive a loss of power."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def signed(lines: str) -> str:
    """The lines, and one with their own sha256."""
    return f"{lines}# {hashlib.sha256(lines.encode()).hexdigest()}\n"


def digests(directory: Path | epath.Path, names: list[str]) -> list[tuple[str, str]]:
    """(name, sha256) of each file, several at a time: hashing holds no lock."""
    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(zip(names, pool.map(lambda name: _digest(directory / name), names), strict=True))


def check(directory: Path | epath.Path, names: list[str], expected: Mapping[str, str]) -> str | None:
    """What is wrong with the first damaged file; None if all are as they were written.

    Args:
      expected: file -> sha256.
    """
    for name in names:
        if not (directory / name).is_file():
            return f"{directory / name} is missing"
    for name, digest in digests(directory, names):
        if digest != expected.get(name):
            return f"{directory / name} has changed since it was written"
    return None


def _digest(path: Path | epath.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
