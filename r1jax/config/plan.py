"""The arguments of ``r1jax plan``, and how much of a machine's peak a run reaches."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from r1jax.config.base import ConfigError


@dataclass(frozen=True)
class Efficiency:
    """Shares of the peaks that runs reach. The first is fitted on DeepSeek-V3's pre-training and the second on one published
    GRPO run; r1jax/plan/README.md says what they predict of the others."""

    compute: float = 0.313
    """Of the peak of bfloat16 products, in training and in prefill."""
    bandwidth: float = 0.572
    """Of the memory's bandwidth, in decoding."""
    fp8_gain: float = 1.3
    """How much faster than bfloat16 FP8 trains where the chip has it (assumed; MaxText's DeepSeek-V3 on tpu7x: 1.2)."""
    link: float = 0.7
    """Of a link's rate (assumed)."""
    overlap: float = 0.6
    """Of communication in an update, what hides behind products as long as these last (assumed; 0: none)."""
    layer_seconds: float = 4e-5
    """Of a decode step for each layer, beside memory and products: kernels that start, collectives that wait (assumed)."""
    longest: float = 2.5
    """The longest answer of a round over their mean, at most the cap (assumed)."""
    packing: float = 0.9
    """Of the tokens of packed rows, what sequences fill, if there are enough of them (assumed)."""
    reward_seconds: float = 0.05
    """Of a worker for an answer; rewards are computed while the rollout goes on, the last answers' behind it (assumed)."""

    def __post_init__(self):
        for name in ("compute", "bandwidth", "link", "packing"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"--efficiency.{name} is {getattr(self, name)}; it is a share, above 0 and at most 1")
        if not 0 <= self.overlap <= 1:
            raise ConfigError(f"--efficiency.overlap is {self.overlap}; it is a share, from 0 to 1")
        if min(self.longest, self.fp8_gain) < 1 or min(self.layer_seconds, self.reward_seconds) < 0:
            raise ConfigError("--efficiency: longest and fp8-gain are at least 1, layer-seconds and reward-seconds at least 0")


@dataclass(frozen=True)
class Plan:
    """Say whether a config fits on machines that are not here, how long its steps take and what it costs.

    Every setting of the config is an option too, as of ``r1jax train``.
    """

    config: str
    """Name of a shipped config (``r1jax configs``) or path of a .py file."""
    topology: str
    """A cloud's name for it: ``v5p:8x8x8``, ``v5p-128``, ``v6e-8``, ``h800:512``, ``a100:64``, ``rtx4090``; or ``here``.
    The chips are in r1jax/plan/chips.py."""
    compile: bool = True
    """Compile the update and the decode loop for the topology: minutes for the largest models. ``--no-compile`` estimates in
    seconds. Needs the extra ``plan``."""
    timeout: float = 1200.0
    """Seconds that each may take to compile."""
    answer_tokens: float | None = None
    """Mean length of an answer over the run; None is a quarter of the cap."""
    prompt_tokens: float | None = None
    """Mean length of a prompt; None is a quarter of ``engine.max_prompt_tokens``."""
    price: float | None = None
    """Dollars for a device and hour; without it nothing is said of money but hours."""
    efficiency: Efficiency = field(default_factory=Efficiency)
    out: Path | None = None
    """JSON to write: everything that is printed."""
    chart: Path | None = None
    """PNG to write: memory per device and time of a round."""

    def __post_init__(self):
        if self.timeout <= 0 or (self.price is not None and self.price < 0):
            raise ConfigError("--timeout must be above 0 and --price 0 or more")
        for name in ("answer_tokens", "prompt_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} is {value:g}; it must be at least 1")
        if self.out is not None and self.out.suffix != ".json":
            raise ConfigError(f"--out is {self.out}; its name must end in .json")
        if self.chart is not None and self.chart.suffix != ".png":
            raise ConfigError(f"--chart is {self.chart}; its name must end in .png")


