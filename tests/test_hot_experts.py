"""Copies of experts: tokens take turns among them, and every number of a rollout is as it is without."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny
from random_models import MLA, collective_sizes, draw

from r1jax import config, lora, sharding
from r1jax.config import ConfigError
from r1jax.models import decoder
from r1jax.nn.expert_parallel import KERNELS
from r1jax.params import is_spec
from r1jax.plan import memory
from r1jax.plan.layout import device_bytes
from r1jax.rollout import Sampler
from r1jax.rollout.hot_experts import _is_slice as is_slice
from r1jax.rollout.hot_experts import busiest, choose, tables
from r1jax.rollout.sampler import NO_ADAPTERS
from r1jax.rollout.weights import Slice

MODEL = dataclasses.replace(MLA, mtp_depth=0, moe=dataclasses.replace(MLA.moe, n_groups=1, top_groups=1))
MESH = config.Mesh(data=2, fsdp=1, expert=4)
SAMPLING = config.Sampling(max_new_tokens=10)
PROMPTS = [np.random.default_rng(i).integers(0, 48, 2 + i % 5).tolist() for i in range(8)]


# -- The choice


def test_the_next_copy_is_of_the_expert_with_the_largest_load_per_copy():
    """Four devices with experts 01, 23, 45 and 67, and loads of 3, 5, 28 and 61. Expert 6 has 60 alone, then 30 a copy, then
    20: each time the most, so the first three copies are its, on the device that has least. The last place is on its own
    device, where of the others 4 has most."""
    loads = np.array([1, 2, 3, 2, 18, 10, 60, 1])
    chosen = choose(loads, 4, 1)
    assert chosen.tolist() == [[6], [6], [6], [4]]
    places, counts = tables(chosen, 8)
    assert counts.tolist() == [1, 1, 1, 1, 2, 1, 4, 1]
    # three places on each device: expert 6 is the first of device 3, and the last of the others
    assert places[6].tolist() == [9, 2, 5, 8] and places[4].tolist()[:2] == [6, 11] and places[5, 0] == 7
    assert busiest(loads[None], 4) == 61 / (97 / 4)
    # 15 for each copy of 6: 18, 20, 9 + 10 + 15 and 15 + 1 + 9
    assert busiest(loads[None], 4, [chosen]) == 34 / (97 / 4)


def test_no_expert_is_twice_on_a_device():
    rng = np.random.default_rng(0)
    for devices, per, places in ((2, 2, 2), (4, 4, 3), (8, 1, 2)):
        loads = rng.exponential(size=devices * per) ** 3
        chosen = choose(loads, devices, places)
        held = [[*range(d * per, (d + 1) * per), *row] for d, row in enumerate(chosen.tolist())]
        assert all(len(set(row)) == per + places for row in held)
        assert busiest(loads[None], devices, [chosen]) < busiest(loads[None], devices)


# -- The sampler


def sampler_of(hot, mesh=None, model=MODEL, adapters=NO_ADAPTERS, **engine):
    engine = config.Engine(slots=16, max_prompt_tokens=8, chunk=4, hot_experts=hot, **engine)
    mesh = mesh or sharding.make_mesh(MESH)
    return Sampler(model, engine, mesh, end_ids=(40, 41, 42), seed=3, adapters=adapters, record_routes=model is MODEL)


def on_mesh(params, model=MODEL):
    return jax.device_put(params, sharding.param_shardings(decoder.specs(model), sharding.make_mesh(MESH), sharding.TRAIN))


@pytest.fixture(scope="module")
def params():
    """Of a router that likes the experts of one device best."""
    made = draw(MODEL)
    made["segments"][1]["ff"]["router_bias"] += np.array([0, 0, 0, 0, 0.8, 0.6, 0, 0], np.float32)
    return on_mesh(made)


@pytest.fixture(scope="module")
def alone(params):
    sampler = sampler_of(0)
    sampler.load(params)
    return sampler, sampler.generate(PROMPTS, SAMPLING, samples=2)


@pytest.fixture(scope="module")
def hot(params):
    sampler = sampler_of(2)
    sampler.load(params)
    sampler.generate(PROMPTS, SAMPLING, samples=2, round=1)
    sampler.load(params)
    return sampler, sampler.generate(PROMPTS, SAMPLING, samples=2)


def test_tokens_log_probs_and_routes_are_those_without_copies(alone, hot):
    expected, found = alone[1], hot[1]
    for name in ("tokens", "length", "finish", "routes"):
        np.testing.assert_array_equal(vars(found)[name], vars(expected)[name], err_msg=name)
    np.testing.assert_allclose(found.logprobs, expected.logprobs, rtol=0, atol=1e-5)
    assert set(found.finish.tolist()) == {0, 1} and len(np.unique(found.tokens)) > 20


def test_loads_are_those_of_the_recorded_routes_and_copies_spread_them(hot):
    sampler, t = hot
    loads = np.zeros((1, 8))
    for i, (prompt, end) in enumerate(zip(t.prompt_length, t.length, strict=True)):
        begin = 0 if t.sample[i] == 0 else prompt  # a question is read once
        for experts in t.routes[i, begin : end - 1, 0]:
            loads[0, experts] += 1
    before, after = (sampler.usage.metrics(16)[f"rollout/device_load{name}"] for name in ("_alone", ""))
    assert before == pytest.approx(busiest(loads, 4)) and after == pytest.approx(busiest(loads, 4, sampler._hot.chosen))
    assert before > 2 and after < 1.5
    assert {4, 5} <= set(sampler._hot.chosen[0].ravel().tolist())


def test_copies_are_what_they_copy_and_are_used(params, alone, hot):
    sampler, t = hot
    ff = sampler.params["segments"][1][0]["ff"]
    chosen = sampler._hot.chosen[0].ravel()
    for name, kernel in ff["copies"].kernels.items():
        np.testing.assert_array_equal(kernel, np.asarray(params["segments"][1]["ff"][name])[0, chosen])
        assert {s.data.shape[0] for s in kernel.addressable_shards} == {2}
    held = sum(x.nbytes for x in jax.tree.leaves(ff["copies"].kernels))
    assert sampler.reshard_bytes == alone[0].reshard_bytes + 2 * held  # on two replicas
    none = {n: jax.tree.map(lambda x: x * 0, k) for n, k in ff["copies"].kernels.items()}
    kept, ff["copies"] = ff["copies"], ff["copies"].replace(kernels=none)
    try:
        wrong = sampler.generate(PROMPTS, SAMPLING, samples=2)
    finally:
        ff["copies"] = kept
    width = min(wrong.tokens.shape[1], t.tokens.shape[1])
    assert (wrong.tokens[:, :width] != t.tokens[:, :width]).any()


@pytest.mark.parametrize(("weights", "rank"), [("int8", 0), ("same", 2)])
def test_copies_of_kernels_in_8_bits_and_of_adapted_ones_that_the_trainer_holds(params, weights, rank):
    adapters = config.LoRA(rank=rank, targets=("gate", "up", "down"))
    specs = lora.adapt(decoder.specs(MODEL), adapters)
    if rank:
        params = jax.tree.map(lambda s: np.random.default_rng(0).normal(size=s.shape).astype(s.dtype), specs, is_leaf=is_spec)
    mesh = sharding.make_mesh(config.Mesh(fsdp=1, expert=4))
    given = jax.device_put(params, sharding.param_shardings(specs, mesh, sharding.TRAIN))
    sampler = sampler_of(1, mesh, adapters=adapters, weights=weights)
    sampler._loads = np.arange(8)[None]
    sampler.load(given)
    ff = sampler.params["segments"][1][0]["ff"]
    chosen = sampler._hot.chosen[0].ravel()
    assert chosen.tolist() == [7, 6, 7, 5]
    assert any(isinstance(x, Slice) for x in jax.tree.leaves(ff, is_leaf=is_slice)) == (rank > 0)
    for name, kernel in ff["copies"].kernels.items():
        own = jax.tree.map(lambda x: x.stack[x.index] if isinstance(x, Slice) else x, ff[name], is_leaf=is_slice)
        same = [(np.asarray(x), np.asarray(y)[chosen]) for x, y in zip(*map(jax.tree.leaves, (kernel, own)), strict=True)]
        assert len(same) > 1
        for x, y in same:
            np.testing.assert_array_equal(x, y)


def test_no_device_has_all_experts_while_they_are_copied(hot):
    sampler, _ = hot
    ff = {name: sampler.params["segments"][1][0]["ff"][name] for name in KERNELS}
    text = sampler._hot._copy.lower(ff, sampler._hot.chosen[0]).compile().as_text()
    sizes = {kind: collective_sizes(text, kind) for kind in ("all-gather", "all-reduce", "all-to-all", "collective-permute")}
    block = 2 * MODEL.d_model * MODEL.moe.d_ff
    assert set(sizes.pop("collective-permute")) == {block} and not any(sizes.values()), sizes


@pytest.mark.slow
def test_drafts_are_accepted_as_without_copies():
    model = dataclasses.replace(MODEL, mtp_depth=1)
    params, greedy = on_mesh(draw(model), model), dataclasses.replace(SAMPLING, temperature=0.0)
    told = []
    for places in (0, 1):
        sampler = sampler_of(places, model=model, speculative=True)
        sampler.load(params)
        told.append((sampler.generate(PROMPTS, greedy), sampler.usage))
    (expected, usage), (found, also) = told
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    assert usage.accepted == also.accepted and usage.device_loads is None and also.device_loads is not None


def test_the_memory_table_counts_what_a_device_holds():
    mesh = sharding.make_mesh(MESH)
    need = [memory.Sampling.of(MODEL, mesh, sampler_of(n).engine, 10).weights for n in (0, 2)]
    held = [device_bytes(sampler_of(n).abstract(16, 10)[0]["segments"]) for n in (0, 2)]
    tables_of_one = 4 * (8 * 4 + 8)
    assert need[1] - need[0] == held[1] - held[0] - tables_of_one == 2 * 3 * MODEL.d_model * MODEL.moe.d_ff * 4


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ConfigError, match=r"^engine.hot_experts is -1; it must be 0 or more"):
        config.Engine(hot_experts=-1)
    with pytest.raises(ConfigError, match=r"^engine.hot_experts is 5 copies of experts, but it has 8, and half of them at"):
        sampler_of(5)
    with pytest.raises(ConfigError, match=r"^engine.hot_experts is 1 copies of experts, but the model has none"):
        sampler_of(1, model=tiny.DENSE)
    mesh = sharding.make_mesh(config.Mesh(fsdp=8))
    for wrong in (lambda: sampler_of(1, mesh), lambda: sharding.sampler_mesh(config.Engine(hot_experts=1), mesh)):
        with pytest.raises(ConfigError, match=r"^engine.hot_experts is 1, but the expert axis of the mesh that samples is 1"):
            wrong()
