"""What stands before the weights of a GGUF file: its metadata, and the kind, shape and place of every tensor.

The layout is https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian. The reader of the
package gguf maps the whole file, whose pages then count as resident memory, and a broken length keeps it busy for ever.
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from r1jax.config import ConfigError

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

STRING, ARRAY = 8, 9
SCALARS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
"""numpy's names of the value types."""
ALIGNMENT = 32  # of tensors, where general.alignment names no other


@dataclass(frozen=True)
class Tensor:
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    """[out, in] for a matrix: the file holds it in the other order."""
    offset: int
    """Of its first byte in the file."""
    bytes: int


def library() -> ModuleType:
    """The package gguf.

    Raises:
      ConfigError: it is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise ConfigError("GGUF files need the package gguf; `pip install r1jax[smollm2]`") from error
    return gguf


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(metadata, tensors), each by name, from the start of the file alone.

    Raises:
      ConfigError: the file is not GGUF, or what it says of itself cannot be.
    """
    try:
        with path.open("rb") as file:
            return _Header(file).read()
    except (ValueError, OverflowError, MemoryError) as error:
        raise ConfigError(f"{path}: not a readable GGUF file ({error})") from error


class _Header:
    """Reads forward; no length in the file is believed before the bytes left allow it."""

    def __init__(self, file: BinaryIO):
        self.file, self.size = file, os.fstat(file.fileno()).st_size

    def read(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        if self.take(4) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        if (version := self.number("<u4")) not in (2, 3):
            raise ValueError(f"it is of version {version}; 2 and 3 are supported")
        n_tensors, n_values = self.number("<u8"), self.number("<u8")
        metadata = dict(self.pair() for _ in range(n_values))
        found = dict(self.tensor() for _ in range(n_tensors))
        if len(found) != n_tensors or len(metadata) != n_values:
            raise ValueError("a name comes twice")
        alignment = metadata.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"general.alignment is {alignment!r}")
        start = -(-self.file.tell() // alignment) * alignment
        tensors = {name: _place(name, *rest, start=start, size=self.size) for name, rest in found.items()}
        return metadata, tensors

    def take(self, count: int) -> bytes:
        if count > self.size - self.file.tell():
            raise ValueError(f"it ends at byte {self.size}, within its header")
        return self.file.read(count)

    def numbers(self, dtype: str, count: int) -> list:
        return np.frombuffer(self.take(count * np.dtype(dtype).itemsize), dtype).tolist()

    def number(self, dtype: str) -> Any:
        return self.numbers(dtype, 1)[0]

    def string(self) -> str:
        return self.take(struct.unpack("<Q", self.take(8))[0]).decode()

    def pair(self) -> tuple[str, Any]:
        return self.string(), self.value(self.number("<u4"))

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind != ARRAY:
            raise ValueError(f"value type {kind} is not known")
        inner, count = self.number("<u4"), self.number("<u8")
        if inner == STRING:
            return [self.string() for _ in range(count)]
        if inner not in SCALARS:
            raise ValueError(f"an array of value type {inner} is not supported")
        return self.numbers(SCALARS[inner], count)

    def tensor(self) -> tuple[str, tuple[tuple[int, ...], int, int]]:
        """(name, (shape, kind, offset after the header))."""
        name, dimensions = self.string(), self.number("<u4")
        shape = tuple(reversed(self.numbers("<u8", dimensions)))
        return name, (shape, self.number("<u4"), self.number("<u8"))


def _place(name: str, shape: tuple[int, ...], kind: int, offset: int, *, start: int, size: int) -> Tensor:
    import gguf

    kind = gguf.GGMLQuantizationType(kind)
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    if not shape or shape[-1] % block:
        raise ValueError(f"tensor {name!r} has rows of {shape[-1:]}, not of a multiple of {kind.name}'s {block}")
    tensor = Tensor(kind, shape, start + offset, math.prod(shape) // block * block_bytes)
    if (end := tensor.offset + tensor.bytes) > size:
        raise ValueError(f"tensor {name!r} ends at byte {end}, but the file has {size}: it was cut short")
    return tensor
