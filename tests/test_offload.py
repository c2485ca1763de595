"""The optimizer's state and the reference in the host's memory: the same values, from another place."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from r1jax import config, sharding
from r1jax.checkpoint import Checkpointer
from r1jax.data.packing import pack_sequences
from r1jax.params import path_name
from r1jax.train import offload
from r1jax.train.optimizer import optimizer
from r1jax.train.update import Trainer

BOTH = ("optimizer", "reference")
MODEL = dataclasses.replace(tiny.DENSE, segments=(config.Segment("dense", 3),))
HALF = dataclasses.replace(MODEL, param_dtype="bfloat16")
EIGHT = config.Mesh(fsdp=4, tensor=2)


def trainer(mesh=None, model=HALF, **changes):
    return Trainer(tiny.grpo(model=model, **changes), model, sharding.make_mesh(mesh or config.Mesh(fsdp=1)))


def batch(t, seed, bad):
    rng = np.random.default_rng(seed)
    sequences = [list(rng.integers(1, 256, n)) for n in (9, 12, 5, 7, 11, 8, 6, 10)]
    host, count = pack_sequences(
        sequences, [[0] * 4 + [1] * (len(s) - 4) for s in sequences], rows=8, length=16, normalize="sequence",
        advantages=np.array([np.nan if bad else 1.5, -1, 0.5, 1, -0.7, 1, -1, 0.3], np.float32),
        sampler_logprobs=[np.full(len(s), -5, np.float32) for s in sequences],
    )  # fmt: skip
    return t.put(host), count


def update(t, state, i):
    """Update i, of which the second is not finite: (state, its metrics and the reference's log-probs)."""
    made, count = batch(t, i, bad=i == 1)
    made = made.replace(ref_logprobs=t.logprobs(state.reference, made, count))
    logprobs = np.asarray(made.ref_logprobs)
    state, metrics = t.update(state, made, count, 8.0)
    return state, (logprobs, {name: np.asarray(x) for name, x in metrics.items()})


def trained(t, look=lambda state: None):
    """The state after four updates, the reference refreshed after the first, and what was computed on the way."""
    state, seen = t.create(t.init_params(0)), []
    look(state)
    for i in range(4):
        state, more = update(t, state, i)
        seen.append(more)
        look(state)
        if i == 0:
            state = t.refresh_reference(state)
            look(state)
    return state, seen


def same(a, b):
    a, b = jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b)
    assert len(a) == len(b)
    for (path, x), y in zip(a, b, strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=path_name(path))


def kinds(tree):
    return {x.sharding.memory_kind for x in jax.tree.leaves(tree) if x.ndim}


def lies_on_the_host(state):
    assert kinds((state.master, state.opt_state, state.reference)) == {"pinned_host"}
    assert kinds(state.params) == {"device"}


@pytest.mark.parametrize(("model", "mesh"), [(HALF, None), (MODEL, None), (HALF, EIGHT)], ids=["bfloat16", "float32", "eight"])
def test_on_the_host_values_are_the_same_bit_for_bit(model, mesh):
    plain, seen = trained(trainer(mesh, model))
    moved, seen_moved = trained(trainer(mesh, model, offload=BOTH), lies_on_the_host)
    assert int(plain.skipped) == 1 and int(plain.step) == 4
    same(plain, moved)
    same(seen, seen_moved)
    assert kinds(plain) == {"device"}


def test_each_is_moved_by_its_own_name():
    where = trainer(offload=("reference",)).abstract()
    assert kinds(where.reference) == {"pinned_host"} and kinds((where.opt_state, where.master)) == {"device"}
    where = trainer(offload=("optimizer",)).abstract()
    assert kinds((where.opt_state, where.master)) == {"pinned_host"} and kinds(where.reference) == {"device"}


def test_a_checkpoint_of_it_restores_to_either_memory_and_is_not_written_over(tmp_path):
    t = trainer(EIGHT, offload=BOTH)
    state, _ = update(t, t.create(t.init_params(0)), 0)
    before = jax.tree.map(np.array, state)
    with contextlib.closing(Checkpointer(tmp_path)) as checkpoints:
        checkpoints.save(1, state, {})
        held = [x for x in jax.tree.leaves((state.master, state.opt_state)) if x.ndim]
        state, _ = update(t, state, 2)
        assert all(x.is_deleted() for x in held)  # the update took their place
        checkpoints.wait()
        again, _ = checkpoints.restore(t.abstract(), 1)
        lies_on_the_host(again)
        same(before, again)
        on_one_device, _ = checkpoints.restore(trainer().abstract(), 1)
        assert kinds(on_one_device) == {"device"}
        same(before, on_one_device)
    again, _ = update(t, again, 2)
    lies_on_the_host(again)
    same(state, again)


def test_devices_that_reach_no_host_memory_are_one_error(monkeypatch):
    monkeypatch.setattr(offload, "HOST", "no such memory")
    trainer()
    with pytest.raises(config.ConfigError, match="offload is optimizer, reference, but cpu devices reach no memory"):
        trainer(offload=BOTH)


def test_a_run_may_go_on_with_another_offload():
    assert "offload" in config.SAFE_TO_CHANGE
    with pytest.raises(config.ConfigError, match="'weights' is not one of"):
        config.from_json(config.SFT, config.to_json(tiny.sft()) | {"offload": ["weights"]})


@pytest.mark.parametrize("masters", [True, False])
def test_layer_by_layer_it_is_the_step_of_the_whole(masters):
    rng = np.random.default_rng(0)
    shapes = {"embed": (6, 4), "frozen": None, "layers": (3, 4, 5)}  # in the order of the leaves
    made = [
        {name: shape and jnp.asarray(rng.standard_normal(shape), jnp.float32) for name, shape in shapes.items()}
        for _ in range(3)
    ]
    params, *grads = made
    tx = optimizer(config.Optimizer(lr=0.1, warmup_steps=0), 10)

    def step(grads, state, master, params):
        exact = params if master is None else master
        steps, state = tx.update(grads, state, exact)
        new = optax.apply_updates(exact, steps)
        return new, None if master is None else new, state

    whole = layered = (params, params if masters else None, tx.init(params))
    for g in grads:
        whole = step(g, whole[2], whole[1], whole[0])
        layered = offload.by_layer(step, tx, [False, True], g, layered[2], layered[1], layered[0], hosted=False)
    assert jax.tree.structure(whole) == jax.tree.structure(layered)
    assert not np.allclose(whole[0]["layers"], params["layers"], atol=0.05)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7), whole, layered)
