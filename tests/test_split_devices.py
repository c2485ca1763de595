"""The sampler on devices of its own, or on the trainer's in another mesh, gives the numbers of a shared one."""

import dataclasses
import math
import re

import jax
import numpy as np
import pytest
import tiny
from random_models import draw

from r1jax import config, lora, sharding
from r1jax import params as parameters
from r1jax.config import ConfigError
from r1jax.models import decoder
from r1jax.plan import memory
from r1jax.rollout import Sampler
from r1jax.rollout.weights import Weights, turn
from r1jax.stages import pipeline
from r1jax.train.update import Trainer

SAME = {"steps": 2, "minibatches": 1, "importance_cap": 2.0}


def run(path, **changes):
    assert pipeline.train(tiny.grpo(**SAME, **changes), name="split", run_dir=str(path)) == 0
    return tiny.metrics(path), tiny.samples(path)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return run(tmp_path_factory.mktemp("split") / "shared")


def engine(**changes):
    return config.Engine(slots=16, max_prompt_tokens=8, chunk=4, **changes)


def test_where_answers_are_sampled_changes_none_of_them(shared, tmp_path):
    apart = engine(devices=4, mesh=config.Mesh(fsdp=2, tensor=2))
    metrics, samples = run(tmp_path / "run", mesh=config.Mesh(fsdp=2), engine=apart)
    assert samples == shared[1]
    for row, reference in zip(metrics, shared[0], strict=True):
        written = row.pop("rollout/reshard_bytes")
        assert row == pytest.approx({k: v for k, v in reference.items() if k != "rollout/reshard_bytes"}, rel=1e-5, abs=1e-5)
        assert written > reference["rollout/reshard_bytes"]  # copies


@pytest.mark.parametrize(("weights", "rank"), [("same", 0), ("int8", 0), ("same", 2)])
def test_what_is_sent_is_what_a_program_would_take(weights, rank):
    """To the trainer's devices in another order, and to others; kernels in 8 bits, and beside adapters."""
    mesh, adapters = sharding.make_mesh(config.Mesh(fsdp=4)), config.LoRA(rank=rank)
    specs = lora.adapt(decoder.specs(tiny.MOE), adapters)
    where = sharding.param_shardings(specs, mesh, sharding.TRAIN)
    params = jax.jit(lambda key: parameters.init(specs, key), out_shardings=where)(jax.random.key(0))
    devices, taken = jax.devices(), []
    for there in (devices[:4], devices[3::-1], devices[4:]):
        on = sharding.make_mesh(config.Mesh(fsdp=1, expert=4), there)
        sampler = Sampler(tiny.MOE, engine(weights=weights), on, end_ids=(), adapters=adapters)
        for _ in range(2):  # the base beside adapters stays from the first time
            sampler.load(params)
        taken.append([np.asarray(x) for x in jax.tree.leaves(sampler.params)])
    for x, *others in zip(*(taken[1:] if rank else taken), strict=True):  # a base that is shared is not cut into layers
        for other in others:
            np.testing.assert_array_equal(x, other)
    assert not any(x.is_deleted() for x in jax.tree.leaves(params))


def test_each_device_holds_its_own_part_alone():
    stage = tiny.grpo(mesh=config.Mesh(fsdp=2), engine=engine(devices=4))
    mesh = sharding.trainer_mesh(stage.mesh, stage.engine)
    where = sharding.sampler_mesh(stage.engine, mesh)
    devices = jax.devices()
    assert list(mesh.devices.flat) == devices[:2] and set(where.devices.flat) == set(devices[4:])
    trainer = Trainer(stage, tiny.MOE, mesh)
    params = trainer.init_params(0)
    sampler = Sampler(tiny.MOE, stage.engine, where, end_ids=())
    sampler.load(params)
    held = jax.tree.leaves(sampler.params)
    assert all(x.sharding.device_set == set(devices[4:]) for x in held)
    # Four copies of float32, none of which goes with the trainer's array.
    assert sampler.reshard_bytes == 4 * sum(x.nbytes for x in held) == 4 * sum(x.nbytes for x in jax.tree.leaves(params))
    before = [np.asarray(x) for x in held]
    jax.tree.map(lambda x: x.delete(), params)
    for x, kept in zip(held, before, strict=True):
        np.testing.assert_array_equal(x, kept)


MESHES = [
    (config.Mesh(fsdp=2, expert=2, tensor=2), config.Mesh(fsdp=2, expert=2, tensor=2)),
    (config.Mesh(), config.Mesh(data=2, fsdp=1, tensor=4)),
    (config.Mesh(fsdp=4, expert=2), config.Mesh(fsdp=1, expert=4, tensor=2)),
    (config.Mesh(fsdp=2, tensor=4), config.Mesh(fsdp=1, expert=8)),
    (config.Mesh(fsdp=1, expert=8), config.Mesh(fsdp=1, tensor=4, expert=2)),
]
LARGE = dataclasses.replace(
    tiny.MOE, d_model=32, d_ff=48, vocab_size=64, attention=config.GQA(n_heads=8, n_kv_heads=4, head_dim=8),
    segments=(config.Segment("moe", 3),), moe=config.MoE(n_experts=8, top_k=2, d_ff=16),
)  # fmt: skip


def arrays(tree):
    """An array of each kind, in a tree of its own: of the last three a stack of layers."""
    (segment,) = tree["segments"]
    stacks = (segment["attention"]["q"], segment["attention"]["o"], segment["ff"]["gate"], segment["ff"]["down"])
    one = ({"segments": (), "x": x} for x in (tree["head"]["kernel"], tree["embed"]["table"]))
    return [*one, *({"segments": ({"x": x},)} for x in stacks)]


@pytest.mark.parametrize(("trains", "samples"), MESHES, ids=range(len(MESHES)))
def test_no_device_has_more_of_an_array_than_in_one_of_its_layouts(trains, samples):
    """Array by array in the compiled program; and what arrives is what was there."""
    mesh, there = sharding.make_mesh(trains), sharding.make_mesh(samples)
    specs, rules = decoder.specs(LARGE), sharding.rules("decode", LARGE.attention.kind)
    params = jax.device_put(draw(LARGE), sharding.param_shardings(specs, mesh, sharding.TRAIN))
    for tree, given in zip(arrays(specs), arrays(params), strict=True):
        weights = Weights(tree, there, rules, parameters.map_specs(lambda spec: True, tree))
        (spec,), (x,) = (jax.tree.leaves(t, is_leaf=parameters.is_spec) for t in (tree, given))
        made = zip(jax.tree.leaves(weights.abstract()), jax.tree.leaves(weights.apart), strict=True)
        most = max(math.prod(s.shard_shape(a.shape)) for a, s in [(x, x.sharding), *made])
        text = weights.lower(given).compile().as_text()
        sizes = [math.prod(int(n) for n in s.split(",") if n) for s in re.findall(r"= \(?\w+\[([\d,]*)\]", text)]
        assert len(sizes) > 1 and max(sizes) <= most, (spec.axes, max(sizes), most)
        layers = range(len(x)) if spec.axes[0] == "layers" else None
        expected = jax.tree.leaves(turn(spec, np.asarray(x), layers))
        for found, wanted in zip(jax.tree.leaves(weights.take(given)), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_memory_is_of_the_device_that_needs_more():
    stage = tiny.grpo(mesh=config.Mesh(fsdp=1), engine=engine())
    mesh = sharding.make_mesh(stage.mesh)
    shared = memory.table(stage, tiny.MOE, mesh, capacity=2**40)
    apart = memory.table(tiny.grpo(mesh=config.Mesh(fsdp=1), engine=engine(devices=1)), tiny.MOE, mesh, capacity=2**40)
    assert not shared.apart and apart.parts == shared.parts  # one device each
    training = shared.weights + shared.moments + shared.reference + shared.gradients + shared.activations
    assert apart.need == max(training, shared.sampler + shared.cache + shared.sampling) < shared.need


def test_what_cannot_be_split_is_refused_with_the_numbers(monkeypatch):
    with pytest.raises(ConfigError, match="engine.devices is -1"):
        engine(devices=-1)
    with pytest.raises(ValueError, match="engine.devices is 8 of 8; leave at least one"):
        sharding.trainer_mesh(config.Mesh(), engine(devices=8))
    with pytest.raises(ValueError, match="does not divide the 3 devices"):
        stage = engine(devices=3, mesh=config.Mesh(tensor=2))
        sharding.sampler_mesh(stage, sharding.trainer_mesh(config.Mesh(), stage))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="engine.devices is 4, but there are 2 processes"):
        sharding.trainer_mesh(config.Mesh(), engine(devices=4))
