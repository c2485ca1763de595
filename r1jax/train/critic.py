"""PPO's critic: a value model beside the policy, with a state and an optimizer of its own on the same mesh."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from r1jax import config, sharding
from r1jax import params as parameters
from r1jax.losses import ppo
from r1jax.models import scalar
from r1jax.train import objectives
from r1jax.train.state import TrainState
from r1jax.train.update import Trainer
from r1jax.types import PackedBatch

Counted = tuple[PackedBatch, int, float]
"""A batch, the micro-batches in it, the denominator of the policy's loss."""


class Critic:
    """The compiled functions of a stage's critic."""

    def __init__(self, stage: config.GRPO, model: config.Model, mesh: sharding.AnyMesh):
        model = dataclasses.replace(model, mtp_depth=0)  # the module predicts tokens
        own = dataclasses.replace(
            stage, optimizer=stage.critic.optimizer, kl_beta=0.0, kl_in_reward=False, frozen=(),
            offload=tuple(what for what in stage.offload if what == "optimizer"),
        )  # fmt: skip
        objective = partial(objectives.values_loss, stage=own, model=model)
        self.trainer = Trainer(own, model, mesh, specs=scalar.specs(model), objective=objective)
        self.stage, self.model, self.mesh = stage, model, mesh
        self._head = jax.jit(
            partial(parameters.init, scalar.head_specs(model)), out_shardings=self.trainer.param_shardings[scalar.HEAD]
        )
        self._judge, self._whiten = jax.jit(self._value), jax.jit(ppo.whiten)

    def create(self, policy: Any) -> TrainState:
        """A fresh critic: the policy's layers, copied, and a head that says 0."""
        trunk = jax.tree.map(jnp.copy, scalar.trunk(policy))  # the policy's update donates its own
        return self.trainer.create(scalar.from_policy(trunk, self._head(jax.random.key(0))))

    def judge(self, state: TrainState, batches: list[Counted]) -> list[Counted]:
        """The batches with values, returns and the advantages of generalised advantage estimation, in the place of the answers'
        rewards that stood there.

        Args:
          batches: a round's; with ``kl_in_reward`` they have the log-probs of pi_old and of the reference.
        """
        kept = {} if self.stage.kl_in_reward else {"old_logprobs": None, "ref_logprobs": None}
        with sharding.using(self.mesh, sharding.TRAIN):
            found = [
                self._judge(state.params, batch.replace(routes=None, **kept), jnp.int32(count)) for batch, count, _ in batches
            ]
            advantages = [x.advantages for x in found]
            if self.stage.critic.whiten:
                advantages = self._whiten(advantages, [batch.mask for batch, _, _ in batches])
        return [
            (batch.replace(values=new.values, returns=new.returns, advantages=best), count, denominator)
            for (batch, count, denominator), new, best in zip(batches, found, advantages, strict=True)
        ]

    def update(self, state: TrainState, batch: PackedBatch, count: int) -> tuple[TrainState, dict[str, jax.Array]]:
        """One update of the critic, which donates its state. The loss is a mean over the batch's trained tokens."""
        tokens = jnp.maximum(jnp.sum(batch.mask, dtype=jnp.float32), 1.0)
        # Of a policy's fields some come and go with the update, and each set would be compiled.
        batch = batch.replace(
            routes=None, old_logprobs=None, ref_logprobs=None, sampler_logprobs=None, teacher_logprobs=None
        )  # fmt: skip
        state, told = self.trainer.update(state, batch, count, tokens)
        spread = told["value/return_square"] - told["value/return"] ** 2
        return state, {
            "critic/loss": told["loss/values"],
            "critic/value": told["value/mean"],
            "critic/return": told["value/return"],
            "critic/explained": 1.0 - told["value/error"] / jnp.maximum(spread, 1e-8),
            "critic/clipped": told["value/clipped"],
            "critic/grad_norm": told["grad/norm"],
            "critic/skipped": told["update/skipped"],
        }

    def _value(self, params, batch: PackedBatch, count) -> PackedBatch:
        """The batch with values, returns, and advantages that are not whitened yet."""
        stage = self.stage

        def body(i, out):
            micro = jax.tree.map(lambda x: x[i], batch)
            values, _ = scalar.values(
                params, micro.tokens, micro.positions, micro.segments, prefix=micro.prefix, model=self.model
            )
            return out.at[i].set(values)

        values = jax.lax.fori_loop(0, count, body, jnp.zeros(batch.tokens.shape, jnp.float32))
        kl = batch.old_logprobs - batch.ref_logprobs if stage.kl_in_reward else None
        rewards = ppo.token_rewards(batch.advantages, batch.mask, kl, stage.kl_beta)
        advantages, returns = ppo.gae(rewards, values, batch.mask, gamma=stage.gamma, lam=stage.gae_lambda)
        return batch.replace(values=values, returns=returns, advantages=advantages)
