"""A whole GRPO step, from the rollout to the update, on meshes of eight devices and on one: the same numbers.

test_devices.py compares whole runs, with SFT, checkpoints, exports and several processes, on fewer meshes.
"""

import contextlib
import dataclasses
import io

import jax
import numpy as np
import pytest
import tiny
from random_models import collective_sizes, jit
from rich.console import Console

from r1jax import config, rundir, sharding
from r1jax.models import decoder
from r1jax.params import abstract
from r1jax.stages import grpo, workspace
from r1jax.stages.prepare import prepare

ONE = config.Mesh(fsdp=1)
MESHES = {
    "fsdp 8": config.Mesh(),
    "data 8": config.Mesh(data=8, fsdp=1),
    "expert 8": config.Mesh(expert=8, fsdp=1),
    "tensor 4": config.Mesh(tensor=4),
    "context 8": config.Mesh(context=8, fsdp=1),
    "fsdp, expert, tensor": config.Mesh(fsdp=2, expert=2, tensor=2),
    "data, expert": config.Mesh(data=2, expert=4, fsdp=1),
    "expert, context": config.Mesh(expert=4, context=2, fsdp=1),
    "data, fsdp, context": config.Mesh(data=2, context=2),
    "expert, tensor, context": config.Mesh(expert=2, tensor=2, context=2, fsdp=1),
}
MODELS = {
    "moe": dataclasses.replace(
        tiny.MOE,
        attention=config.MLA(n_heads=4, kv_rank=8, nope_dim=8, rope_dim=4, v_dim=8),
        moe=config.MoE(n_experts=16, top_k=2, d_ff=8, n_groups=4, top_groups=2),
    ),
    "dense": dataclasses.replace(
        tiny.DENSE, segments=(config.Segment("dense", 2),), attention=config.GQA(n_heads=4, n_kv_heads=2, head_dim=8)
    ),
}
PADDED, PACKED = 16, 48  # a row holds one answer, or several
pytestmark = pytest.mark.timeout(1800)


def step(model: str, length: int, mesh: config.Mesh, path):
    """Metrics, samples and weights after a step of four groups of four answers."""
    stage = tiny.grpo(
        model=MODELS[model], mesh=mesh, steps=1, minibatches=1, questions=4, sequence_length=length, importance_cap=2.0,
        balance_weight=0.1, bias_rate=0.01, optimizer=config.Optimizer(lr=0.01, warmup_steps=0, eps=1e-2),
    )  # fmt: skip
    run = rundir.create("tiny", config.to_json(stage), path)
    with tiny.quick_to_compile(), contextlib.closing(run), workspace.open_workspace(prepare(stage), run, "tiny") as work:
        work.display.console = Console(file=io.StringIO())
        grpo.play_round(work)
        weights = jax.device_get(work.state.params)
    (metrics,) = tiny.metrics(path)
    return metrics, tiny.samples(path), weights


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """``step`` on one device, each made once."""
    made = {}

    def of(model, length):
        if (model, length) not in made:
            made[model, length] = step(model, length, ONE, tmp_path_factory.mktemp("shapes") / "one")
        return made[model, length]

    return of


def check(model, length, name, alone, path):
    (metrics, samples, weights), (reference, answers, expected) = step(model, length, MESHES[name], path), alone(model, length)
    reference = dict(reference)
    moved = "rollout/reshard_bytes"  # over all devices together: some hold the same
    assert metrics.pop(moved) >= reference.pop(moved)
    assert metrics == pytest.approx(reference, rel=1e-5, abs=1e-5)
    assert samples == answers
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), weights, expected)


@pytest.mark.parametrize("name", ["fsdp, expert, tensor", "expert, context"])
def test_a_step_is_that_of_one_device(name, alone, tmp_path):
    check("moe", PACKED, name, alone, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("length", [PADDED, PACKED], ids=["padded", "packed"])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", MESHES)
def test_ten_shapes(name, model, length, alone, tmp_path):
    check(model, length, name, alone, tmp_path / "run")


def test_a_split_of_heads_and_channels_sends_sums_alone():
    """Forward: those of the embedding, of attention and of the feed-forward, the latter two in a loop over layers."""
    model = dataclasses.replace(MODELS["dense"], attention=config.GQA(n_heads=4, n_kv_heads=4, head_dim=8))
    mesh = sharding.make_mesh(config.Mesh(data=2, fsdp=1, tensor=4))
    layout = sharding.param_shardings(decoder.specs(model), mesh, sharding.TRAIN)
    shapes = abstract(decoder.specs(model))
    params = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, layout)
    rows = [sharding.put(np.ones((4, 8), np.int32), mesh, sharding.TRAIN, "batch", "sequence")] * 3
    with sharding.using(mesh, sharding.TRAIN):
        program = jit(lambda *args: decoder.forward(*args, model=model)[0]).lower(params, *rows).compile().as_text()
    assert collective_sizes(program, "all-reduce") == 3 * [2 * 8 * model.d_model]
    assert not any(collective_sizes(program, kind) for kind in ("all-gather", "all-to-all", "collective-permute"))
