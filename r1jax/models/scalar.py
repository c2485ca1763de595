"""A decoder with one number per token in the place of its vocabulary: what reward models and critics are."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from r1jax import config
from r1jax.models import decoder
from r1jax.params import ParamSpec

HEAD = "value"
"""The head's place in the tree of parameters."""


def head_specs(model: config.Model, std: float = 0.0) -> dict:
    """The head ``v = kernel . hidden + bias``: ``kernel`` [D] and ``bias`` [], float32.

    Args:
      std: of the kernel's first values; 0 begins with zeros, so that every value is 0. A reward model's usual spread is
        ``(D + 1) ** -0.5`` (Stiennon et al. 2020, arXiv 2009.01325, appendix B.1).
    """
    kernel = ParamSpec((model.d_model,), ("embed",), init="normal" if std else "zeros", std=std)
    return {"kernel": kernel, "bias": ParamSpec((), (), init="zeros")}


def trunk(tree: dict) -> dict:
    """Of a decoder's tree (specs, parameters, shardings) what a scalar head stands on: no output head, and no multi-token
    prediction, which would need one."""
    return {name: part for name, part in tree.items() if name not in ("head", "mtp")}


def specs(model: config.Model, std: float = 0.0) -> dict:
    """The tree of ParamSpecs; ``std`` as for ``head_specs``."""
    return {**trunk(decoder.specs(model)), HEAD: head_specs(model, std)}


def from_policy(params: dict, head: dict) -> dict:
    """The parameters of ``specs``: a policy's trunk, the same arrays, and a head's (``params.init(head_specs(...), key)``)."""
    return {**trunk(params), HEAD: head}


def values(params, tokens, positions, segments, *, model: config.Model, **options: Any) -> tuple[jax.Array, decoder.Aux]:
    """The value of every place: of the tokens up to it and itself.

    Args:
      params: the tree of ``specs(model)``.
      tokens, positions, segments: int32[B, T], as for ``decoder.forward``.
      options: ``prefix``, ``routes`` and ``angles`` of ``decoder.forward``.

    Returns:
      (float32[B, T], the trunk's Aux). Where a segment is 0 a value means nothing.
    """
    hidden, aux, _ = decoder.forward(params, tokens, positions, segments, model=model, **options)
    return read(hidden, params[HEAD]), aux


def read(hidden: jax.Array, head: dict) -> jax.Array:
    """float32[...] of hidden states [..., D], in float32 whatever their type: ranks hang on small differences."""
    kernel = head["kernel"].astype(jnp.float32)
    return jnp.einsum("...d,d->...", hidden.astype(jnp.float32), kernel, precision="highest") + head["bias"]
