"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) as nodes of the tree of parameters, each in the place of a kernel.

A kernel is ``[*kept, *in, *out]``: kept are its layers and experts, a product sums over in. Its adapter is ``a[*kept, *in, r]``
and ``b[*kept, r, *out]``. A product takes a kernel or an ``Adapted`` one; that of a row then costs r * (in + out) more.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from r1jax import config
from r1jax.params import ParamSpec, is_spec, path_name

KEPT = ("layers", "experts")


@struct.dataclass
class Adapted:
    """``base + scale * a @ b``. The fields are arrays, or what stands in their place: ParamSpecs, shardings, None."""

    base: Any
    a: Any
    b: Any
    scale: float = struct.field(pytree_node=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape


def is_adapted(x: Any) -> bool:
    return isinstance(x, Adapted)


def adapt(specs: Any, settings: config.LoRA) -> Any:
    """``specs`` with an adapter beside each kernel that is a target, in float32: only adapters are trained. Without a rank, as
    they are.

    A is drawn with the spread of PEFT's, that of a uniform distribution within ``1 / sqrt(in)``; B is zeros.
    """
    if not settings.rank:
        return specs

    def one(path, spec: ParamSpec) -> ParamSpec | Adapted:
        base = dataclasses.replace(spec, trainable=False)
        if not (spec.inputs and any(re.search(target, path_name(path)) for target in settings.targets)):
            return base
        kept = sum(axis in KEPT for axis in spec.axes)
        behind = kept + spec.inputs
        std = (3 * math.prod(spec.shape[kept:behind])) ** -0.5
        a = ParamSpec((*spec.shape[:behind], settings.rank), (*spec.axes[:behind], None), std=std)
        b = ParamSpec(
            (*spec.shape[:kept], settings.rank, *spec.shape[behind:]), (*spec.axes[:kept], None, *spec.axes[behind:]), "zeros"
        )
        return Adapted(base, a, b, settings.alpha / settings.rank)

    return jax.tree_util.tree_map_with_path(one, specs, is_leaf=is_spec)


def check_targets(specs: Any, settings: config.LoRA) -> None:
    """
    Raises:
      ValueError: a target matches no kernel of ``specs``.
    """
    leaves = jax.tree_util.tree_leaves_with_path(specs, is_leaf=is_spec)
    kernels = [path_name(path) for path, spec in leaves if spec.inputs]
    for target in settings.targets if settings.rank else ():
        if not any(re.search(target, name) for name in kernels):
            raise ValueError(f"lora.targets: {target!r} matches no matrix; there are {', '.join(kernels)}")


def moving(specs: Any, settings: config.LoRA) -> Any:
    """bool per parameter of ``adapt(specs, settings)``: what training may change, with a rank the adapters alone."""
    if not settings.rank:
        return jax.tree.map(lambda _: True, specs, is_leaf=is_spec)
    return jax.tree.map(
        lambda x: x.replace(base=False, a=True, b=True) if is_adapted(x) else False,
        specs,
        is_leaf=lambda x: is_adapted(x) or is_spec(x),
    )


def off(params: Any) -> Any:
    """The weights without their adapters."""
    return jax.tree.map(lambda x: x.base if is_adapted(x) else x, params, is_leaf=is_adapted)


def attach(params: Any, adapters: Any) -> Any:
    """Plain weights with adapters, a tree of ``Adapted`` without base, and None where there is none."""
    return jax.tree.map(lambda x, adapter: x if adapter is None else adapter.replace(base=x), params, adapters)


def merged(kernel: Any, dtype: str | None = None) -> Any:
    """One array for a kernel and its adapter, summed in float32, in ``dtype``; None is the kernel's own."""
    if not is_adapted(kernel):
        return kernel if dtype is None else kernel.astype(dtype)
    base, a, b = kernel.base, kernel.a, kernel.b
    kept = tuple(range(a.ndim + b.ndim - base.ndim - 2))
    delta = jax.lax.dot_general(
        a.astype(jnp.float32), b.astype(jnp.float32), (((a.ndim - 1,), (len(kept),)), (kept, kept)), precision="highest"
    )
    return (base.astype(jnp.float32) + kernel.scale * delta).astype(dtype or base.dtype)
