"""Rewards: functions of (prompt, completion, row), scored in worker processes that can be killed. Imports no jax."""

from r1jax.rewards.compose import total as total
from r1jax.rewards.load import load as load
from r1jax.rewards.pool import Item as Item
from r1jax.rewards.pool import Pool as Pool
from r1jax.rewards.score import Score as Score
