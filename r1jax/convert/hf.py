"""A checkpoint with Hugging Face's names: a directory of safetensors, or a GGUF file, which presents itself as one.

Opening reads the config and where the tensors lie, and accounts for each of them; weights are read by ``Checkpoint.load``.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from r1jax import config
from r1jax.config import ConfigError
from r1jax.convert import fp8, gguf, hf_config, names
from r1jax.convert.fill import Needed, Progress, Read, fill
from r1jax.convert.names import Entry
from r1jax.convert.tensors import Info, Tensors, read_index

CONFIG = "config.json"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
PLAIN = ("BF16", "F16", "F32")
HARMLESS = r"\.rotary_emb\.inv_freq$"  # computed from the config; old releases stored it
COMPARED_AT_ONCE = 64 << 20  # bytes

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Checkpoint:
    """Weights of which every tensor was accounted for and none was read."""

    path: Path
    config: dict[str, Any]
    """``config.json`` as it was read."""
    model: config.Model
    entries: tuple[Entry, ...]
    """Of the tensors that hold weights."""
    copies: dict[str, str]
    """Tensors that only repeat another, and which."""
    nbytes: dict[str, int]
    read: Read
    close: Callable[[], None]
    """Gives back what reading keeps open."""

    def load(self, specs: Any, shardings: Any, progress: Progress) -> Any:
        """Parameters laid out by ``shardings``, a tree like ``specs``.

        Args:
          specs: ``decoder.specs(self.model)``, possibly with other dtypes.

        Raises:
          ConfigError: a file was cut, or what must repeat another tensor does not.
        """
        shapes = {entry.name: entry.shape for entry in self.entries}
        try:
            for copy, original in self.copies.items():
                self._check_copy(copy, original, shapes[original])
            return fill(specs, shardings, self.entries, self.nbytes, self.read, progress)
        finally:
            self.close()

    def _check_copy(self, copy: str, original: str, shape: Shape) -> None:
        """Each process compares its share of the rows."""
        step = max(1, COMPARED_AT_ONCE * shape[0] // self.nbytes[copy])
        for start in range(jax.process_index() * step, shape[0], jax.process_count() * step):
            rows = slice(start, start + step)
            a, b = (self.read(name, np.float32, lambda whole: [whole[rows]])[rows] for name in (copy, original))  # noqa: B023
            if not np.array_equal(a, b):
                raise ConfigError(f"{self.path}: {copy} differs from {original}, which by {CONFIG} it must repeat")


def open_directory(path: Path) -> Checkpoint:
    """Reads the config and the headers of the files.

    Raises:
      ConfigError: the model is not supported, a file is missing or damaged, or the tensors are not exactly the model's.
    """
    path = Path(path)
    said = read_config(path / CONFIG)
    tensors = Tensors.open(path)
    info = tensors.info
    model, block = _model(path, said, info)
    family = hf_config.family(said)
    entries = names.entries(model, family, fused=any(name.endswith(".mlp.experts.gate_up_proj") for name in info))
    quantised = {e.name for e in entries if block and e.name in info and info[e.name].dtype == fp8.NAME}
    scales = {scales_of(name): fp8.scale_shape(info[name].shape, block) for name in quantised}
    unreadable = {name: fault for name, i in info.items() if name not in quantised and (fault := _unreadable(i))}
    copies = _account(path, {name: i.shape for name, i in info.items()}, entries, model, scales, unreadable)

    def read(name: str, dtype: np.dtype, needed: Needed) -> np.ndarray:
        if name not in quantised:
            return tensors.read(name, needed)
        return fp8.dequantize(tensors.read(name), tensors.read(scales_of(name)).astype(np.float32), block, dtype)

    nbytes = {name: i.nbytes for name, i in info.items()}
    return Checkpoint(path, said, model, tuple(e for e in entries if not e.copy_of), copies, nbytes, read, tensors.close)


def announce(path: Path) -> tuple[dict[str, Any], config.Model | None]:
    """The config of a directory, and its model as ``open_directory`` will find it once its weights are there; None if they must
    be there to tell.

    Raises:
      ConfigError: the model is not supported.
    """
    said, index = read_config(path / CONFIG), read_index(path)
    model, _ = _model(path, said, index)
    return said, None if index is None and model.mtp_depth else model


def open_gguf(file: gguf.File) -> Checkpoint:
    """A GGUF file.

    Raises:
      ConfigError: the model is not supported, or the tensors are not exactly the model's.
    """
    try:
        model = hf_config.read(file.config)
    except ConfigError as error:
        raise ConfigError(f"{file.path}: {error}") from error
    entries = names.entries(model, hf_config.family(file.config))
    copies = _account(file.path, {name: tensor.shape for name, tensor in file.info.items()}, entries, model)
    nbytes = {name: tensor.bytes for name, tensor in file.info.items()}

    def read(name: str, *_) -> np.ndarray:
        return file.read(name)

    return Checkpoint(file.path, file.config, model, tuple(entries), copies, nbytes, read, close=lambda: None)


def read_config(file: Path) -> dict[str, Any]:
    """A config.json.

    Raises:
      ConfigError: there is none, or it is no JSON object.
    """
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{file} is missing; a Hugging Face directory holds one") from error
    except ValueError as error:
        raise ConfigError(f"{file} is not JSON ({error})") from error
    if not isinstance(said, dict):
        raise ConfigError(f"{file} holds {type(said).__name__}, not an object")
    return said


def scales_of(name: str) -> str:
    """The tensor with the factors of an FP8 weight."""
    return f"{name}_scale_inv"


def _model(path: Path, said: Mapping[str, Any], tensors: Iterable[str] | None) -> tuple[config.Model, fp8.Block | None]:
    """The model, and the block in which it is quantised.

    Args:
      tensors: the names of all; None: not known.
    """
    try:
        model, block = hf_config.read(said), _block(said)
    except ConfigError as error:
        raise ConfigError(f"{path / CONFIG}: {error}") from error
    if tensors is not None and not any(name.startswith(f"model.layers.{model.n_layers}.") for name in tensors):
        model = dataclasses.replace(model, mtp_depth=0)  # transformers leaves the module out when it saves
    return model, block


def _block(said: Mapping[str, Any]) -> fp8.Block | None:
    quantised = said.get("quantization_config")
    if not quantised:
        return None
    block = quantised.get("weight_block_size")
    if not (isinstance(block, list) and len(block) == 2 and all(isinstance(n, int) and n > 0 for n in block)):
        raise ConfigError(f"quantization_config.weight_block_size {block!r} is not supported; two sizes, as [128, 128], are")
    return block[0], block[1]


def _unreadable(info: Info) -> str:
    if info.dtype == fp8.NAME:
        return f"is {fp8.NAME}, but no weight, or without quantization_config.weight_block_size"
    return "" if info.dtype in PLAIN else f"has dtype {info.dtype}; {', '.join(PLAIN)} and {fp8.NAME} are supported"


def _account(
    path: Path,
    found: Mapping[str, Shape],
    entries: list[Entry],
    model: config.Model,
    scales: Mapping[str, Shape] = {},  # noqa: B006
    unreadable: Mapping[str, str] = {},  # noqa: B006
) -> dict[str, str]:
    """Refuses tensors that are not exactly the model's, and tells all of them, those that differ in their numbers together.

    Args:
      scales: tensors that must be there too.
      unreadable: what is wrong with others.

    Returns:
      Tensors that only repeat another, and which.
    """
    expected = {entry.name: entry.shape for entry in entries} | scales
    copies = {entry.name: entry.copy_of for entry in entries if entry.copy_of}
    if model.tied:
        expected[HEAD], copies[HEAD] = expected[EMBEDDING], EMBEDDING
    faults: dict[tuple[str, str], list[str]] = {}
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            fault = "" if name in copies else "is missing"
        elif name not in expected:
            fault = "" if re.search(HARMLESS, name) else "is unexpected"
        elif found[name] != expected[name]:
            fault = f"is {list(found[name])}, not {list(expected[name])}"
        else:
            fault = unreadable.get(name)
        if fault:
            faults.setdefault((re.sub(r"\d+", "*", name), fault), []).append(name)
    if faults:
        told = [
            f"{named[0]} {fault}" if len(named) == 1 else f"{pattern} {fault} ({len(named)} tensors, the first {named[0]})"
            for (pattern, fault), named in faults.items()
        ]
        raise ConfigError(f"{path}: the tensors do not fit the config: " + "; ".join(told))
    return {copy: original for copy, original in copies.items() if copy in found}
