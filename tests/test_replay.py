"""Routing replay: the experts of a rollout are recorded at their tokens, packed at their places, and taken by the update."""

import contextlib
import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from random_models import GQA, draw
from rich.console import Console

from r1jax import config, rundir, sharding
from r1jax.data.packing import pack_sequences
from r1jax.models import decoder
from r1jax.nn import moe
from r1jax.rollout import Sampler
from r1jax.stages import grpo, workspace
from r1jax.stages.prepare import prepare
from r1jax.train.update import Trainer

MODEL = dataclasses.replace(
    GQA,
    segments=(config.Segment("dense", 1), config.Segment("moe", 2)),
    moe=config.MoE(n_experts=8, top_k=2, d_ff=12),
)
ROUGH = dataclasses.replace(MODEL, matmul_dtype="bfloat16", dtype="bfloat16")
LAYERS, K = 2, 2
CAP = 12
PROMPTS = [np.random.default_rng(5).integers(0, 48, n).tolist() for n in (4, 9, 1, 6)]
STAGE = tiny.grpo(
    model=MODEL, micro_batch=4, sequence_length=40, kl_beta=0.5, balance_weight=0.1, bias_rate=0.01, routing_replay=True,
    optimizer=config.Optimizer(lr=0.02, warmup_steps=0, clip_norm=0.0, eps=1e-3),
)  # fmt: skip


def rollout(model, params, *, record=True, **options):
    """Three slots for twelve answers of many lengths: slots are refilled, and prompts are shared."""
    engine = config.Engine(slots=3, max_prompt_tokens=32, chunk=5)
    sampler = Sampler(
        model, engine, sharding.make_mesh(config.Mesh(fsdp=1)), end_ids=(28, 29, 31), seed=11, record_routes=record, **options
    )
    sampler.load(params)
    return sampler, sampler.generate(PROMPTS, config.Sampling(max_new_tokens=CAP), samples=3, round=3)


@pytest.fixture(scope="module")
def params():
    return draw(MODEL)


@pytest.fixture(scope="module")
def sampled(params):
    return rollout(MODEL, params)


def routes_of(model, params, tokens):
    """[N, T, L, K] by the whole forward pass."""

    @jax.jit
    def routes(params, tokens):
        where = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        _, aux, _ = decoder.forward(params, tokens, where, jnp.ones_like(tokens), model=model)
        return aux.routes[1]

    return np.moveaxis(np.asarray(routes(params, tokens)), 0, 2)


def packed(model, t, routes, group=3, **changes):
    """The trajectories as an update gets them, with advantages and pi_old that say something."""
    rng = np.random.default_rng(0)
    spans = [slice(0, int(n)) for n in t.length]
    host, count = pack_sequences(
        *([x[i, s] for i, s in enumerate(spans)] for x in (t.tokens, t.loss_mask)), rows=4, length=40, micro_batches=2,
        advantages=rng.normal(0, 1, len(spans)), sampler_logprobs=[t.logprobs[i, s] for i, s in enumerate(spans)],
        normalize="token", group=group, prompt_length=t.prompt_length,
        routes=None if routes is None else [routes[i, s] for i, s in enumerate(spans)],
    )  # fmt: skip
    noise = np.random.default_rng(1).normal(0, 0.1, host.mask.shape).astype(np.float32)
    old, ref = (np.where(host.mask, host.sampler_logprobs + n, 0) for n in (noise, 2 * noise))
    return host.replace(old_logprobs=old, ref_logprobs=ref), count


def learner(model):
    return Trainer(STAGE, model, sharding.make_mesh(config.Mesh(fsdp=1)))


@pytest.fixture(scope="module")
def trainer():
    return learner(MODEL)


def updated(trainer, params, batch, count):
    """(metrics, first moments, parameters): the moments are the gradient, but for a factor."""
    state, metrics = trainer.update(trainer.create(params), trainer.put(batch), count, float(batch.mask.sum()))
    return jax.tree.map(np.asarray, ({k: np.asarray(v) for k, v in metrics.items()}, state.opt_state[0].mu, state.params))


# -- Recording


def test_the_rollout_records_where_the_forward_pass_sends_every_token(params, sampled):
    sampler, t = sampled
    assert t.routes.dtype == np.uint8 and t.routes.shape == (*t.tokens.shape, LAYERS, K)
    expected = routes_of(MODEL, params, t.tokens)
    assert len(set(t.length - t.prompt_length)) > 3
    for i, n in enumerate(t.length):
        np.testing.assert_array_equal(t.routes[i, : n - 1], expected[i, : n - 1])
        assert (t.routes[i, n - 1 :] == 255).all()
    assert len(np.unique(expected)) == 8

    *_, last = sampler.stream(PROMPTS[1], config.Sampling(max_new_tokens=CAP), chunk=5, round=3, id=1)
    np.testing.assert_array_equal(last.routes[0], t.routes[3, : last.length[0]])


def test_what_is_not_recorded_costs_nothing_and_changes_nothing(params, sampled):
    sampler, without = rollout(MODEL, params, record=False)
    assert without.routes is None
    assert jax.eval_shape(lambda: sampler._loop.empty(length=8, cap=4)).routes is None
    np.testing.assert_array_equal(without.tokens, sampled[1].tokens)
    np.testing.assert_array_equal(without.logprobs, sampled[1].logprobs)


def test_one_byte_holds_the_experts_and_the_mark():
    for experts, top_k, size in ((8, 1, 1), (255, 1, 1), (256, 1, 2), (256, 8, 1), (257, 8, 2)):
        assert moe.route_dtype(config.MoE(n_experts=experts, top_k=top_k)).itemsize == size
    routes = jnp.array([[[255, 3], [255, 255], [0, 0]]], jnp.uint8)
    assert moe.recorded(routes).tolist() == [[True, False, True]]


# -- Packing


def test_every_token_is_packed_with_its_own_routes(sampled):
    _, t = sampled
    batch, _ = packed(MODEL, t, t.routes)
    assert batch.routes.shape == (*batch.tokens.shape, LAYERS * K) and batch.routes.dtype == np.uint8
    found = {}
    for m, b in np.ndindex(batch.tokens.shape[:2]):
        for p, segment, prefix, token, routes in zip(
            *(x[m, b] for x in (batch.positions, batch.segments, batch.prefix, batch.tokens, batch.routes)), strict=True
        ):
            if segment:
                found.setdefault((m, b, int(segment)), [int(prefix), {}])[1][int(p)] = (int(token), routes.tolist())
            else:
                assert (routes == 255).all()
    seen = []
    for (m, b, _), (prefix, own) in found.items():
        whole = {**found[m, b, prefix][1], **own} if prefix else own
        seen.append([whole[p] for p in range(len(whole))])
    expected = [
        [(int(token), r.reshape(-1).tolist()) for token, r in zip(t.tokens[i, :n], t.routes[i, :n], strict=True)]
        for i, n in enumerate(t.length)
    ]
    shared = [e for e in seen if e not in expected]
    assert all(answer in seen for answer in expected) and len(shared) >= 3  # the prompt of one token is not shared
    with pytest.raises(ValueError, match="routes 0 has 1 entries for 2 tokens"):
        pack_sequences([[1, 2]], [[0, 1]], rows=1, length=4, routes=[np.zeros((1, 3, 2), np.uint8)])


# -- The update


def close(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)


def test_replaying_the_models_own_routes_changes_nothing(params, sampled, trainer):
    _, t = sampled
    with_routes, count = packed(MODEL, t, t.routes)
    found, *rest = updated(trainer, params, with_routes, count)
    expected, *plain = updated(trainer, params, with_routes.replace(routes=None), count)
    assert found.pop("sampler/route_disagreement") == 0 and found["grad/norm"] > 0.01
    close(found, expected)
    close(rest, plain)
    scored = (trainer.logprobs(params, trainer.put(b), count) for b in (with_routes, with_routes.replace(routes=None)))
    np.testing.assert_array_equal(*(np.where(with_routes.mask, x, 0) for x in scored))


def test_other_routes_are_taken_whatever_the_bias_says_and_counted(params, sampled, trainer):
    """In the last of two layers every recorded choice becomes another one: half of them differ."""
    _, t = sampled
    recorded = np.arange(t.tokens.shape[1]) < t.length[:, None] - 1
    chosen = routes_of(MODEL, params, t.tokens)[:, :, 1]
    free = np.argsort((np.arange(8) == chosen[..., None]).any(-2), -1, kind="stable")[..., :K]  # experts not chosen
    other = t.routes.copy()
    other[:, :, 1] = np.where(recorded[..., None], free, 255)
    batch, count = packed(MODEL, t, other, group=1)
    assert count == 2
    metrics, _, after = updated(trainer, params, batch, count)
    assert metrics["sampler/route_disagreement"] == 0.5

    @jax.jit
    def by_hand(params, batch):
        routes = (None, jnp.moveaxis(batch.routes.reshape(4, 40, LAYERS, K), 2, 0).astype(jnp.int32))
        real = (routes[1] < 8).all(-1, keepdims=True)
        inputs = batch.tokens, batch.positions, batch.segments
        first = decoder.forward(params, *inputs, model=MODEL, prefix=batch.prefix)[1].routes[1]
        # Before the last layer nothing is changed, so what it chooses itself is what it would choose anyway.
        routes = (None, jnp.where(real, routes[1], first))
        hidden, aux, _ = decoder.forward(params, *inputs, model=MODEL, prefix=batch.prefix, routes=routes)
        logits = jax.nn.log_softmax(hidden @ decoder.head_kernel(params))
        return jnp.take_along_axis(logits, batch.targets[..., None], axis=-1)[..., 0], aux.load[1]

    ff = params["segments"][1]["ff"]
    moved = {**ff, "router_bias": ff["router_bias"] + jnp.arange(8.0) % 3}
    moved = {**params, "segments": (params["segments"][0], {**params["segments"][1], "ff": moved})}
    found, biased = (np.asarray(trainer.logprobs(p, trainer.put(batch), count)) for p in (params, moved))
    loads = np.zeros((LAYERS, 8))
    for m in range(count):
        expected, load = by_hand(params, jax.tree.map(lambda x, m=m: jnp.asarray(x[m]), batch))
        loads += load
        np.testing.assert_allclose(found[m][batch.mask[m]], np.asarray(expected)[batch.mask[m]], atol=1e-5)
    np.testing.assert_allclose(biased[batch.mask], found[batch.mask], atol=1e-6)
    plain = np.asarray(trainer.logprobs(params, trainer.put(batch.replace(routes=None)), count))
    assert np.abs(plain - found)[batch.mask].mean() > 0.1
    # The bias moves by the experts that were recorded, and by what an answer's last token chooses itself.
    counted = np.stack([np.bincount(other[recorded][:, layer].reshape(-1), minlength=8) for layer in range(LAYERS)])
    assert (counted <= loads).all() and loads.sum() - counted.sum() == len(t.length) * LAYERS * K
    bias = [x["segments"][1]["ff"]["router_bias"] for x in (after, params)]
    np.testing.assert_allclose(bias[0] - bias[1], 0.01 * np.sign(loads.mean(-1, keepdims=True) - loads), atol=1e-6)


def test_disagreement_by_hand():
    """Token 0 would choose 0 and 1, token 1 with its bias 2 and 3; token 2 was not recorded."""
    scores = jnp.array([[[0.9, 0.8, 0.1, 0.2], [0.5, 0.4, 0.3, 0.2], [0.9, 0.8, 0.1, 0.2]]])
    params = {"router_bias": jnp.array([0.0, 0.0, 0.25, 0.31])}
    routing = moe.Routing(None, None, scores)
    routes = jnp.array([[[1, 0], [3, 0], [255, 255]]], jnp.uint8)
    assert moe.disagreement(params, routing, routes, config.MoE(n_experts=4, top_k=2)).tolist() == [1, 4]


def test_routes_of_several_segments_go_there_and_back():
    model = dataclasses.replace(
        MODEL, segments=(config.Segment("moe", 2), config.Segment("dense", 3), config.Segment("moe", 1))
    )
    rng = np.random.default_rng(0)
    routes = (rng.integers(0, 8, (2, 3, 5, K)), None, rng.integers(0, 8, (1, 3, 5, K)))
    flat = decoder.join_routes(routes, model)
    assert flat.shape == (3, 5, 3 * K)
    assert flat[2, 4].tolist() == [*routes[0][0, 2, 4], *routes[0][1, 2, 4], *routes[2][0, 2, 4]]
    back = decoder.split_routes(flat, model)
    assert back[1] is None
    for i in (0, 2):
        np.testing.assert_array_equal(back[i], routes[i])


def test_in_bfloat16_replay_brings_the_trainer_nearer_to_the_sampler(params):
    _, t = rollout(ROUGH, params)
    batch, count = packed(ROUGH, t, t.routes)
    trainer = learner(ROUGH)
    apart = []
    for b in (batch, batch.replace(routes=None)):
        found = np.asarray(trainer.logprobs(params, trainer.put(b), count))
        apart.append(np.abs(found - b.sampler_logprobs)[b.mask].mean())
    assert apart[0] < apart[1]  # equal if no token had changed experts


# -- The stage


def test_a_dense_model_is_refused():
    stage = tiny.grpo(model=tiny.DENSE, routing_replay=True)
    with pytest.raises(config.ConfigError, match="^routing_replay is on, but the model has no experts; leave it off$"):
        prepare(stage)
    with pytest.raises(ValueError, match="^record_routes is on, but the model has no experts; leave it off$"):
        Sampler(tiny.DENSE, stage.engine, sharding.make_mesh(stage.mesh), end_ids=(), record_routes=True)


def test_a_run_replays_its_rollouts(tmp_path):
    """Every update sees the recorded experts: of a round's first all are the policy's own, and after it they are not."""
    stage = tiny.grpo(steps=4, routing_replay=True, optimizer=config.Optimizer(lr=0.03, warmup_steps=0), dynamic_sampling=1)
    rows = []
    run = rundir.create("tiny", config.to_json(stage), tmp_path / "run")
    with contextlib.closing(run), workspace.open_workspace(prepare(stage), run, "tiny") as work:
        work.display.console = Console(file=io.StringIO())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(work.metrics, "write", lambda step, values: rows.append(values))
            grpo.train(work)
    apart = [row["sampler/route_disagreement"] for row in rows]
    assert apart[0] == apart[2] == 0 and min(apart[1], apart[3]) > 0
    assert all(row["sampler/logprob_diff_max"] < 1e-4 for row in rows)
