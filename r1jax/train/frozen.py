"""Another model on the trainer's mesh that only scores: a teacher."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from r1jax import config, sharding
from r1jax import params as parameters
from r1jax.models import decoder
from r1jax.train import objectives
from r1jax.types import PackedBatch


class Frozen:
    """The compiled scoring of one model, once it ``hold``s weights that lie as ``shardings`` says.

    Args:
      stage: that asks; scores are at its rollout's temperature.
      model: this one's architecture, with the stage's compute choices.
    """

    def __init__(self, stage: config.Stage, model: config.Model, mesh: sharding.AnyMesh):
        self.model, self.mesh, self.specs = model, mesh, decoder.specs(model)
        self.shardings = sharding.param_shardings(self.specs, mesh, sharding.TRAIN)
        self.params: Any = None
        self.fingerprint = ""
        self._score = jax.jit(partial(objectives.score, model=model, temperature=stage.sampling.temperature))

    def hold(self, params: Any) -> None:
        self.params, self.fingerprint = params, parameters.fingerprint(params)

    def logprobs(self, batch: PackedBatch, count: int) -> jax.Array:
        """float32[M, B, T] of a batch's targets; where its mask is false they mean nothing. It routes by itself."""
        with sharding.using(self.mesh, sharding.TRAIN):
            return self._score(self.params, batch.replace(routes=None), jnp.int32(count))
