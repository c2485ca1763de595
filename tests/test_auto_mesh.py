"""The mesh that is chosen for the devices found, and why."""

import dataclasses

import jax
import pytest
import tiny

from r1jax import config, sharding
from r1jax.plan import auto_mesh, memory

STAGE = tiny.grpo(mesh=config.Mesh(auto=True), micro_batch="auto")
DENSE = dataclasses.replace(tiny.DENSE, d_model=64, d_ff=64, attention=config.GQA(n_heads=8, n_kv_heads=2, head_dim=8))
MOE = dataclasses.replace(tiny.MOE, d_model=64, moe=config.MoE(n_experts=4, top_k=2, d_ff=64))


def need(model, sizes, stage=STAGE):
    mesh = sharding.make_mesh(sizes)
    rows = sharding.batch_ways(mesh, sharding.TRAIN)
    return memory.table(dataclasses.replace(stage, micro_batch=rows), model, mesh).need


def chosen(model, capacity, stage=STAGE, count=8):
    return auto_mesh.choose(stage, model, devices=jax.devices()[:count], capacity=capacity)


def test_copies_where_there_is_room_and_else_parts_of_the_weights():
    copies, parts = config.Mesh(data=8, fsdp=1), config.Mesh(fsdp=8)
    room = need(DENSE, copies)
    sizes, why = chosen(DENSE, room)
    assert sizes == copies and why.startswith("mesh auto: 8 devices: data 8; this needs")
    sizes, why = chosen(DENSE, room - 1)
    assert sizes == parts
    assert why == (
        f"mesh auto: 8 devices: fsdp 8; with data 8 weights, optimizer and activations would need {memory.human(room)} on each,"
        f" which has {memory.human(room - 1)}; this needs {memory.human(need(DENSE, parts))}"
    )


def test_experts_lie_apart_as_far_as_they_divide():
    sizes, why = chosen(MOE, 2**40)
    assert sizes == config.Mesh(data=2, fsdp=1, expert=4)
    assert "1 of 4 experts on each" in why
    assert chosen(MOE, 2**40, count=3)[0] == config.Mesh(data=3, fsdp=1)


def test_a_batch_that_does_not_divide_leaves_devices_to_heads():
    sizes, why = chosen(DENSE, 2**40, dataclasses.replace(STAGE, micro_batch=2))
    assert sizes == config.Mesh(data=2, fsdp=1, tensor=4)
    assert why.endswith("the 2 key-value heads are on every device")
    long = dataclasses.replace(STAGE, micro_batch=2, sequence_length=auto_mesh.LONG)
    assert next(m for m in auto_mesh.meshes(long, DENSE, 8) if m.data == 2) == config.Mesh(data=2, fsdp=1, context=4)


def test_where_nothing_fits_it_is_what_needs_least():
    sizes, why = chosen(DENSE, 1000)
    assert "which needs least" in why and "1000 B are there" in why
    assert sizes != config.Mesh(data=8, fsdp=1)


def test_what_divides_nothing_is_refused():
    odd = dataclasses.replace(DENSE, d_model=63, d_ff=63, vocab_size=263, attention=config.GQA(7, 7, 2))
    with pytest.raises(config.ConfigError, match="mesh.auto finds no mesh of 8 devices: micro_batch is 3, not a multiple of"):
        chosen(odd, 2**40, dataclasses.replace(STAGE, micro_batch=3, sequence_length=17))
    with pytest.raises(config.ConfigError, match=r"mesh.auto chooses every size, .* set to \(1, 0, 2, 1, 1\)"):
        config.Mesh(auto=True, expert=2)
