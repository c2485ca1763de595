"""Sampling answers from the policy."""

from r1jax.rollout.sampler import Sampler as Sampler
