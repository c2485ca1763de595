"""Adam's moments in bfloat16 against Adam in numpy, and what 8 bits can and cannot follow."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
import tiny

from r1jax import config, sharding
from r1jax.config.train import LARGEST_BETA
from r1jax.plan import memory
from r1jax.train.optimizer import decay_mask, optimizer, rates_of, schedule

SETTINGS = config.Optimizer(lr=0.01, warmup_steps=3, moments_dtype="bfloat16")
SHAPES = {"kernel": (7, 5), "norm": (11,)}


def tree(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


def test_moments_are_rounded_as_numpy_rounds_them_and_the_step_is_made_before():
    tx, params = optimizer(SETTINGS, 10), tree(0)
    state = tx.init(params)
    f32, b1, b2 = np.float32, SETTINGS.b1, SETTINGS.b2
    m, v = ({name: np.zeros(shape, ml_dtypes.bfloat16) for name, shape in SHAPES.items()} for _ in range(2))
    for i in range(1, 6):
        grads = tree(i)
        steps, state = tx.update(grads, state, params)
        rate = SETTINGS.lr * min(1, i / 3)
        for name, g in grads.items():
            mean = f32(1 - b1) * g + f32(b1) * m[name].astype(f32)
            square = f32(1 - b2) * (g * g) + f32(b2) * v[name].astype(f32)
            decay = SETTINGS.weight_decay * params[name] if name == "kernel" else 0
            step = -rate * (mean / (1 - b1**i) / (np.sqrt(square / (1 - b2**i)) + SETTINGS.eps) + decay)
            np.testing.assert_allclose(steps[name], step, rtol=2e-5)
            m[name], v[name] = mean.astype(ml_dtypes.bfloat16), square.astype(ml_dtypes.bfloat16)
            np.testing.assert_array_equal(np.asarray(state[0].mu[name]), m[name])
            np.testing.assert_array_equal(np.asarray(state[0].nu[name]), v[name])
        params = {name: params[name] + np.asarray(steps[name]) for name in params}
    assert int(state[0].count) == 5


def test_in_float32_it_is_optax_s_adamw():
    settings = dataclasses.replace(SETTINGS, moments_dtype="float32")
    ours, params = optimizer(settings, 10), tree(0)
    theirs = optax.adamw(schedule(settings, 10), b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, mask=decay_mask)
    a, b = ours.init(params), theirs.init(params)
    for i in range(3):
        before = a
        (x, a), (y, b) = ours.update(tree(i), a, params), theirs.update(tree(i), b, params)
        assert jax.tree.structure((x, a)) == jax.tree.structure((y, b))
        given, _ = ours.update(tree(i), before, params, rates=rates_of(settings, 10, jnp.int32(i)))
        jax.tree.map(lambda g, y: np.testing.assert_allclose(g, y, rtol=1e-6), given, y)
        jax.tree.map(np.testing.assert_array_equal, (x, a), (y, b))


def curve(moments_dtype: str, steps: int = 150) -> np.ndarray:
    """Losses of a regression from noisy batches."""
    settings = config.Optimizer(lr=0.03, warmup_steps=5, weight_decay=0.0, moments_dtype=moments_dtype)
    tx, truth = optimizer(settings, steps), jax.random.normal(jax.random.key(1), (16, 8))
    params = {"kernel": jnp.zeros((16, 8))}

    def step(carry, key):
        params, state = carry
        x = jax.random.normal(key, (32, 16))
        loss, grads = jax.value_and_grad(lambda p: jnp.square(x @ p["kernel"] - x @ truth).mean())(params)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), loss

    return np.asarray(jax.lax.scan(step, (params, tx.init(params)), jax.random.split(jax.random.key(0), steps))[1])


def test_it_learns_as_fast():
    exact, rounded = curve("float32"), curve("bfloat16")
    assert exact[-10:].mean() < 0.01 * exact[0]
    np.testing.assert_allclose(rounded[:50], exact[:50], rtol=0.05)
    assert rounded[-10:].mean() == pytest.approx(exact[-10:].mean(), abs=0.01 * float(exact[0]))
    assert (rounded != exact).any()


def test_up_to_the_largest_beta_every_moment_falls_and_not_far_above():
    held = (1 + np.arange(128) / 128).astype(ml_dtypes.bfloat16)  # every fraction that bfloat16 has

    def falls(beta: float) -> np.ndarray:
        return (np.float32(beta) * held.astype(np.float32)).astype(ml_dtypes.bfloat16) < held

    assert falls(LARGEST_BETA).all() and falls(0.95).all()
    assert not falls(0.999).any()
    config.Optimizer(b2=LARGEST_BETA, moments_dtype="bfloat16")
    config.Optimizer(b2=0.999)
    with pytest.raises(config.ConfigError, match=r"may not tell a moment from 0\.999 of it"):
        config.Optimizer(b2=0.999, moments_dtype="bfloat16")


def test_the_table_counts_them_at_two_bytes():
    mesh = sharding.make_mesh(config.Mesh(fsdp=1))
    half = dataclasses.replace(tiny.DENSE, param_dtype="bfloat16")
    whole = tiny.grpo(model=half)
    less = dataclasses.replace(whole, optimizer=config.Optimizer(moments_dtype="bfloat16"))
    numbers = memory.table(whole, half, mesh).weights // 2
    counts = 2 * 4  # of Adam and of the schedule
    assert memory.table(whole, half, mesh).moments == 12 * numbers + counts  # two moments and a master in float32
    assert memory.table(less, half, mesh).moments == 8 * numbers + counts
