"""Parameters to a Hugging Face directory: released names and layouts, for transformers, vLLM and SGLang to load.

What will be written is planned, and can be refused or compared, before a weight is read. Then one slice of the stacked arrays
at a time leaves the devices.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from r1jax import config, lora, processes
from r1jax.config import ConfigError
from r1jax.convert import fp8, hf_config, names
from r1jax.convert.hf import scales_of
from r1jax.convert.tensors import Tensors
from r1jax.convert.write import Piece, Tensor, new_directory, write_json, write_shards
from r1jax.data.template import Template
from r1jax.data.tokenizer import Tokenizer
from r1jax.models import decoder

DType = Literal["bfloat16", "float32", "fp8"]
STORED = {"bfloat16": "BF16", "float32": "F32"}
BLOCK = (128, 128)
# What DeepSeek quantised: the matrices of attention and feed-forward. Not embedding, head, router, eh_proj, norms and biases.
QUANTISED = re.compile(r"\.(self_attn|mlp)\..*_proj(_with_mqa)?\.weight")


@dataclass(frozen=True)
class Plan:
    """What an export writes."""

    model: config.Model
    """As a reader of the directory will see it; weights that are quantised have the dtype of the others."""
    dtype: DType
    half_split: bool
    """Rotary channels are put in DeepSeek's order on the way."""
    config: dict[str, Any]
    """config.json."""
    tokenizer: Tokenizer | None
    tensors: list[tuple[names.Entry, tuple[Tensor, ...]]]
    """Each entry's tensors in the files: its own and, if it is quantised, its scales."""

    @property
    def bytes(self) -> int:
        return sum(tensor.bytes for _, tensors in self.tensors for tensor in tensors)


def plan(
    model: config.Model,
    tokenizer: Tokenizer | None,
    dtype: DType | None = None,
    origin: Mapping[str, Any] | None = None,
    trained_length: int = 0,
) -> Plan:
    """What an export of ``model`` writes.

    Args:
      tokenizer: None where the weights came without one.
      dtype: None is the origin's ``torch_dtype`` (float32 for float16), whether or not it was quantised; without an origin the
        model's ``param_dtype``. ``fp8`` is DeepSeek's: matrices in blocks of 128 x 128, the rest bfloat16.
      origin: the config.json that the model was imported from.
      trained_length: tokens of the rows that it was trained on, which engines must allow.

    Raises:
      ConfigError: no released family can say what the model does.
    """
    dtype = dtype or (hf_config.read(origin) if origin else model).param_dtype
    # Engines know latent attention with neighbouring rotary channels only. What came with the others leaves with them.
    half_split = model.attention.kind == "mla" and not model.rope.interleaved and origin is None
    model = dataclasses.replace(
        model,
        param_dtype="bfloat16" if dtype == "fp8" else dtype,
        rope=dataclasses.replace(model.rope, interleaved=model.rope.interleaved or half_split),
    )
    described = hf_config.write(model, origin, trained_length)
    family = hf_config.family(described)
    specs = decoder.specs(model)
    tensors = []
    for entry in names.entries(model, family):
        quantised = dtype == "fp8" and QUANTISED.search(entry.name)
        stored = fp8.NAME if quantised else STORED[leaf(specs, entry.parts[0]).dtype]
        mine = [Tensor(entry.name, stored, entry.shape)]
        if quantised:
            mine.append(Tensor(scales_of(entry.name), "F32", fp8.scale_shape(entry.shape, BLOCK)))
        tensors.append((entry, tuple(mine)))
    if dtype == "fp8":
        described["quantization_config"] = _quantization(model, family)
    return Plan(model, dtype, half_split, _with_tokens(described, tokenizer), tokenizer, tensors)


def differences(planned: Plan, directory: Path) -> list[str]:
    """A line for every tensor that the export and a directory do not both have with the same shape and dtype.

    Raises:
      ConfigError: the directory's tensors cannot be read.
    """
    theirs = {name: (info.dtype, info.shape) for name, info in Tensors.open(directory).info.items()}
    ours = {t.name: (t.dtype, t.shape) for _, tensors in planned.tensors for t in tensors}

    def tell(found: tuple[str, tuple[int, ...]] | None) -> str:
        return "absent" if found is None else f"{found[0]} {list(found[1])}"

    return [
        f"{name}: here {tell(ours.get(name))}, there {tell(theirs.get(name))}"
        for name in sorted({**theirs, **ours})
        if ours.get(name) != theirs.get(name)
    ]


def write(
    planned: Plan,
    params: Any,
    out: Path,
    progress: Callable[[int], object] = lambda done: None,
    *,
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes a directory: weights, config.json, the tokenizer's files. Nothing is left if it fails.

    Several processes, which share a mesh, call it alike; the first one writes.

    Args:
      params: the tree of ``decoder.specs``, in any float dtype and sharding.
      progress: called with bytes as they are written, from any thread.

    Raises:
      ConfigError: ``out`` is not empty or cannot be written; on every process.
    """
    lock = threading.Lock()
    pieces = [Piece(tensors, partial(_make, planned, params, entry, lock)) for entry, tensors in planned.tensors]

    def write_pieces(pieces: list[Piece], threads: int) -> None:
        with new_directory(out, planned.bytes) as part:
            write_shards(part, pieces, max_shard_bytes=max_shard_bytes, threads=threads, progress=progress)
            if planned.tokenizer is not None:
                planned.tokenizer.save(part)
            write_json(part / "config.json", planned.config)

    write_once(write_pieces, pieces, params, [entry for entry, _ in planned.tensors], out)


def gather(params: Any, entry: names.Entry) -> list[np.ndarray]:
    """An entry's parts on this host. With several processes all of them must call this, in the same order."""
    return [_fetch_kernel(leaf(params, part), part.index) for part in entry.parts]


def write_once(
    write: Callable[[list[Piece], int], None], pieces: list[Piece], params: Any, entries: list[names.Entry], out: Path
) -> None:
    """Calls ``write`` with the pieces and a number of threads, on the first process only: the others give their share of the
    entries of which the pieces are made. If it raises, so do all."""
    if jax.process_count() == 1:
        write(pieces, 4)
    else:
        _write_together(write, pieces, params, entries, out)


def chat_template(text: config.Text, tokenizer: Tokenizer) -> str | None:
    """The template that prompts were written with, for an engine that knows ``messages`` and the special tokens only: what
    else it reads is set in its first lines."""
    source = Template(text, tokenizer).source
    say = partial(json.dumps, ensure_ascii=False)
    lines = [
        f"{{%- if {name} is not defined %}}{{%- set {name} = {say(value)} %}}{{%- endif %}}"
        for name, value in text.template_options.items()
    ]
    if text.system is not None:
        system = say({"role": "system", "content": text.system})
        lines.append(f"{{%- if messages[0].role != 'system' %}}{{%- set messages = [{system}] + messages %}}{{%- endif %}}")
    if source != tokenizer.chat_template:
        lines.append("{%- set prompt = messages | map(attribute='content') | join('\\n\\n') %}")
        lines.append(f"{{%- set prefix = {say(tokenizer.prefix)} %}}")
    return "".join(f"{line}\n" for line in lines) + source


def _make(planned: Plan, params: Any, entry: names.Entry, lock: threading.Lock) -> tuple[np.ndarray, ...]:
    """The values of an entry's tensors, in a dtype that is converted when they are written."""
    with lock:  # programs on several devices must start on each in the same order
        parts = gather(params, entry)
    if planned.half_split:
        parts = [neighbouring(x, part, planned.model) for x, part in zip(parts, entry.parts, strict=True)]
    whole = entry.join(parts)
    quantised = planned.dtype == "fp8" and QUANTISED.search(entry.name)
    return fp8.quantize(whole, BLOCK) if quantised else (whole,)


def leaf(tree: Any, part: names.Part) -> Any:
    """What stands at a part's path in a tree like our parameters."""
    for key in part.path:
        tree = tree[key]
    return tree


def _fetch_kernel(x: jax.Array | lora.Adapted, index: tuple[int, ...]) -> np.ndarray:
    """x[index] on this host, of a kernel with an adapter the two as one, in float32."""
    if not lora.is_adapted(x):
        return _fetch(x, index)
    base, a, b = (_fetch(part, index).astype(np.float32) for part in (x.base, x.a, x.b))
    return base + x.scale * np.tensordot(a, b, 1)


def _fetch(x: jax.Array, index: tuple[int, ...]) -> np.ndarray:
    """x[index] on this host."""
    where = x.sharding
    spec = (*where.spec, *[None] * x.ndim) if isinstance(where, NamedSharding) else (None,) * x.ndim
    everywhere = None if where.is_fully_addressable else NamedSharding(where.mesh, PartitionSpec())
    return np.asarray(_take(x, index, tuple(axis is not None for axis in spec[: len(index)]), everywhere))


@partial(jax.jit, static_argnames=("split", "where"))
def _take(x: jax.Array, index: tuple[int, ...], split: tuple[bool, ...], where: NamedSharding | None) -> jax.Array:
    """x[index], laid out as ``where`` says.

    Args:
      split: which of the indexed axes lie over several devices. The compiler would gather such an axis as a whole to take one
        entry of it; a sum over it of bits, all zero but for that entry, moves no more than the entry.
    """
    shape = x.shape[len(index) :]
    starts = [0 if is_split else i for i, is_split in zip(index, split, strict=True)]
    sizes = [n if is_split else 1 for n, is_split in zip(x.shape, split, strict=False)]
    # In one step: on a CPU, a layer would be copied for every expert that is taken from it.
    x = jax.lax.dynamic_slice(x, (*starts, *[0] * len(shape)), (*sizes, *shape))
    for axis, i in enumerate(index):
        if not split[axis]:
            continue
        dtype, width = x.dtype, jnp.dtype(f"uint{8 * x.dtype.itemsize}")
        bits = jax.lax.bitcast_convert_type(x, width).astype(jnp.uint32)  # collectives know 32 bits everywhere, 16 not
        mine = jax.lax.broadcasted_iota(jnp.int32, x.shape, axis) == i
        whole = jnp.where(mine, bits, 0).sum(axis, dtype=jnp.uint32, keepdims=True)
        x = jax.lax.bitcast_convert_type(whole.astype(width), dtype)
    x = x.reshape(shape)
    return x if where is None else jax.lax.with_sharding_constraint(x, where)


def neighbouring(x: np.ndarray, part: names.Part, model: config.Model) -> np.ndarray:
    """The rotary channels, last of the last axis, from pairs (i, i + n/2) to pairs (2i, 2i+1). Queries and keys alike, so
    that their product is the same."""
    if part.path[-1] not in ("q", "q_b", "kv_a"):
        return x
    n = model.attention.rope_dim
    order = np.arange(x.shape[-1])
    order[-n:] = order[-n:].reshape(2, n // 2).T.ravel()
    return x[..., order]


def _write_together(
    write: Callable[[list[Piece], int], None], pieces: list[Piece], params: Any, entries: list[names.Entry], out: Path
) -> None:
    """The first process writes. To gather an entry is a collective: every process gathers every one, in the same order, also
    when the writing has failed."""
    todo = iter(zip(pieces, entries, strict=True))
    error = None
    if jax.process_index() == 0:
        try:
            write([Piece(piece.tensors, lambda: next(todo)[0].make()) for piece in pieces], 1)
        except Exception as failed:  # of any kind: the others wait for the next entry
            error = failed
    for _, entry in todo:
        gather(params, entry)
    if processes.any_of("exported", error is not None):
        raise error or ConfigError(f"process 0 cannot write {out}; it says why")


def _with_tokens(described: dict[str, Any], tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Adds the ids of special tokens where the config has none."""
    if tokenizer is None:
        return described
    found = {"bos_token_id": tokenizer.backend.token_to_id(tokenizer.special.get("bos_token", ""))}
    if tokenizer.end_ids:
        found["eos_token_id"] = tokenizer.end_ids[0] if len(tokenizer.end_ids) == 1 else list(tokenizer.end_ids)
    return {name: value for name, value in found.items() if value is not None} | described


def _quantization(model: config.Model, family: hf_config.Family) -> dict[str, Any]:
    """``quantization_config`` as DeepSeek and Qwen released it. Engines know DeepSeek's router; Qwen's must be named."""
    said = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": list(BLOCK)}
    if family == "qwen3_moe":
        layers = itertools.chain(*(itertools.repeat(s.ff, s.count) for s in model.segments))
        gates = [f"model.layers.{i}.mlp.gate" for i, ff in enumerate(layers) if ff == "moe"]
        said["modules_to_not_convert"] = ["lm_head", *gates]
    return said
