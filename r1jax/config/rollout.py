"""How answers are sampled."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from r1jax.config.base import ConfigError
from r1jax.config.mesh import Mesh
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
    """The sampler's static shapes, which decide speed and memory and never which token is sampled in exact arithmetic; and how
    it holds its weights, which may."""

    slots: int = 64
    """Rows decoded together."""
    max_prompt_tokens: int = 256
    """A longer prompt is refused, or left out of training and counted."""
    buckets: tuple[int, ...] = ()
    """Lengths of the cache (prompt + answer) that are compiled, at most 6. It grows and shrinks with the longest row that is
    going. Empty is what is needed at the most, its half, and so on down to 256."""
    chunk: int = 32
    """Decode steps between two looks of the host, which takes out answers that have ended, refills their slots and looks for
    stop strings. While answers wait the loop returns earlier, once an eighth of the slots have ended, on a CPU a quarter."""
    weights: Literal["same", "int8", "fp8"] = "same"
    """How the sampler holds the layers' kernels, which it reads once per token; ``same`` is the type of the products. int8 has
    a factor per output, fp8 (E4M3) one per 128 x 128 as V3's released weights; embedding, output head, router and norms stay.
    Activations do too, except for fp8 weights under ``matmul_dtype`` fp8. The policy that samples is then not quite the one
    that learns: ``sampler/logprob_diff_mean`` tells by how much, and ``importance_cap`` corrects for it."""
    devices: int = 0
    """So many of the devices, the last ones, only sample, and the others only train; in one process. 0: all do both in turn.
    It is ``one_step_off_policy`` that keeps both at work at once; without, one waits for the other."""
    mesh: Mesh = field(default_factory=Mesh)
    """How the devices that sample lie along the mesh axes, of which ``expert`` and ``tensor`` split the weights and the others
    rows alone. At its default, without ``devices``, it is the stage's ``mesh``."""
    speculative: bool = False
    """The model's multi-token-prediction module drafts a token, and a step that checks it appends one token or two (V3, section
    5.4.3). Exact: tokens come with the probabilities they have without, though others are drawn."""

    hot_experts: int = 0
    """Places on each device for copies of experts that lie elsewhere, in every layer that has experts; where ``expert`` splits
    these alone. Copied are those that most tokens chose in the rollout before, as DeepSeek-V3 does when it serves (arXiv
    2412.19437, section 3.4: 32 in all, where many devices wait for the busiest). Tokens take turns among the copies, and what
    an expert says does not change. A place costs the memory of an expert; ``rollout/device_load`` tells what it is good for.
    The first rollout of a run, and of one that is resumed, copies without knowing."""

    def __post_init__(self):
        if self.slots < 1 or self.max_prompt_tokens < 1 or self.chunk < 1:
            raise ConfigError("engine.slots, engine.max_prompt_tokens and engine.chunk must be at least 1")
        if self.devices < 0:
            raise ConfigError(f"engine.devices is {self.devices}; it must be 0 or more")
        if self.hot_experts < 0:
            raise ConfigError(f"engine.hot_experts is {self.hot_experts}; it must be 0 or more")
        if len(self.buckets) > 6 or list(self.buckets) != sorted(set(self.buckets)):
            raise ConfigError(f"engine.buckets is {self.buckets}; give at most 6 lengths in rising order")

    def check(self, model: Model) -> None:
        """Raises:
        ConfigError: the model has nothing to draft with, or no experts to copy.
        """
        if self.speculative and not model.mtp_depth:
            raise ConfigError(
                "engine.speculative drafts with a multi-token-prediction module, but model.mtp_depth is 0; set "
                "engine.speculative to False"
            )
        experts = model.moe.n_experts if any(s.ff == "moe" for s in model.segments) else 0
        if self.hot_experts > experts // 2:
            why = f"it has {experts}, and half of them at the most can be copied" if experts else "the model has none"
            raise ConfigError(f"engine.hot_experts is {self.hot_experts} copies of experts, but {why}; lower it, or make it 0")

    def check_mesh(self, expert: int) -> None:
        """Args:
          expert: the size of this axis in the mesh that samples.

        Raises:
          ConfigError: experts are to be copied that every device has.
        """
        if self.hot_experts and expert == 1:
            raise ConfigError(
                f"engine.hot_experts is {self.hot_experts}, but the expert axis of the mesh that samples is 1: every device "
                "has every expert; set engine.hot_experts to 0, or split the experts with mesh.expert (or engine.mesh.expert)"
            )
