"""Parameters as data: a tree of ``ParamSpec`` is counted, initialised and sharded without a model class."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

Tree = Any


@dataclass(frozen=True)
class ParamSpec:
    """One array: its shape, the logical name of each axis (None is never split), and how it starts."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: Literal["normal", "ones", "zeros"] = "normal"
    std: float = 0.02
    dtype: str = "float32"
    trainable: bool = True
    """False for arrays that a rule moves and not the gradient (the router's bias)."""
    inputs: int = 0
    """Of a kernel: over how many axes its product sums, the first behind layers and experts. 0: it is none."""

    def __post_init__(self):
        if len(self.shape) != len(self.axes):
            raise ValueError(f"a ParamSpec of shape {self.shape} has {len(self.axes)} axis names {self.axes}")


def is_spec(x: Any) -> bool:
    return isinstance(x, ParamSpec)


def map_specs(f: Callable[..., Any], specs: Tree, *trees: Tree) -> Tree:
    """``f(spec, ...)`` of each spec and what stands in its place in ``trees``."""
    return jax.tree.map(f, specs, *trees, is_leaf=is_spec)


def stack(specs: Tree, count: int) -> Tree:
    """The same parameters for ``count`` layers, along a new leading axis named ``layers``."""
    return map_specs(lambda s: dataclasses.replace(s, shape=(count, *s.shape), axes=("layers", *s.axes)), specs)


def path_name(path: tuple) -> str:
    """A key path as text: ``segments/0/attention/q``."""
    return "/".join(str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", k)))) for k in path)


def count(specs: Tree) -> int:
    """Number of parameters."""
    return sum(math.prod(s.shape) for s in jax.tree.leaves(specs, is_leaf=is_spec))


def abstract(specs: Tree) -> Tree:
    return map_specs(lambda s: jax.ShapeDtypeStruct(s.shape, jnp.dtype(s.dtype)), specs)


def cast(params: Tree, specs: Tree) -> Tree:
    """Parameters in the types of ``specs``."""
    return map_specs(lambda s, x: x.astype(s.dtype), specs, params)


def init(specs: Tree, key: jax.Array) -> Tree:
    """Draws every array. An array's values depend on the key and its own path alone, not on what stands beside it."""

    def draw(path, spec: ParamSpec):
        if spec.init != "normal":
            return jnp.full(spec.shape, 1.0 if spec.init == "ones" else 0.0, spec.dtype)
        leaf_key = jax.random.fold_in(key, zlib.crc32(path_name(path).encode()))
        return (spec.std * jax.random.normal(leaf_key, spec.shape, jnp.float32)).astype(spec.dtype)

    return jax.tree_util.tree_map_with_path(draw, specs, is_leaf=is_spec)


def trainable_mask(specs: Tree, frozen: tuple[str, ...] = ()) -> Tree:
    """bool per parameter: moved by the gradient, unless a regular expression in ``frozen`` matches its path.

    Raises:
      ValueError: a pattern matches nothing, or nothing is left to train.
    """
    names = [path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(specs, is_leaf=is_spec)]
    for pattern in frozen:
        if not any(re.search(pattern, name) for name in names):
            raise ValueError(f"frozen: {pattern!r} matches no parameter; paths look like {names[0]!r}, {names[-1]!r}")
    mask = jax.tree.map(lambda s, still: s.trainable and not still, specs, matching(specs, frozen), is_leaf=is_spec)
    if not any(jax.tree.leaves(mask)):
        raise ValueError(f"frozen={frozen} freezes every parameter; nothing is left to train")
    return mask


def matching(specs: Tree, patterns: tuple[str, ...]) -> Tree:
    """bool per parameter: a regular expression matches its path."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: any(re.search(p, path_name(path)) for p in patterns), specs, is_leaf=is_spec
    )


def fingerprint(tree: Tree) -> str:
    """Hexadecimal digits that differ, but for chance, where two trees of arrays differ in a path, shape, dtype or bit. How they
    lie over devices makes no difference.

    Sums of mixed bits (MurmurHash3's last steps) in whole numbers modulo 2^32, taken where the arrays lie: against mistakes,
    not against people.
    """
    paths, leaves = zip(*jax.tree_util.tree_leaves_with_path(tree), strict=True)
    sums = jax.device_get(jax.jit(lambda xs: [_bits(x) for x in xs])(list(leaves)))
    told = [f"{path_name(p)} {x.dtype}{list(x.shape)} {int(s)}" for p, x, s in zip(paths, leaves, sums, strict=True)]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()


def _bits(x: jax.Array) -> jax.Array:
    """uint32[]"""
    bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)
    place, stride = jnp.zeros(x.shape, jnp.uint32), 1
    for axis in reversed(range(x.ndim)):
        place += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= x.shape[axis]
    mixed = (bits ^ (place * jnp.uint32(0x9E3779B1))) * jnp.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> 13)) * jnp.uint32(0xC2B2AE35)
    return (mixed ^ (mixed >> 16)).sum(dtype=jnp.uint32)


def split(tree: Tree, mask: Tree) -> tuple[Tree, Tree]:
    """(where mask, where not mask): both keep the structure, with None in the other's places."""
    return jax.tree.map(lambda x, m: x if m else None, tree, mask), jax.tree.map(lambda x, m: None if m else x, tree, mask)


def merge(a: Tree, b: Tree) -> Tree:
    """The inverse of ``split``."""
    return jax.tree.map(lambda x, y: y if x is None else x, a, b, is_leaf=lambda x: x is None)
