"""How answers are sampled."""

from __future__ import annotations

from dataclasses import dataclass

from r1jax.config.base import ConfigError
from r1jax.config.model import Model


@dataclass(frozen=True)
class Sampling:
    """One request's sampling parameters."""

    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    """Nucleus sampling (Holtzman et al. 2019); 1 keeps the whole distribution."""
    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()
    """Strings that end an answer, beside the tokenizer's end tokens; the string is kept in the answer."""

    def __post_init__(self):
        if self.temperature < 0:
            raise ConfigError(f"temperature is {self.temperature}; it must be >= 0 (0 is greedy)")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}; it must be in (0, 1]")
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1")
        if "" in self.stop:
            raise ConfigError("stop holds an empty string, which would end every answer at once; remove it")


@dataclass(frozen=True)
class Engine:
    """The sampler's static shapes. They decide speed and memory, and never which token is sampled in exact arithmetic."""

    slots: int = 64
    """Rows decoded together."""
    max_prompt_tokens: int = 256
    """A longer prompt is refused, or left out of training and counted."""
    buckets: tuple[int, ...] = ()
    """Total lengths (prompt + answer) that are compiled, at most 6; empty derives them from the caps."""
    chunk: int = 32
    """Decode steps between two looks of the host, taken only when stop strings have to be searched for."""
    speculative: bool = False
    """The model's multi-token-prediction module drafts a token, and a step that checks it appends one token or two (V3, section
    5.4.3). Exact: tokens come with the probabilities they have without, though others are drawn."""

    def __post_init__(self):
        if self.slots < 1 or self.max_prompt_tokens < 1 or self.chunk < 1:
            raise ConfigError("engine.slots, engine.max_prompt_tokens and engine.chunk must be at least 1")
        if len(self.buckets) > 6 or list(self.buckets) != sorted(set(self.buckets)):
            raise ConfigError(f"engine.buckets is {self.buckets}; give at most 6 lengths in rising order")

    def check(self, model: Model) -> None:
        """Raises:
        ConfigError: the model has nothing to draft with.
        """
        if self.speculative and not model.mtp_depth:
            raise ConfigError(
                "engine.speculative drafts with a multi-token-prediction module, but model.mtp_depth is 0; set "
                "engine.speculative to False"
            )
