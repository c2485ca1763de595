"""safetensors files, written as their tensors are made: no more than one tensor per thread is ever in memory.

A file is the length of its header (8 bytes, little-endian), the header (JSON: dtype, shape and byte range of each tensor) and
the tensors without gaps (https://github.com/huggingface/safetensors). The header is known before any tensor is.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import math
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from r1jax.config import ConfigError
from r1jax.convert.tensors import DTYPES, INDEX, SINGLE

_CHUNK = 16 << 20  # bytes converted and written at once


@dataclass(frozen=True)
class Tensor:
    name: str
    dtype: str
    """As in the file: ``F32``, ``BF16``, ``F8_E4M3``."""
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class Piece:
    """Tensors that are made together: a quantised weight and its scales. They lie in one shard."""

    tensors: tuple[Tensor, ...]
    make: Callable[[], Sequence[np.ndarray]]
    """Their values in any dtype and memory order; called once."""

    @property
    def bytes(self) -> int:
        return sum(tensor.bytes for tensor in self.tensors)


def write_shards(
    directory: Path,
    pieces: Sequence[Piece],
    *,
    max_shard_bytes: int = 5 * 10**9,
    threads: int = 4,
    progress: Callable[[int], object] = lambda done: None,
) -> int:
    """Writes ``model.safetensors``, or ``model-00001-of-0000N.safetensors`` and their index, and returns N.

    Each thread writes a shard of its own, piece after piece; one thread makes all pieces in their order.

    Args:
      max_shard_bytes: a piece that is larger has a shard to itself.
      progress: called with the bytes of each piece that was written, from any thread.

    Raises:
      OSError: a file cannot be written.
      ValueError: a piece was made in another shape than announced.
    """
    shards = _shards(pieces, max_shard_bytes)
    count = len(shards)
    names = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)] if count > 1 else [SINGLE]
    stop = threading.Event()
    with concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="shard") as pool:
        try:
            jobs = [
                pool.submit(_write_shard, directory / name, shard, stop, progress)
                for name, shard in zip(names, shards, strict=True)
            ]
            for job in concurrent.futures.as_completed(jobs):
                job.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if count > 1:
        where = {t.name: name for name, shard in zip(names, shards, strict=True) for piece in shard for t in piece.tensors}
        write_json(directory / INDEX, {"metadata": {"total_size": sum(p.bytes for p in pieces)}, "weight_map": where})
    return count


def write_file(path: Path, pieces: Sequence[Piece]) -> None:
    """Writes one safetensors file.

    Raises:
      OSError: it cannot be written.
      ValueError: a piece was made in another shape than announced.
    """
    _write_shard(path, list(pieces), threading.Event(), lambda done: None)


def write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def refuse_taken(out: Path) -> None:
    """
    Raises:
      ConfigError: something is there, other than an empty directory.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not an empty directory; name a new one, or remove it first")


@contextlib.contextmanager
def new_directory(out: Path, size: int = 0) -> Iterator[Path]:
    """A directory to fill, which becomes ``out`` by one rename when the block ends. If the block raises, nothing is left; if
    the process is killed, ``.NAME.part`` beside it is, and the next attempt removes it.

    Args:
      size: bytes that will be written.

    Raises:
      ConfigError: something is there already, the disk has no room, or the directory cannot be written.
    """
    refuse_taken(out)
    part = out.absolute().with_name(f".{out.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        free = shutil.disk_usage(part).free
        if free < size:
            raise ConfigError(f"{out} needs {size / 1e9:.3g} GB and its disk has {free / 1e9:.3g} GB free; name another disk")
        yield part
        for path in (*part.iterdir(), part):
            _sync(path)
        part.rename(out)
        _sync(part.parent)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise ConfigError(f"cannot write {out}: {error.strerror or error}; nothing was left there") from error
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _shards(pieces: Sequence[Piece], most: int) -> list[list[Piece]]:
    """Pieces in their order, cut where the next would make a shard larger than ``most`` bytes."""
    shards: list[list[Piece]] = [[]]
    size = 0
    for piece in pieces:
        if shards[-1] and size + piece.bytes > most:
            shards.append([])
            size = 0
        shards[-1].append(piece)
        size += piece.bytes
    return shards


def _write_shard(path: Path, shard: list[Piece], stop: threading.Event, progress: Callable[[int], object]) -> None:
    # Wide numbers go first, as the library writes them: without gaps, a tensor of odd length would put them off their grid.
    tensors = sorted((t for piece in shard for t in piece.tensors), key=lambda t: -DTYPES[t.dtype].itemsize)
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}  # transformers asks for it
    end = 0
    for t in tensors:
        header[t.name] = {"dtype": t.dtype, "shape": list(t.shape), "data_offsets": [end, end + t.bytes]}
        end += t.bytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "xb", buffering=0) as file:
        fd = file.fileno()
        _write_at(fd, 0, len(text).to_bytes(8, "little") + text)
        for piece in shard:
            for t, values in zip(piece.tensors, piece.make(), strict=True):
                if values.shape != t.shape:
                    raise ValueError(f"{t.name} was announced as {t.shape} and made as {values.shape}")
                _write_array(fd, 8 + len(text) + header[t.name]["data_offsets"][0], values, DTYPES[t.dtype], stop)
            progress(piece.bytes)


def _write_array(fd: int, offset: int, values: np.ndarray, dtype: np.dtype, stop: threading.Event) -> None:
    """Converted a few rows at a time: a transposed view of other dtype is never copied as a whole."""
    rows = max(1, _CHUNK * len(values) // max(1, values.size * dtype.itemsize))
    for i in range(0, len(values), rows):
        if stop.is_set():
            raise InterruptedError("another shard failed")
        chunk = np.ascontiguousarray(values[i : i + rows], dtype).reshape(-1).view(np.uint8)
        _write_at(fd, offset, memoryview(chunk))
        offset += chunk.size


def _write_at(fd: int, offset: int, data: bytes | memoryview) -> None:
    while data:
        done = os.pwrite(fd, data, offset)
        data, offset = data[done:], offset + done


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
