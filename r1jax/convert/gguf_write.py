"""Parameters to a GGUF file for llama.cpp, of the dense families, as its own converter (``convert_hf_to_gguf.py``) writes them.

Norms and biases are float32; a matrix whose rows are no multiple of a block of Q8_0 is float16.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from r1jax import config
from r1jax.config import ConfigError
from r1jax.convert import gguf_tokenizer, hf_config, names
from r1jax.convert.export import gather, write_once
from r1jax.convert.gguf import ARCHITECTURES, ROPE_FACTORS, SCALING, SIZES, interleave, llama3_factors, tensor_names
from r1jax.convert.gguf_header import library
from r1jax.convert.write import Piece, Tensor
from r1jax.data.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFWriter

DType = Literal["f32", "f16", "q8_0"]
FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7}
"""llama.cpp's numbers."""
LARGEST = {"F32": np.inf, "F16": 65504.0, "Q8_0": 127 * 65504.0}


@dataclass(frozen=True)
class Plan:
    """What an export writes."""

    config: dict[str, Any]
    """As config.json would say it."""
    tokenizer: Tokenizer
    dtype: DType
    tensors: list[tuple[names.Entry, str, GGMLQuantizationType]]
    """Each entry, its name in the file, and how it is stored."""

    @property
    def bytes(self) -> int:
        return sum(_bytes(entry.shape, kind) for entry, _, kind in self.tensors)


def plan(
    model: config.Model,
    tokenizer: Tokenizer,
    dtype: DType = "f16",
    origin: Mapping[str, Any] | None = None,
    trained_length: int = 0,
) -> Plan:
    """What an export of ``model`` writes.

    Args:
      origin: the config.json that the model was imported from.
      trained_length: tokens of the rows that it was trained on, which engines must allow.

    Raises:
      ConfigError: llama.cpp has no architecture for the model, or no field for something of it or of the tokenizer.
    """
    gguf = library()
    said = hf_config.write(model, origin, trained_length)
    family, scaling = said["model_type"], said["rope_scaling"] or {}
    if family not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ConfigError(f"a GGUF file can be of {known}, not {family}; export a directory, which llama.cpp can convert")
    if (unknown := scaling.keys() - {"type", *SCALING.values()}) and (family, model.rope.scaling) != ("llama", "llama3"):
        raise ConfigError(f"a GGUF file of {family} has no field for rope_scaling.{min(unknown)}")
    a = model.attention
    if family == "qwen2" and a.n_heads * a.head_dim != model.d_model:
        raise ConfigError(f"llama.cpp wants qwen2's heads as wide as the model: {model.d_model}, not {a.n_heads}x{a.head_dim}")
    found = dict(tensor_names(model.n_layers))
    tensors = [(entry, found[entry.name], _kind(entry.shape, dtype)) for entry in names.entries(model, family)]
    planned = Plan(said, tokenizer, dtype, tensors)
    _describe(gguf.GGUFWriter(None, family), planned)  # refuses a tokenizer before a weight is read
    return planned


def write(planned: Plan, params: Any, out: Path, progress: Callable[[int], object] = lambda done: None) -> None:
    """Writes a file, one tensor after the other. Nothing is left if it fails.

    Several processes, which share a mesh, call it alike; the first one writes.

    Args:
      params: the tree of ``decoder.specs``, in any float dtype and sharding.
      progress: called with the bytes of each tensor when it is written.

    Raises:
      ConfigError: ``out`` exists or cannot be written, or a weight is too large for the format; on every process.
    """
    entries = [entry for entry, _, _ in planned.tensors]
    pieces = [Piece((Tensor(entry.name, "F32", entry.shape),), partial(_make, planned, params, entry)) for entry in entries]
    write_once(lambda pieces, threads: _write(planned, pieces, out, progress), pieces, params, entries, out)


def _write(planned: Plan, pieces: list[Piece], out: Path, progress: Callable[[int], object]) -> None:
    import gguf

    if out.exists():
        raise ConfigError(f"{out} exists; name a new file, or remove it first")
    part = out.absolute().with_name(f".{out.name}.part")
    writer = gguf.GGUFWriter(part, planned.config["model_type"])
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        needed, free = planned.bytes, shutil.disk_usage(part.parent).free
        if free < needed:
            raise ConfigError(f"{out} needs {needed / 1e9:.3g} GB and its disk has {free / 1e9:.3g} GB free; name another disk")
        _describe(writer, planned)
        writer.add_name(out.stem)
        factors = _rope_factors(planned.config)
        if factors is not None:
            writer.add_tensor_info(ROPE_FACTORS, factors.shape, factors.dtype, factors.nbytes)
        for entry, name, kind in planned.tensors:
            writer.add_tensor_info(name, entry.shape, np.dtype(np.float32), _bytes(entry.shape, kind), kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if factors is not None:
            writer.write_tensor_data(factors)
        for piece, (_, name, kind) in zip(pieces, planned.tensors, strict=True):
            stored = _quantize(name, *piece.make(), kind)
            writer.write_tensor_data(stored)
            progress(stored.nbytes)
        writer.flush()
        os.fsync(writer.fout[0].fileno())
        writer.close()
        part.rename(out)
    except OSError as error:
        raise ConfigError(f"cannot write {out}: {error.strerror or error}; nothing was left there") from error
    finally:
        writer.close()
        part.unlink(missing_ok=True)


def _describe(writer: GGUFWriter, planned: Plan) -> None:
    """Adds all metadata but the name."""
    import gguf

    said, family = planned.config, planned.config["model_type"]
    values = {key: said[theirs] for key, theirs in SIZES.items()}
    values["attention.value_length"] = said["head_dim"]
    if family == "llama":
        values |= {"vocab_size": said["vocab_size"], "rope.dimension_count": said["head_dim"]}
    scaling = said["rope_scaling"] or {}
    if scaling.get("type") == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        values |= {key: scaling[theirs] for key, theirs in SCALING.items() if theirs in scaling}
    for key, value in values.items():
        (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(f"{family}.{key}", value)
    writer.add_type("model")
    writer.add_file_type(FILE_TYPES[planned.dtype])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    gguf_tokenizer.write(writer, planned.tokenizer, said["vocab_size"])


def _rope_factors(said: dict[str, Any]) -> np.ndarray | None:
    scaling = said["rope_scaling"] or {}
    if scaling.get("rope_type") != "llama3":
        return None
    return llama3_factors(said["head_dim"], said["rope_theta"], scaling).astype(np.float32)


def _kind(shape: tuple[int, ...], dtype: DType) -> GGMLQuantizationType:
    import gguf

    kind = gguf.GGMLQuantizationType[dtype.upper() if len(shape) > 1 else "F32"]
    return kind if shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0 else gguf.GGMLQuantizationType.F16


def _bytes(shape: tuple[int, ...], kind: GGMLQuantizationType) -> int:
    import gguf

    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    return int(np.prod(shape)) // block * block_bytes


def _make(planned: Plan, params: Any, entry: names.Entry) -> tuple[np.ndarray]:
    """The values as llama.cpp wants them, float32."""
    w = np.ascontiguousarray(entry.join(gather(params, entry)), np.float32)
    if planned.config["model_type"] == "llama" and entry.name.endswith(("q_proj.weight", "k_proj.weight")):
        w = interleave(w, planned.config["head_dim"])
    return (w,)


def _quantize(name: str, w: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    import gguf

    most = max(-w.min(), w.max())  # NaN if there is one
    if not most <= LARGEST[kind.name]:
        raise ConfigError(f"{name} holds a {most:.4g}, and {kind.name} holds numbers up to {LARGEST[kind.name]:.4g}")
    return gguf.quantize(w, kind)
