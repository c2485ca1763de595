"""Safetensors files, read by pread. Pages of a mapped file would count as resident memory: 2.1x the file, against 1.06x."""

from __future__ import annotations

import json
import math
import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from r1jax.config import ConfigError

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "I16": np.dtype(np.int16),
    "U16": np.dtype(np.uint16),
    "I32": np.dtype(np.int32),
    "U32": np.dtype(np.uint32),
    "I64": np.dtype(np.int64),
    "U64": np.dtype(np.uint64),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
}
_LARGEST_HEADER = 100_000_000  # bytes, as the reference implementation has it


@dataclass(frozen=True)
class Info:
    """Where one tensor lies."""

    file: Path
    dtype: str
    """As in the file: ``BF16``, ``F8_E4M3``, ..., a key of ``DTYPES``."""
    shape: tuple[int, ...]
    start: int
    """Of its bytes in the file."""

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


class Tensors:
    """The tensors of a directory of safetensors files. Any thread may read."""

    def __init__(self, info: Mapping[str, Info]):
        self.info = info
        self.bytes_read = 0
        self._files: dict[Path, int] = {}
        self._lock = threading.Lock()

    @classmethod
    def open(cls, directory: Path) -> Tensors:
        """Reads the headers of the files that the index names; without an index, of ``model.safetensors`` or of all.

        Raises:
          ConfigError: a shard is missing, was cut, or its header does not fit its size.
        """
        directory = Path(directory)
        index = read_index(directory)
        files = sorted(set(index.values())) if index is not None else _files_without_index(directory)
        info: dict[str, Info] = {}
        for file in files:
            for name, found in read_header(directory / file).items():
                if name in info:
                    raise ConfigError(f"{directory / file}: tensor {name} is in {info[name].file.name} too; remove one file")
                info[name] = found
        for name, file in (index or {}).items():
            if name not in info or info[name].file.name != file:
                raise ConfigError(f"{directory / file} has no tensor {name}, which {INDEX} places there; download both again")
        return cls(info)

    def read(self, name: str, needed: Callable[[np.ndarray], Iterable[np.ndarray]] | None = None) -> np.ndarray:
        """One tensor in its own dtype.

        Args:
          needed: the views of the tensor that will be looked at, given an array of its shape. Only the bytes that they span are
            read; the others stay undefined and take no memory.
        """
        info = self.info[name]
        whole = np.empty(info.shape, DTYPES[info.dtype])
        data = whole.reshape(-1).view(np.uint8)
        for start, stop in [(0, info.nbytes)] if needed is None else _spans(whole, needed(whole)):
            self._read_into(data[start:stop], info, start)
        return whole

    def _read_into(self, data: np.ndarray, info: Info, start: int) -> None:
        file, done = self._descriptor(info.file), 0
        while done < data.size:
            count = os.preadv(file, [data[done:]], info.start + start + done)
            if not count:
                raise ConfigError(f"{info.file} became shorter while it was read; download it again")
            done += count
        with self._lock:
            self.bytes_read += done

    def _descriptor(self, path: Path) -> int:
        with self._lock:
            if path not in self._files:
                self._files[path] = os.open(path, os.O_RDONLY)
            return self._files[path]

    def close(self) -> None:
        """Closes the files; the next read opens its file again."""
        with self._lock:
            while self._files:
                os.close(self._files.popitem()[1])


def read_header(path: Path) -> dict[str, Info]:
    """The tensors of one file.

    Raises:
      ConfigError: the file is not there, or its bytes are not exactly what its header says.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or not 2 <= length <= min(size - 8, _LARGEST_HEADER):
                raise ValueError(f"it has {size} bytes, too few for its header")
            header = json.loads(file.read(length).decode())
        header.pop("__metadata__", None)
        return _check(path, header, 8 + length, size)
    except FileNotFoundError as error:
        raise ConfigError(f"{path} is missing; download it again") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        why = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ConfigError(f"{path} is damaged or was cut short ({why}); download it again") from error


def _check(path: Path, header: dict[str, Any], begin: int, size: int) -> dict[str, Info]:
    """Refuses offsets that do not fit the shapes, leave holes, overlap, or end elsewhere than the file."""
    found, end = {}, begin
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, stop = entry["data_offsets"]
        if entry["dtype"] not in DTYPES:
            raise ValueError(f"tensor {name} has an unknown dtype {entry['dtype']!r}")
        shape = entry["shape"]
        if not all(type(n) is int and n >= 0 for n in (*shape, start, stop)):
            raise ValueError(f"tensor {name} has shape {shape} at {start}..{stop}")
        info = Info(path, entry["dtype"], tuple(shape), begin + start)
        if info.start != end or stop - start != info.nbytes:
            raise ValueError(f"tensor {name}, {info.dtype} of shape {info.shape}, cannot lie at bytes {start} to {stop}")
        found[name], end = info, begin + stop
    if end != size:
        raise ValueError(f"it has {size:,} bytes and its header tells of {end:,}")
    return found


def read_index(directory: Path) -> dict[str, str] | None:
    """The file of each tensor; None without an index.

    Raises:
      ConfigError: it is damaged.
    """
    file = directory / INDEX
    if not file.is_file():
        return None
    try:
        index = json.loads(file.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file} is damaged ({type(error).__name__}: {error}); download it again") from error
    for name in set(index.values()):
        if name != Path(name).name:
            raise ConfigError(f"{file} names the file {name!r}, which is not in its directory")
    return index


def _files_without_index(directory: Path) -> list[str]:
    names = sorted(file.name for file in directory.glob("*.safetensors"))
    if not names:
        raise ConfigError(f"{directory} holds no .safetensors file; other formats of weights are not read")
    if SINGLE in names:
        return [SINGLE]
    for name in names:  # model-00001-of-000163.safetensors
        match = re.fullmatch(r"(.*-)(\d+)(-of-(\d+)\.safetensors)", name)
        for i in range(1, int(match[4]) + 1) if match else ():
            shard = f"{match[1]}{i:0{len(match[2])}}{match[3]}"
            if shard not in names:
                raise ConfigError(f"{directory / shard} is missing; download it again")
    return names


def _spans(whole: np.ndarray, views: Iterable[np.ndarray]) -> list[tuple[int, int]]:
    """Byte ranges of ``whole`` that cover the views, ascending and apart; all of it if a view is no view of it."""
    base, found = whole.ctypes.data, []
    for view in views:
        low, high = np.lib.array_utils.byte_bounds(view)
        if not base <= low <= high <= base + whole.nbytes:
            return [(0, whole.nbytes)]
        found.append((low - base, high - base))
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(found):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return merged
