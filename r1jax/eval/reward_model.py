"""What a trained reward model thinks of answers: many of them together, on the devices, whatever their lengths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from r1jax import config, loading, sharding
from r1jax.data.preferences import encode, lay
from r1jax.data.template import Template
from r1jax.data.tokenizer import Tokenizer
from r1jax.loading import Opened
from r1jax.models import decoder, scalar
from r1jax.params import fingerprint
from r1jax.plan import flops
from r1jax.plan.layout import device_bytes, laid_out
from r1jax.plan.micro_batch import TOKENS, TOKENS_ON_CPU
from r1jax.rewards import Score

SHORTEST = 64
"""Tokens of the shortest row that is compiled; others are twice as long, and so on."""


class Reader:
    """Values of answers by any parameters of one architecture.

    Args:
      reads: as ``config.RewardModel.reads``.
    """

    def __init__(self, model: config.Model, mesh: jax.sharding.Mesh, template: Template, tokenizer: Tokenizer, reads: str):
        self.model, self.mesh, self.template, self.tokenizer, self.reads = model, mesh, template, tokenizer, reads
        self._ways = sharding.batch_ways(mesh, sharding.TRAIN) * model.overlap
        self._everywhere = NamedSharding(mesh, PartitionSpec())
        self.flops = 0.0
        """Of all that was read."""

    def values(self, params: Any, prompts: Sequence[str | list[dict]], completions: Sequence[str]) -> np.ndarray:
        """float32[N]: the value of each answer after its end token. Every process gives the same answers and gets all values.

        Args:
          params: a tree of ``models.scalar.specs``.
          completions: the assistant's whole turns.
        """
        each = zip(prompts, completions, strict=True)
        sequences = [encode(prompt, text, self.reads, self.template, self.tokenizer)[0] for prompt, text in each]
        if not sequences:
            return np.zeros(0, np.float32)
        sizes = [len(s) for s in sequences]
        self.flops += float(flops.forward_flops(self.model, sum(sizes), sum(n * (n + 1) // 2 for n in sizes), 0))
        longest = max(SHORTEST, *sizes)
        length = -(-(1 << (longest - 1).bit_length()) // self.mesh.shape["context"]) * self.mesh.shape["context"]
        most = TOKENS_ON_CPU if sharding.platform_of(self.mesh) == "cpu" else TOKENS
        few = 1 << (-(-len(sequences) // self._ways) - 1).bit_length()  # at the worst each has a row to itself
        laid = lay([[s] for s in sequences], self._ways * max(1, min(few, most // length)), length, ways=self._ways)
        parts = zip(laid.tokens, laid.positions, laid.segments, strict=True)
        with sharding.using(self.mesh, sharding.TRAIN):
            found = [_values(params, *map(self._put, part), model=self.model, where=self._everywhere) for part in parts]
        read = np.stack(jax.device_get(found)).reshape(-1)
        return read[[end for (end,) in laid.ends]]

    def _put(self, x: np.ndarray) -> jax.Array:
        return sharding.put(x, self.mesh, sharding.TRAIN, "batch", "sequence")


@partial(jax.jit, static_argnames=("model", "where"))
def _values(params, tokens, positions, segments, *, model: config.Model, where: NamedSharding) -> jax.Array:
    values, _ = scalar.values(params, tokens, positions, segments, model=model)
    return jax.lax.with_sharding_constraint(values, where)


class Judge:
    """A reward model with its weights, laid out as a trainer's on the mesh and held in the types that its products read.

    Raises:
      ConfigError: its weights cannot be read.
    """

    def __init__(self, opened: Opened, mesh: jax.sharding.Mesh):
        self.form, self.name = opened.head.form, opened.name
        self.reader = Reader(opened.model, mesh, Template(opened.text, opened.tokenizer), opened.tokenizer, opened.head.reads)
        specs = read_specs(opened.model)
        self._params = opened.load(specs, sharding.param_shardings(specs, mesh, sharding.TRAIN), lambda done, total: None)

    @property
    def flops(self) -> float:
        """Of all that it has read."""
        return self.reader.flops

    @cached_property
    def fingerprint(self) -> str:
        """Of its weights, see ``params.fingerprint``."""
        return fingerprint(self._params)

    def scores(self, prompts: Sequence[str | list[dict]], completions: Sequence[str]) -> list[Score]:
        """A pairwise model's value, a pointwise one's probability that the answer is good. A value that is no finite number has
        the status ``invalid``."""
        return [self._score(float(v)) for v in self.reader.values(self._params, prompts, completions)]

    def _score(self, value: float) -> Score:
        if not math.isfinite(value):
            return Score(0.0, "invalid", f"the reward model {self.name} gives {value}")
        if self.form == "pairwise":
            return Score(value)
        return Score(1 / (1 + math.exp(-value)) if value > -700 else 0.0, why=f"log-odds {value:.3g}")


def read_specs(model: config.Model) -> dict:
    """``models.scalar.specs`` with kernels in the type that the products read."""
    return {**scalar.trunk(decoder.read_specs(model)), scalar.HEAD: scalar.head_specs(model)}


def bytes_per_device(model: config.Model, mesh: sharding.AnyMesh) -> int:
    """Of a ``Judge``'s weights."""
    specs = read_specs(model)
    return device_bytes(laid_out(specs, sharding.param_shardings(specs, mesh, sharding.TRAIN)))


def open_judge(name: str) -> Opened:
    """The reward model called ``name``, a run directory or ``RUN@STEP``.

    Raises:
      ConfigError: there is none.
    """
    return loading.open_model(name, head=True)
