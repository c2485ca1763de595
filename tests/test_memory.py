"""The memory table against the arrays that are made, against hand-computed numbers, and against the compiler's own report."""

import dataclasses
import io
import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from r1jax import config, sharding
from r1jax.models import decoder
from r1jax.params import is_spec, path_name
from r1jax.plan import memory, shortage
from r1jax.plan.capacity import host_available
from r1jax.train import offload
from r1jax.train.update import Trainer

DENSE = config.Model(vocab_size=256, d_model=64, d_ff=128, segments=(config.Segment("dense", 2),))
SPARSE = dataclasses.replace(DENSE, segments=(config.Segment("moe", 2),), moe=config.MoE(n_experts=4))
MOE = config.Model(
    vocab_size=256,
    d_model=64,
    d_ff=128,
    segments=(config.Segment("dense", 1), config.Segment("moe", 2)),
    attention=config.MLA(),
    moe=config.MoE(n_experts=4),
)


def stage(model, **changes) -> config.GRPO:
    settings = {
        "micro_batch": 8,
        "sequence_length": 128,
        "minibatches": 1,
        "kl_beta": 0.0,
        "sampling": config.Sampling(max_new_tokens=56),
        "engine": config.Engine(slots=16, max_prompt_tokens=8),
    }
    return config.GRPO(model=model, **settings | changes)


def one_device():
    return sharding.make_mesh(config.Mesh(), jax.devices()[:1])


@pytest.mark.parametrize("model", [DENSE, dataclasses.replace(SPARSE, remat="layer")])
def test_the_update_is_estimated_within_a_quarter_of_what_the_compiler_reports(model):
    s, mesh = stage(model), one_device()
    trainer = Trainer(s, model, mesh)
    batch = memory.micro_batch(s, (2, s.micro_batch, s.sequence_length))
    scalars = (jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((), jnp.float32))
    with sharding.using(mesh, sharding.TRAIN):
        report = trainer._update.lower(trainer.abstract(), batch, *scalars).compile().memory_analysis()
    found = memory.table(s, model, mesh)
    batch_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(batch))
    assert found.weights + found.moments + batch_bytes == pytest.approx(report.argument_size_in_bytes, rel=0.01)
    assert found.gradients + found.activations == pytest.approx(report.temp_size_in_bytes, rel=0.25)


def test_the_state_is_what_the_fullest_device_holds():
    s = stage(MOE, kl_beta=0.1)
    mesh = sharding.make_mesh(config.Mesh(fsdp=2, tensor=2, expert=2))
    trainer = Trainer(s, MOE, mesh)
    state = jax.tree.map(lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding), trainer.abstract())

    def held(tree):
        by_device = dict.fromkeys(jax.devices(), 0)
        for x in jax.tree.leaves(tree):
            for shard in x.addressable_shards:
                by_device[shard.device] += shard.data.nbytes
        return max(by_device.values())

    found = memory.table(s, MOE, mesh)
    assert found.weights == held(state.params)
    assert found.moments == held(state.opt_state)
    assert found.reference == held(state.reference) == found.weights
    assert memory.table(stage(MOE), MOE, mesh).reference == 0


def test_the_cache_by_hand():
    # 3 layers x 16 slots x (8 + 56) tokens x (32 latent + 16 rotary) channels x 4 bytes
    assert memory.table(stage(MOE), MOE, one_device()).cache == 3 * 16 * 64 * 48 * 4
    # 2 layers x 16 slots x 64 tokens x 2 heads x (32 + 32) channels x 4 bytes; 8 devices share the slots, or the heads too
    assert memory.table(stage(DENSE), DENSE, one_device()).cache == 2 * 16 * 64 * 2 * 64 * 4
    both = sharding.make_mesh(config.Mesh(fsdp=4, tensor=2))
    assert memory.table(stage(DENSE), DENSE, both).cache == 2 * 16 * 64 * 2 * 64 * 4 // 8


def test_a_rollout_beside_the_updates_needs_its_memory_too():
    alone = memory.table(stage(DENSE, importance_cap=2.0), DENSE, one_device())
    ahead = memory.table(stage(DENSE, importance_cap=2.0, one_step_off_policy=True), DENSE, one_device())
    assert ahead.need == alone.resident + alone.gradients + alone.activations + alone.cache + alone.sampling > alone.need
    by_turns = sharding.make_mesh(config.Mesh(fsdp=8))
    two = memory.table(stage(DENSE, one_step_off_policy=True, importance_cap=2.0), DENSE, by_turns)
    assert two.need == memory.table(stage(DENSE, importance_cap=2.0), DENSE, by_turns).need


def test_a_stage_that_never_samples_needs_no_sampler():
    sft = config.SFT(model=DENSE, sequence_length=128, micro_batch=8)
    found = memory.table(sft, DENSE, one_device())
    assert (found.sampler, found.cache, found.sampling) == (0, 0, 0)
    watched = dataclasses.replace(sft, eval=config.Eval(every=5))
    assert memory.table(watched, DENSE, one_device()).sampler == found.weights


def test_the_sampler_s_weights_are_whole_but_for_tensor_and_expert():
    whole = memory.table(stage(SPARSE), SPARSE, one_device()).sampler
    by_rows = memory.table(stage(SPARSE), SPARSE, sharding.make_mesh(config.Mesh(fsdp=8)))
    assert by_rows.sampler == whole > by_rows.weights
    split = sharding.make_mesh(config.Mesh(fsdp=2, tensor=2, expert=2))
    assert whole / 4 < memory.table(stage(SPARSE), SPARSE, split).sampler < whole / 2


def test_weights_are_split_over_all_devices_that_have_other_tokens_or_a_part_of_the_layer():
    """``data`` alone has copies; a norm's scale is whole everywhere."""
    latent = dataclasses.replace(SPARSE, attention=config.MLA(n_heads=4, q_rank=8, kv_rank=8, nope_dim=8, rope_dim=4, v_dim=8))
    mesh = sharding.make_mesh(config.Mesh(fsdp=1, expert=2, tensor=2, context=2))
    layout = sharding.param_shardings(decoder.specs(latent), mesh, sharding.TRAIN)
    for path, spec in jax.tree_util.tree_leaves_with_path(decoder.specs(latent), is_leaf=is_spec):
        name = path_name(path)
        where = layout
        for key in path:
            where = where[key.key if hasattr(key, "key") else key.idx]
        apart = math.prod(spec.shape) / math.prod(where.shard_shape(spec.shape))
        one_way = ("router", "q_a", "kv_a")  # neither heads nor channels
        assert apart == (1 if "norm" in name or "bias" in name else 4 if name.endswith(one_way) else 8), name
    odd = dataclasses.replace(latent, attention=dataclasses.replace(latent.attention, kv_rank=7))
    held = sharding.param_shardings(decoder.specs(odd), mesh, sharding.TRAIN)["segments"][0]["attention"]
    assert held["k_b"].shard_shape((2, 7, 4, 8)) == (2, 7, 2, 8)  # few numbers, which every device has


def test_devices_share_the_activations():
    s = stage(DENSE)
    whole = memory.table(s, DENSE, one_device()).activations
    split = memory.table(s, DENSE, sharding.make_mesh(config.Mesh(fsdp=8))).activations
    assert split == pytest.approx(whole / 8, rel=0.05)
    by_heads = memory.table(s, DENSE, sharding.make_mesh(config.Mesh(data=2, tensor=2, context=2))).activations
    assert whole / 8 < by_heads < whole / 4  # inputs and norms of a layer are not split over the tensor axis


def test_what_attention_keeps_does_not_depend_on_how_many_devices_there_are():
    """In blocks each device keeps the outputs and sums of its own rows."""
    model = dataclasses.replace(DENSE, attention_kernel="chunked")
    two, eight = (memory.table(stage(model, micro_batch=n), model, sharding.make_mesh(config.Mesh(fsdp=n))) for n in (2, 8))
    assert eight.activations == two.activations


def test_frozen_parameters_have_no_gradient_and_no_moments():
    frozen = memory.table(stage(DENSE, frozen=("embed", "segments")), DENSE, one_device())
    head = 64 * 256 * 4 + 64 * 4  # and the last norm
    assert frozen.gradients == head  # the sum; without a loop over layers a micro-batch's own are among its activations
    assert frozen.moments == pytest.approx(2 * head, abs=16)


def test_what_does_not_fit_names_two_settings_that_do():
    s, mesh = stage(DENSE, kl_beta=0.1), one_device()
    need = memory.table(s, DENSE, mesh).need
    quarter = memory.table(dataclasses.replace(s, micro_batch=2), DENSE, mesh).need
    for capacity, settings in (
        (need * 2 // 3, ("micro_batch 4", "micro_batch 2")),
        (quarter, ("micro_batch 2", "micro_batch 2 with remat layer")),
        (quarter - 1, ("micro_batch 2 with remat layer", "micro_batch 2 with remat layer with engine.slots 8")),
    ):
        found = memory.table(s, DENSE, mesh, capacity=capacity)
        assert not found.fits
        with pytest.raises(config.ConfigError) as error:
            shortage.check(found, s, DENSE, mesh)
        message = str(error.value)
        assert "\n" not in message and memory.human(need) in message
        first, second = (re.escape(setting) for setting in settings)
        assert re.search(rf"these fit: {first} \(needs [^)]*\), or {second} \(needs ", message), message


def test_what_no_setting_makes_fit():
    s, mesh = stage(DENSE), one_device()
    found = memory.table(s, DENSE, mesh, capacity=10_000)
    with pytest.raises(config.ConfigError, match=f"alone are {re.escape(memory.human(found.resident))}"):
        shortage.check(found, s, DENSE, mesh)
    # Reward models stay beside every setting: without them a smaller batch would do.
    need = memory.table(s, DENSE, mesh).need
    found = dataclasses.replace(memory.table(s, DENSE, mesh, capacity=need), judges=need)
    with pytest.raises(config.ConfigError, match="no smaller batch, remat or fewer slots would help"):
        shortage.check(found, s, DENSE, mesh)


def test_what_fits_is_let_through():
    s, mesh = stage(DENSE), one_device()
    for capacity in (memory.table(s, DENSE, mesh).need, None):
        shortage.check(dataclasses.replace(memory.table(s, DENSE, mesh), capacity=capacity), s, DENSE, mesh)


def test_the_whole_model_is_counted_without_an_array():
    mesh = sharding.make_mesh(config.Mesh(), jax.devices()[:1])
    big = partial(stage, config.CONFIG_671B, micro_batch=1)
    found = memory.table(big(frozen=("segments",)), config.CONFIG_671B, mesh)
    assert found.weights == pytest.approx(2 * 682e9, rel=0.01)  # 671.03B and the MTP module's 11B, in bfloat16
    assert not found.fits


def test_free_memory_is_the_container_s_if_that_is_less(tmp_path):
    assert host_available(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 900 kB\nMemAvailable:     500 kB\n")
    assert host_available(tmp_path) == 500 * 1024
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.current").write_text("100\n")
    (group / "memory.max").write_text("max\n")
    assert host_available(tmp_path) == 500 * 1024
    (group / "memory.max").write_text("4100\n")
    assert host_available(tmp_path) == 4000


@pytest.mark.parametrize(("size", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 * 2**30, "3 GiB")])
def test_sizes(size, text):
    assert memory.human(size) == text


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 13.50GiB.", "; 13.50GiB could not be had"),
        ("RESOURCE_EXHAUSTED: Out of memory allocating 1536 bytes.", "; 1.5 KiB could not be had"),
        ("Out of memory", ""),
    ],
)
def test_an_out_of_memory_error_says_what_to_change(text, asked):
    s = stage(DENSE)
    found = dataclasses.replace(memory.table(s, DENSE, one_device()), capacity=2**30)
    error = jax.errors.JaxRuntimeError(text)
    assert shortage.is_out_of_memory(error) and not shortage.is_out_of_memory(jax.errors.JaxRuntimeError("INTERNAL: bad"))
    line = shortage.explain(error, "update", found, s, DENSE)
    assert line.startswith(f"out of memory in phase update{asked}: planned were ") and "of 1 GiB per device" in line
    assert line.endswith("set micro_batch below 8, or remat to layer")
    assert shortage.explain(error, "eval", found, s, DENSE).endswith("set engine.slots below 16")
    alone, deep = dataclasses.replace(s, micro_batch=1), dataclasses.replace(DENSE, remat="layer")
    assert shortage.explain(error, "update", found, alone, DENSE).endswith("set remat to layer")
    assert "mesh.context" in shortage.explain(error, "update", found, alone, deep)


def test_what_rests_on_the_host_is_not_on_the_device(monkeypatch):
    monkeypatch.setattr(offload, "FEW", 0)
    model = dataclasses.replace(DENSE, param_dtype="bfloat16")
    plain = memory.table(stage(model, kl_beta=0.1), model, one_device(), capacity=2**30)
    moved = memory.table(stage(model, kl_beta=0.1, offload=("optimizer", "reference")), model, one_device(), capacity=2**30)
    scalars = 8  # the counts of updates
    assert (moved.moments, moved.reference) == (scalars, 0)
    assert moved.host_moments == plain.moments - scalars and moved.host_reference == plain.reference
    assert plain.host_need == plain.layer == 0
    # the table of 256 x 64 numbers, or as many of the head: master and two moments of each, old and new
    assert moved.layer == 2 * 3 * 4 * 256 * 64
    assert moved.resident == moved.weights + moved.sampler + scalars
    assert moved.need == moved.resident + max(
        moved.gradients + max(moved.activations, moved.layer), moved.host_reference + moved.activations,
        moved.cache + moved.sampling,
    )  # fmt: skip
    split = memory.table(
        stage(model, offload=("optimizer",)), model, sharding.make_mesh(config.Mesh(fsdp=4, tensor=2)), capacity=2**30
    )
    assert split.layer == moved.layer // 8
    deep = dataclasses.replace(model, vocab_size=16, segments=(config.Segment("dense", 6),))
    assert memory.table(stage(deep, offload=("optimizer",)), deep, one_device()).layer == 2 * 3 * 4 * 64 * 128


def test_the_table_has_a_column_for_the_host_only_if_something_lies_there():
    console = Console(width=100, record=True, file=io.StringIO())
    for off in ((), ("optimizer", "reference")):
        console.print(memory.table(stage(DENSE, kl_beta=0.1, offload=off), DENSE, one_device(), capacity=2**30).table("x"))
    plain, moved = console.export_text().split("x: memory per device")[1:]
    assert "on the host" not in plain and "on the host" in moved
    found = memory.table(stage(DENSE, kl_beta=0.1, offload=("optimizer",)), DENSE, one_device(), capacity=2**30)
    size = memory.human(found.host_moments)
    assert f"; on the host optimizer {size}" in found.line()
    assert re.search(rf"optimizer .*{re.escape(size)}", moved)


def test_too_little_on_the_host_is_told_apart():
    s, mesh = stage(DENSE, offload=("optimizer",)), one_device()
    found = memory.table(s, DENSE, mesh, capacity=2**30, host_capacity=1024)
    assert not found.fits
    with pytest.raises(config.ConfigError, match="too large for the host: offload keeps .* and 1 KiB are free"):
        shortage.check(found, s, DENSE, mesh)
    assert memory.table(s, DENSE, mesh, capacity=2**30, host_capacity=2**30).fits
