"""Low-rank adapters."""

from __future__ import annotations

import re
from dataclasses import dataclass

from r1jax.config.base import ConfigError


@dataclass(frozen=True)
class LoRA:
    """Train low-rank adapters beside frozen weights (Hu et al. 2021, arXiv 2106.09685): ``W + alpha / rank * A B``.

    A begins as small random numbers and B as zeros, so training begins at the weights of ``init``. All else is frozen, the
    router's balancing bias too. Gradients, moments and checkpoints are the adapters' alone, and the reference policy is the
    same weights with the adapters off.
    """

    rank: int = 0
    """Columns of A and rows of B, for each expert its own; 0 trains the weights themselves."""
    alpha: float = 16.0
    """The adapters are multiplied by alpha / rank."""
    targets: tuple[str, ...] = ("segments/.*attention/", "segments/.*/(gate|up|down)$")
    """Regular expressions; a matrix whose path (``segments/0/attention/q``) matches one gets an adapter. Beside attention and
    feed-forward, experts too, there are ``router$``, ``head/`` (where it is not tied to the embedding) and ``mtp/``."""

    def __post_init__(self):
        if self.rank < 0 or self.alpha <= 0:
            raise ConfigError(f"lora.rank is {self.rank} and lora.alpha {self.alpha}; rank must be >= 0 and alpha above 0")
        if self.rank and not self.targets:
            raise ConfigError("lora.targets is empty; name the matrices to adapt, for example 'attention/'")
        for pattern in self.targets:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"lora.targets: {pattern!r} is no regular expression ({error})") from error
