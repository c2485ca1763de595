"""The tables of memory in the headers of the configs for one card are what a dry run computes there."""

import dataclasses
import re

import jax
import pytest

from r1jax import sharding
from r1jax.config import GQA, Mesh, Model, Rope, Segment
from r1jax.config.loading import find_config, load_config
from r1jax.plan import memory, micro_batch

GIB = 2**30
BFLOAT16 = {"param_dtype": "bfloat16", "matmul_dtype": "bfloat16", "remat": True}
QWEN_1_5B = Model(
    151_936, 1536, 8960, (Segment("dense", 28),), GQA(12, 2, 128, qkv_bias=True), rope=Rope(theta=1e6), tied=True, **BFLOAT16
)
QWEN_7B = Model(
    152_064, 3584, 18_944, (Segment("dense", 28),), GQA(28, 4, 128, qkv_bias=True), rope=Rope(theta=1e6), **BFLOAT16
)
CARDS = [
    *(("one_card_1_5b", QWEN_1_5B, size, {"offload": ("optimizer",)} if size == 24 else {}) for size in (24, 48, 80)),
    *(("one_card_7b_lora", QWEN_7B, size, {"slots": slots}) for size, slots in ((24, 16), (48, 64), (80, 128))),
]


@pytest.mark.parametrize("name, model, size, flags", CARDS, ids=[f"{name}-{size}" for name, _, size, _ in CARDS])
def test_what_a_card_holds_is_what_the_header_says(name, model, size, flags, monkeypatch):
    monkeypatch.setattr(micro_batch, "TOKENS_ON_CPU", micro_batch.TOKENS)  # the CPU stands for a GPU
    stage = load_config(name)[1]
    assert {key: getattr(stage, key) for key in BFLOAT16} == BFLOAT16
    flags = dict(flags)
    if "slots" in flags:
        flags["engine"] = dataclasses.replace(stage.engine, slots=flags.pop("slots"))
    stage, mesh = dataclasses.replace(stage, **flags), sharding.make_mesh(Mesh(), jax.devices()[:1])
    capacity = int(0.92 * size * GIB)
    stage = micro_batch.choose(stage, model, mesh, capacity=capacity)
    found = memory.table(stage, model, mesh, capacity=capacity)
    assert found.fits
    sizes = (found.need, found.moments, found.activations, found.host_need)
    line = re.search(rf"^ +{size} GB +(.*)$", find_config(name).read_text(), re.M)[1]
    said = [float(x) for x in line.split()]
    assert said[0] == stage.micro_batch
    assert said[1:] == pytest.approx([x / GIB for x in sizes], abs=0.06)
