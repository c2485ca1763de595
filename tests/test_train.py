"""One update: the same for every layout of its batch, the optimizer's against torch, and what it does beside the gradient."""

import contextlib
import dataclasses
import functools
import io
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from rich.console import Console

from r1jax import config, params, rundir, sharding
from r1jax.data.packing import pack_sequences
from r1jax.losses.sums import denominator
from r1jax.models import decoder
from r1jax.params import path_name
from r1jax.stages import grpo as grpo_stage
from r1jax.stages import workspace
from r1jax.stages.prepare import prepare
from r1jax.train import optimizer
from r1jax.train.update import Trainer, balance_router

OPTIMIZER = config.Optimizer(lr=0.02, warmup_steps=0, weight_decay=0.1, clip_norm=0.5, eps=1e-3)
"""``eps`` is large, so that rounding in a gradient of almost 0 does not become a step of the size of ``lr``."""
CAP = 12


def stage(kind, model, rows=8, length=16, **changes):
    settings = {"model": model, "micro_batch": rows, "sequence_length": length, "optimizer": OPTIMIZER, "mtp_weight": 0.3}
    settings |= {"balance_weight": 0.1, "bias_rate": 0.01}
    if kind == "grpo":
        settings |= {"kl_beta": 0.5, "importance_cap": 1.1, "clip_high": 0.05, "clip_low": 0.05}
        settings |= {"sampling": config.Sampling(temperature=0.8, max_new_tokens=8)}
    return {"grpo": tiny.grpo, "sft": tiny.sft}[kind](**settings | changes)


@functools.cache
def trainer(kind, model, rows=8, length=16, **changes):
    return Trainer(stage(kind, model, rows, length, **changes), model, sharding.make_mesh(config.Mesh(fsdp=1)))


def weights(model, seed=0):
    """As numpy draws them: jax's initialisation takes longer to compile than an update."""
    rng = np.random.default_rng(seed)

    def one(s):
        return jnp.asarray(rng.normal(float(s.init == "ones"), 0.3 if s.init == "normal" else 0.1, s.shape), s.dtype)

    return params.map_specs(one, decoder.specs(model))


@functools.cache
def data():
    """Two questions with four answers each, none of at most half a row: sequences, trained, prompt lengths, and per token
    what the sampler, the old policy and the reference thought of it."""
    rng = np.random.default_rng(1)
    prompts = [rng.integers(6, 262, n).tolist() for n in (4, 6)]
    sequences = [prompts[i // 4] + rng.integers(6, 262, n).tolist() for i, n in enumerate((5, 11, 8, 6, 9, 3, 4, 7))]
    trained = [np.arange(len(s)) >= len(prompts[i // 4]) for i, s in enumerate(sequences)]
    lengths = np.repeat([4, 6], 4)
    near = [rng.normal(-3.0, 1.0, len(s)) for s in sequences]
    noisy = [[n + rng.normal(0, 0.2, n.shape) for n in near] for _ in range(3)]
    return sequences, trained, lengths, rng.normal(0, 1, 8), noisy


def batch(kind, rows, length, micro_batches=None, normalize="token", group=1):
    sequences, trained, lengths, advantages, (sampler, old, ref) = data()

    def pack(logprobs):
        return pack_sequences(
            sequences, trained, rows=rows, length=length, normalize=normalize, micro_batches=micro_batches,
            advantages=advantages, sampler_logprobs=logprobs, group=group, prompt_length=lengths,
        )  # fmt: skip

    packed, count = pack(sampler)
    if kind == "grpo":
        packed = packed.replace(old_logprobs=pack(old)[0].sampler_logprobs, ref_logprobs=pack(ref)[0].sampler_logprobs)
    else:
        packed = packed.replace(advantages=None, sampler_logprobs=None)
    return packed, count, denominator(normalize, answers=8, tokens=int(packed.mask.sum()), cap=CAP)


def updated(learner, packed, count, divisor, state=None):
    """(metrics, state) on the host."""
    state = learner.create(weights(learner.model)) if state is None else state
    state, metrics = learner.update(state, learner.put(packed), count, divisor)
    return {name: float(value) for name, value in metrics.items() if not value.ndim}, state


def leaves(tree):
    return {path_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def same(found, expected, atol=0.0, rtol=0.0, leave_out=()):
    found, expected = leaves(found), leaves(expected)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if not any(word in name for word in leave_out):
            np.testing.assert_allclose(found[name], value, rtol=rtol, atol=atol, err_msg=name)


def moments(state):
    return state.opt_state[0].mu, state.opt_state[0].nu


# -- Layouts of one batch

WHOLE = {"rows": 8, "length": 16}
LAYOUTS = {
    "in micro-batches of 2 rows, two of them empty": {"rows": 2, "length": 16, "micro_batches": 6},
    "packed into long rows": {"rows": 1, "length": 48},
}
MTP = dataclasses.replace(tiny.MOE, segments=(config.Segment("moe", 1),), attention=tiny.DENSE.attention, mtp_depth=1)
"""Every term of the loss, in few layers, which are quick to compile."""


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind, normalize", [("sft", "token"), ("grpo", "sequence"), ("grpo", "token"), ("grpo", "constant")])
def test_an_update_does_not_depend_on_the_layout_of_its_batch(kind, normalize, layout):
    results = []
    for how in (WHOLE, LAYOUTS[layout]):
        packed, count, divisor = batch(kind, normalize=normalize, **how)
        results.append(updated(trainer(kind, MTP, how["rows"], how["length"]), packed, count, divisor))
        assert count == {8: 1, 2: 4, 1: len(packed.tokens)}[how["rows"]]
    (expected, state), (found, other) = results
    assert expected["update/skipped"] == 0 and expected["grad/norm"] > OPTIMIZER.clip_norm
    same(found, expected, rtol=1e-5, atol=1e-6)
    same(moments(other), moments(state), rtol=1e-4, atol=1e-6)
    same(other.params, state.params, atol=1e-5)


def test_answers_that_share_a_prompt_are_trained_as_with_prompts_of_their_own():
    """The policy, KL and multi-token-prediction terms and every gradient."""
    model = dataclasses.replace(tiny.DENSE, mtp_depth=1)
    expected, state = updated(trainer("grpo", model), *batch("grpo", **WHOLE))
    packed, count, divisor = batch("grpo", rows=2, length=40, group=4)
    assert (packed.segments > 0).sum() < (batch("grpo", **WHOLE)[0].segments > 0).sum()
    found, other = updated(trainer("grpo", model, 2, 40), packed, count, divisor)
    same(found, expected, rtol=1e-5, atol=1e-6)
    same(moments(other), moments(state), rtol=1e-4, atol=1e-6)


def test_normalize_decides_what_the_loss_is_divided_by():
    """The policy's part, from the definition: weights and denominators of the three papers."""
    sequences, trained, _, advantages, (sampler, old, _) = data()
    learner = trainer("grpo", MTP)
    packed, count, _ = batch("grpo", **WHOLE)
    with sharding.using(learner.mesh, sharding.TRAIN):
        logprobs = np.asarray(learner.logprobs(weights(MTP), learner.put(packed), count))[0]
    lengths = sorted(range(8), key=lambda i: -len(sequences[i]))  # one sequence a row, the longest first
    answers = []
    for row, i in enumerate(lengths):
        at = np.flatnonzero(trained[i])
        ratio = np.exp(logprobs[row, at - 1] - old[i][at])
        clipped = np.minimum(ratio * advantages[i], np.clip(ratio, 0.95, 1.05) * advantages[i])
        answers.append(clipped * np.minimum(np.exp(old[i][at] - sampler[i][at]), 1.1))
    by_paper = {
        "sequence": np.mean([a.mean() for a in answers]),
        "token": np.concatenate(answers).mean(),
        "constant": np.mean([a.sum() / CAP for a in answers]),
    }
    for normalize, expected in by_paper.items():
        found, _ = updated(learner, *batch("grpo", normalize=normalize, **WHOLE))
        assert found["loss/policy"] == pytest.approx(-expected, rel=1e-4)


def test_sft_is_the_mean_nll_of_the_completions_tokens():
    sequences, trained, _, _, _ = data()
    learner = trainer("sft", MTP)
    found, _ = updated(learner, *batch("sft", **WHOLE))
    tokens = np.zeros((8, 16), np.int32)
    for row, ids in zip(tokens, sequences, strict=True):
        row[: len(ids)] = ids

    @jax.jit
    def log_softmax(p):
        where, segments = jnp.broadcast_to(jnp.arange(16), (8, 16)), jnp.asarray(tokens > 0, jnp.int32)
        hidden, _, _ = decoder.forward(p, tokens, where, segments, model=MTP)
        return jax.nn.log_softmax(hidden @ p["head"]["kernel"])

    table = np.asarray(log_softmax(weights(MTP)))
    nll = [-table[i, t - 1, ids[t]] for i, ids in enumerate(sequences) for t in range(len(ids)) if trained[i][t]]
    assert found["loss/nll"] == pytest.approx(np.mean(nll), rel=1e-5)
    assert found["loss"] == pytest.approx(found["loss/nll"] + 0.1 * found["loss/balance"] + 0.3 * found["loss/mtp"], rel=1e-5)
    assert found["tokens"] == len(nll)


# -- Updates that are left out, parameters that are left alone


def test_an_update_that_is_not_finite_changes_nothing_but_its_count():
    learner = trainer("grpo", MTP)
    packed, count, divisor = batch("grpo", **WHOLE)
    poisoned = packed.advantages.copy()
    poisoned[tuple(np.argwhere(packed.mask)[3])] = np.nan
    before = learner.create(weights(MTP))
    kept = jax.tree.map(np.array, before)
    metrics, state = updated(learner, packed.replace(advantages=poisoned), count, divisor, before)
    assert metrics["update/skipped"] == 1 and int(state.step) == 1 and int(state.skipped) == 1
    same(state.replace(step=0, skipped=0), kept.replace(step=0, skipped=0))
    _, after = updated(learner, packed, count, divisor, state)
    _, clean = updated(learner, packed, count, divisor)
    same(after.replace(step=0, skipped=0), clean.replace(step=0, skipped=0))
    assert int(after.step) == 2 and int(after.skipped) == 1


def test_steps_too_small_for_bfloat16_are_added_up_in_float32():
    small = dataclasses.replace(OPTIMIZER, lr=1e-5)
    exact = trainer("sft", tiny.DENSE, optimizer=small)
    rounded = trainer("sft", dataclasses.replace(tiny.DENSE, param_dtype="bfloat16"), optimizer=small)
    state = rounded.create(weights(rounded.model))
    packed = batch("sft", **WHOLE)
    for _ in range(3):
        _, state = updated(rounded, *packed, state)
    expected = exact.create(jax.tree.map(lambda x: x.astype(jnp.float32), weights(rounded.model)))
    for _ in range(3):
        _, expected = updated(exact, *packed, expected)
    assert expected.master is None
    same(state.master, expected.params, atol=2e-6)
    same(state.params, jax.tree.map(lambda x: x.astype(jnp.bfloat16), state.master))
    began = leaves(weights(rounded.model))
    assert min(np.abs(m - began[name]).max() for name, m in leaves(state.master).items()) > 1e-5
    assert all(np.mean(value == began[name]) > 0.5 for name, value in leaves(state.params).items())  # and yet they stand still


def test_frozen_parameters_stay_as_they_are_and_have_no_moments():
    learner = trainer("sft", tiny.DENSE, frozen=("embed", r"attention/[qk]$", "final_norm"))
    before = weights(tiny.DENSE)
    _, state = updated(learner, *batch("sft", **WHOLE))
    frozen = {name for name in leaves(before) if any(word in name for word in ("embed", "attention/q", "attention/k", "final"))}
    assert len(frozen) == 4
    for name, value in leaves(state.params).items():
        assert np.array_equal(value, leaves(before)[name]) == (name in frozen), name
    for moment in moments(state):
        assert leaves(moment).keys() == leaves(before).keys() - frozen


def test_the_routers_bias_moves_by_the_rule_and_not_by_the_gradient():
    """V3, section 2.1.2: down where an expert had more than its share of the batch's tokens, up where it had less."""
    learner = trainer("grpo", MTP)
    before = weights(MTP)
    packed, count, divisor = batch("grpo", **WHOLE)
    _, state = updated(learner, packed, count, divisor)
    one = jax.tree.map(lambda x: jnp.asarray(x[0]), packed)

    @jax.jit
    def loads(p):
        hidden, aux, _ = decoder.forward(p, one.tokens, one.positions, one.segments, model=MTP)
        ahead, more = decoder.mtp(p, hidden, one.tokens, one.positions, one.segments, model=MTP)
        return aux.load[0][0], more.load[0]

    lengths = np.array([len(sequence) for sequence in data()[0]])
    # The module's last token of a sequence has no successor to be merged with, and counts nowhere.
    for load, place, tokens in zip(
        loads(before), ("segments/0/ff/router_bias", "mtp/layer/ff/router_bias"), (lengths, lengths - 1), strict=True
    ):
        load = np.asarray(load)
        assert load.sum() == 2 * tokens.sum() and len(set(load)) > 1
        moved = (leaves(state.params)[place] - leaves(before)[place]).reshape(-1)
        np.testing.assert_allclose(moved, 0.01 * np.sign(load.mean() - load), atol=1e-7)
        assert place not in leaves(moments(state)[0])


def test_a_frozen_router_keeps_its_bias_and_others_do_not():
    learner = trainer("grpo", MTP, frozen=("segments/.*router",))
    before = weights(MTP)
    _, state = updated(learner, *batch("grpo", **WHOLE))
    for name in ("segments/0/ff/router", "segments/0/ff/router_bias", "mtp/layer/ff/router", "mtp/layer/ff/router_bias"):
        assert np.array_equal(leaves(state.params)[name], leaves(before)[name]) == name.startswith("segments"), name


def test_a_balanced_layer_keeps_its_bias():
    layers = ({"ff": {}}, {"ff": {"router_bias": jnp.zeros((2, 4))}})
    load = jnp.array([[3.0, 3.0, 3.0, 3.0], [1.0, 2.0, 3.0, 2.0]])
    moved = balance_router({"segments": layers}, {"load": (None, load)}, 0.5)
    assert moved["segments"][1]["ff"]["router_bias"].tolist() == [[0, 0, 0, 0], [0.5, 0, -0.5, 0]]


# -- The optimizer


def test_the_schedule_by_hand():
    def rates(**settings):
        rate = optimizer.schedule(config.Optimizer(lr=1.0, **settings), 6)
        return [float(rate(i)) for i in range(7)]

    assert rates(warmup_steps=4) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1])
    assert rates(warmup_steps=0) == pytest.approx([1] * 7)
    cosine = [0.1 + 0.45 * (1 + math.cos(math.pi * x)) for x in (0, 1 / 3, 2 / 3, 1, 1)]
    assert rates(warmup_steps=2, lr_end=0.1) == pytest.approx([0.5, 1, *cosine])


def test_clipping_by_global_norm_by_hand():
    grads = {"a": jnp.array([3.0]), "b": (jnp.array([[4.0]]),)}
    for limit, scale in ((1.0, 0.2), (10.0, 1.0), (0.0, 1.0)):
        norm, factor = optimizer.global_norm(grads, limit)
        clipped = optimizer.scaled(grads, factor)
        assert float(norm) == 5
        assert clipped["a"].tolist() == pytest.approx([3 * scale]) and clipped["b"][0].tolist() == [pytest.approx([4 * scale])]
    norm, factor = optimizer.global_norm({"a": jnp.zeros(2)}, 1.0)
    assert float(norm) == 0 and optimizer.scaled({"a": jnp.zeros(2)}, factor)["a"].tolist() == [0, 0]


# -- A stage


@contextlib.contextmanager
def working(stage, path):
    """A stage's workspace whose metrics are kept in a list."""
    run = rundir.create("tiny", config.to_json(stage), path)
    try:
        with workspace.open_workspace(prepare(stage), run, "tiny") as work:
            work.display.console = Console(file=io.StringIO())
            yield work
    finally:
        run.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Six updates in three rounds: (rows of metrics, per round (params, reference) after it)."""
    stage = tiny.grpo(
        steps=6, reference_every=4, length_schedule=((4, 8),), sampling=config.Sampling(max_new_tokens=4, stop=tiny.STOP)
    )
    rows, after = [], []
    with working(stage, tmp_path_factory.mktemp("train") / "run") as work:
        original = grpo_stage.end_of_round

        def end_of_round(work, began):
            original(work, began)
            after.append(jax.tree.map(np.array, (work.state.params, work.state.reference)))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(grpo_stage, "end_of_round", end_of_round)
            patch.setattr(work.metrics, "write", lambda step, values: rows.append({"step": step, **values}))
            grpo_stage.train(work)
    return rows, after


def test_the_ratio_of_a_rounds_first_update_is_1_and_of_its_second_is_not(run):
    rows, _ = run
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all(abs(row["ratio"] - 1) < 1e-6 and row["clip/low"] == row["clip/high"] == 0 for row in rows[::2])
    assert all(abs(row["ratio"] - 1) > 1e-4 for row in rows[1::2])
    assert all(row["sampler/logprob_diff_max"] < 1e-4 for row in rows)


def test_the_reference_becomes_the_policy_every_so_many_steps(run):
    rows, after = run
    assert rows[0]["kl"] == 0 and all(row["kl"] > 1e-3 for row in rows[1:4])
    policy, reference = zip(*after, strict=True)  # after steps 2, 4 and 6
    same(reference[1], policy[1])
    same(reference[2], policy[1])
    assert not np.array_equal(leaves(reference[0])["head/kernel"], leaves(policy[0])["head/kernel"])
    assert rows[4]["kl"] < 1e-6 < 1e-3 < rows[5]["kl"]


def test_the_length_schedule_holds_from_its_step(run):
    rows, _ = run
    assert max(row["length/max"] for row in rows[:4]) == 4
    assert max(row["length/max"] for row in rows[4:]) == 8
