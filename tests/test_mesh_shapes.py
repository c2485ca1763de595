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
from r1jax.advantages import group_advantages
from r1jax.models import decoder
from r1jax.params import abstract
from r1jax.rewards import Pool
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
PADDED, PACKED = 16, 48  # room for one answer in a row, or for several
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module", autouse=True)
def cheap():
    """One pool of reward workers."""
    with Pool(config.Workers(count=1)) as pool, pytest.MonkeyPatch.context() as patch:
        patch.setattr(workspace, "Pool", lambda workers: contextlib.nullcontext(pool))
        yield


def step(model: str, mesh: config.Mesh, path):
    """A step of four groups of four answers: its metrics, its samples and the weights after it; and what an update says and
    makes where the same answers lie in short rows. These are filled up to the length of long ones: one program takes both."""
    stage = tiny.grpo(
        model=MODELS[model], mesh=mesh, steps=2, minibatches=1, questions=4, sequence_length=PACKED, importance_cap=2.0,
        balance_weight=0.1, bias_rate=0.01, optimizer=config.Optimizer(lr=0.01, warmup_steps=0, eps=1e-2),
    )  # fmt: skip
    run = rundir.create("tiny", config.to_json(stage), path)
    with contextlib.closing(run), workspace.open_workspace(prepare(stage), run, "tiny") as work:
        work.display.console = Console(file=io.StringIO())
        start, where = jax.tree.map(np.array, work.state), jax.tree.map(lambda x: x.sharding, work.state)
        answers = grpo.next_answers(work)
        advantages = group_advantages(answers.rewards, stage.group, std=stage.advantage_std)
        (rows,) = grpo.split(work, answers, advantages)
        work.stage = dataclasses.replace(stage, sequence_length=PADDED)
        batch, *how = grpo.pack(work, answers, advantages, rows, first=True)
        work.stage, short = stage, jax.device_get(batch)
        wide = jax.tree.map(lambda x: np.pad(x, ((0, 0), (0, 0), (0, PACKED - PADDED))), short)
        state, said = work.trainer.update(work.state, work.trainer.put(wide), *how)
        padded = (workspace.told(said), jax.device_get(state.params))
        work.state, packs, pack = jax.device_put(start, where), [], grpo.pack
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(grpo, "next_answers", lambda work: answers)
            patch.setattr(grpo, "pack", lambda *args, **kwargs: packs.append(pack(*args, **kwargs)) or packs[-1])
            grpo.play_round(work)
        packed = jax.device_get(work.state.params)
    ((long, _, _),) = packs
    assert short.tokens.shape[-1] == PADDED and filled(short) > filled(long)
    (metrics,) = tiny.metrics(path)
    return metrics, tiny.samples(path), packed, padded


def filled(batch) -> int:
    """Rows that hold something."""
    return int((np.asarray(batch.segments) > 0).any(-1).sum())


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """``step`` on one device, each made once."""
    made = {}

    def of(model):
        if model not in made:
            made[model] = step(model, ONE, tmp_path_factory.mktemp("shapes") / "one")
        return made[model]

    return of


def check(model, name, alone, path):
    (metrics, samples, *updated), (reference, answers, *expected) = step(model, MESHES[name], path), alone(model)
    reference = dict(reference)
    moved = "rollout/reshard_bytes"  # over all devices together: some hold the same
    assert metrics.pop(moved) >= reference.pop(moved)
    assert metrics == pytest.approx(reference, rel=1e-5, abs=1e-5)
    assert samples == answers
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), updated, expected)


def test_a_step_is_that_of_one_device(alone, tmp_path):
    check("moe", "expert, context", alone, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", MESHES)
def test_ten_shapes_packed_and_padded(name, model, alone, tmp_path):
    check(model, name, alone, tmp_path / "run")


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
