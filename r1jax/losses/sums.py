"""What losses return beside their sum, over micro-batches; and what the sum is divided by."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

MAX = "max/"
"""Prefix of the keys whose value is a maximum (of numbers >= 0, so 0 is neutral); every other value is a sum."""


def combine(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """The sums of two micro-batches as the sums of both. Both have the same keys, their values are arrays or trees of them, and
    zeros are neutral."""
    return {key: jax.tree.map(jnp.maximum if key.startswith(MAX) else jnp.add, a[key], b[key]) for key in a}


def denominator(normalize: str, *, answers: int, tokens: int, cap: int) -> float:
    """What the sum over a whole batch (every micro-batch, every device) is divided by.

    - ``sequence``: the answers, with weights 1/|o| (GRPO, arXiv 2402.03300, eq. 3; R1)
    - ``token``: the trained tokens, with weights 1 (DAPO, arXiv 2503.14476, section 3.3, over the batch and not per group)
    - ``constant``: answers times cap, with weights 1 (Dr. GRPO, arXiv 2503.20783, section 3.2, with the cap as its constant)

    Args:
      normalize: as in ``config.GRPO``.
      answers: answers in the batch, with those that have no trained token or no advantage.
      tokens: trained tokens in the batch, the sum of ``PackedBatch.mask``.
      cap: the most tokens an answer may have in this round.

    Returns:
      At least 1, so that a batch without a trained token has loss 0 and gradient 0.
    """
    match normalize:
        case "sequence":
            return float(max(answers, 1))
        case "token":
            return float(max(tokens, 1))
        case "constant":
            return float(max(answers * cap, 1))
    raise ValueError(f"normalize is {normalize!r}; use 'sequence', 'token' or 'constant'")
