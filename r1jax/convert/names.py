"""Tensors of a Hugging Face checkpoint and the places in our parameters that hold the same numbers.

The tables below are the mapping: a name under ``model.layers.N.``, and the leaf or leaves of our layer, with how their numbers
lie. Hugging Face stores a matrix [out, in], ours is [in, out] with heads apart; no number is changed on the way.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from r1jax import config
from r1jax.convert.hf_config import Family
from r1jax.models import decoder
from r1jax.params import is_spec, path_name


@dataclass(frozen=True)
class Layout:
    """How our arrays lie in one tensor: side by side along their last axis, then ``kept`` leading axes stay as they are, the
    next ``inputs`` axes and the rest are each flattened, and these two change places."""

    leaves: tuple[str, ...]
    inputs: int = 1
    kept: int = 0


def linear(*leaves: str) -> Layout:
    return Layout(leaves)


def linear_from_heads(leaf: str) -> Layout:
    """[heads, head_dim, out] of ours."""
    return Layout((leaf,), inputs=2)


def vector(leaf: str) -> Layout:
    return Layout((leaf,), inputs=0)


def rows(leaf: str) -> Layout:
    """A matrix that is stored as ours is."""
    return Layout((leaf,), inputs=0, kept=1)


def experts(*leaves: str) -> Layout:
    """All experts in one tensor."""
    return Layout(leaves, kept=1)


NORMS = {
    "input_layernorm.weight": vector("attention_norm/scale"),
    "post_attention_layernorm.weight": vector("ff_norm/scale"),
}
LLAMA = NORMS | {
    "self_attn.q_proj.weight": linear("attention/q"),
    "self_attn.k_proj.weight": linear("attention/k"),
    "self_attn.v_proj.weight": linear("attention/v"),
    "self_attn.o_proj.weight": linear_from_heads("attention/o"),
}
QWEN2 = LLAMA | {
    "self_attn.q_proj.bias": vector("attention/q_bias"),
    "self_attn.k_proj.bias": vector("attention/k_bias"),
    "self_attn.v_proj.bias": vector("attention/v_bias"),
}
QWEN3 = LLAMA | {
    "self_attn.q_norm.weight": vector("attention/q_norm"),
    "self_attn.k_norm.weight": vector("attention/k_norm"),
}
DEEPSEEK = NORMS | {
    "self_attn.kv_a_proj_with_mqa.weight": linear("attention/kv_a"),
    "self_attn.kv_a_layernorm.weight": vector("attention/kv_norm/scale"),
    "self_attn.kv_b_proj.weight": linear("attention/k_b", "attention/v_b"),
    "self_attn.o_proj.weight": linear_from_heads("attention/o"),
}
QUERY = {"self_attn.q_proj.weight": linear("attention/q")}
LATENT_QUERY = {
    "self_attn.q_a_proj.weight": linear("attention/q_a"),
    "self_attn.q_a_layernorm.weight": vector("attention/q_norm/scale"),
    "self_attn.q_b_proj.weight": linear("attention/q_b"),
}
DENSE = {
    "mlp.gate_proj.weight": linear("ff/gate"),
    "mlp.up_proj.weight": linear("ff/up"),
    "mlp.down_proj.weight": linear("ff/down"),
}
ROUTER = {"mlp.gate.weight": linear("ff/router")}
ROUTER_BIAS = {"mlp.gate.e_score_correction_bias": vector("ff/router_bias")}
EXPERT = {  # for each expert {e}
    "mlp.experts.{e}.gate_proj.weight": linear("ff/gate"),
    "mlp.experts.{e}.up_proj.weight": linear("ff/up"),
    "mlp.experts.{e}.down_proj.weight": linear("ff/down"),
}
FUSED = {  # as transformers 5 holds them
    "mlp.experts.gate_up_proj": experts("ff/gate", "ff/up"),
    "mlp.experts.down_proj": experts("ff/down"),
}
SHARED = {
    "mlp.shared_experts.gate_proj.weight": linear("ff/shared/gate"),
    "mlp.shared_experts.up_proj.weight": linear("ff/shared/up"),
    "mlp.shared_experts.down_proj.weight": linear("ff/shared/down"),
}
EMBED = {"model.embed_tokens.weight": rows("embed/table")}
NORM = {"model.norm.weight": vector("final_norm/scale")}
HEAD = {"lm_head.weight": linear("head/kernel")}
# Beside a whole layer, under the number that follows the trunk's last. Ours below "mtp".
MTP = {
    "enorm.weight": vector("embed_norm/scale"),
    "hnorm.weight": vector("hidden_norm/scale"),
    "eh_proj.weight": linear("merge"),
    "shared_head.norm.weight": vector("final_norm/scale"),
}
COPIES = {"embed_tokens.weight": EMBED, "shared_head.head.weight": HEAD}


@dataclass(frozen=True)
class Part:
    """A slice of our parameters."""

    path: tuple[str | int, ...]
    """In the params tree, as ("segments", 0, "attention", "k_b")."""
    index: tuple[int, ...]
    """Leading index into the stacked array: (layer,), (layer, expert), or ()."""


@dataclass(frozen=True)
class Entry:
    """One tensor of a checkpoint."""

    name: str
    shape: tuple[int, ...]
    """As Hugging Face stores it."""
    parts: tuple[Part, ...]
    layout: Layout
    part_shapes: tuple[tuple[int, ...], ...]
    """Of the parts, in our layout."""
    copy_of: str | None = None
    """The trunk's tensor that this one repeats: written on export; on import it may be absent, and must else be equal."""

    def split(self, tensor: np.ndarray) -> tuple[np.ndarray, ...]:
        """The parts' slices of a tensor, as views."""
        if self.layout.inputs:
            tensor = tensor.swapaxes(-1, -2)
        whole = tensor.reshape(_side_by_side(self.part_shapes))
        return tuple(np.split(whole, np.cumsum([shape[-1] for shape in self.part_shapes])[:-1], axis=-1))

    def join(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """The tensor that holds the parts: the inverse of ``split``."""
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
        if not self.layout.inputs:
            return whole.reshape(self.shape)
        return whole.reshape(*self.shape[:-2], self.shape[-1], self.shape[-2]).swapaxes(-1, -2)


def entries(model: config.Model, family: Family, fused: bool = False) -> list[Entry]:
    """Every tensor of a checkpoint of the model, layer by layer.

    Args:
      fused: the experts of a layer in one tensor, as transformers 5 holds them; else one by one, as they are released.

    Raises:
      ConfigError: the family has no tensor for one of the model's arrays, or needs one that the model lacks.
    """
    specs = decoder.specs(model)
    top = _leaves({name: tree for name, tree in specs.items() if name not in ("segments", "mtp")})
    out = list(_entries(EMBED, top))
    number = 0
    for s, segment in enumerate(model.segments):
        leaves = _leaves(specs["segments"][s])
        table = _layer_table(model, family, segment.ff, fused)
        _account(table, leaves, family)
        for i in range(segment.count):
            out += _entries(table, leaves, f"model.layers.{number}.", ("segments", s), (i,))
            number += 1
    out += _entries(NORM if model.tied else NORM | HEAD, top)
    if model.mtp_depth:
        prefix, leaves = f"model.layers.{number}.", _leaves(specs["mtp"])
        layer = _leaves(specs["mtp"]["layer"])
        for name, table in COPIES.items():
            original = EMBED if model.tied else table
            (copy,) = _entries(original, top)
            out.append(dataclasses.replace(copy, name=prefix + name, copy_of=copy.name))
        out += _entries(MTP, leaves, prefix, ("mtp",))
        out += _entries(_layer_table(model, family, model.segments[-1].ff, fused), layer, prefix, ("mtp", "layer"))
    return out


def _layer_table(model: config.Model, family: Family, ff: str, fused: bool) -> dict[str, Layout]:
    if family == "deepseek_v3":
        table = DEEPSEEK | (QUERY if model.attention.kind == "gqa" or model.attention.q_rank is None else LATENT_QUERY)
        sparse = ROUTER | ROUTER_BIAS | (SHARED if model.moe and model.moe.n_shared else {})
    else:
        table = {"llama": LLAMA, "qwen2": QWEN2, "qwen3": QWEN3, "qwen3_moe": QWEN3}[family]
        sparse = ROUTER
    return table | (DENSE if ff == "dense" else sparse | (FUSED if fused else EXPERT))


def _account(table: Mapping[str, Layout], leaves: Mapping[str, tuple[int, ...]], family: Family) -> None:
    named = {leaf for layout in table.values() for leaf in layout.leaves}
    if wrong := sorted(named ^ leaves.keys()):
        raise config.ConfigError(f"the {family} format and this model differ in {', '.join(wrong)}")


def _leaves(specs) -> dict[str, tuple[int, ...]]:
    """The shape of each array, by its path below ``specs``."""
    return {path_name(path): spec.shape for path, spec in jax.tree_util.tree_leaves_with_path(specs, is_leaf=is_spec)}


def _entries(
    table: Mapping[str, Layout],
    leaves: Mapping[str, tuple[int, ...]],
    prefix: str = "",
    root: tuple[str | int, ...] = (),
    index: tuple[int, ...] = (),
) -> Iterator[Entry]:
    for name, layout in table.items():
        paths = [(*root, *leaf.split("/")) for leaf in layout.leaves]
        each = range(leaves[layout.leaves[0]][len(index)]) if "{e}" in name else (None,)
        for e in each:
            at = index if e is None else (*index, e)
            shapes = tuple(leaves[leaf][len(at) :] for leaf in layout.leaves)
            parts = tuple(Part(path, at) for path in paths)
            yield Entry(prefix + name.format(e=e), _stored(shapes, layout), parts, layout, shapes)


def _side_by_side(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    return (*shapes[0][:-1], sum(shape[-1] for shape in shapes))


def _stored(shapes: Sequence[tuple[int, ...]], layout: Layout) -> tuple[int, ...]:
    whole, k, i = _side_by_side(shapes), layout.kept, layout.kept + layout.inputs
    into, out = math.prod(whole[k:i]), math.prod(whole[i:])
    return (*whole[:k], out, into) if layout.inputs else (*whole[:k], out)
