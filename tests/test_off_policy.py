"""Answers of older weights: sampled a round ahead, or over several rounds; weighed by who sampled each token, and resumed."""

import contextlib
import dataclasses
import io
import shutil
import threading

import jax
import numpy as np
import pytest
import tiny
from random_models import draw
from rich.console import Console

from r1jax import config, rundir, sharding
from r1jax.config import ConfigError
from r1jax.eval import answers as asking
from r1jax.models import decoder
from r1jax.rollout import Sampler
from r1jax.rollout.jobs import Job, jobs_of, trajectories
from r1jax.stages import grpo, rollouts, workspace
from r1jax.stages.prepare import prepare
from r1jax.types import GOING

pytestmark = pytest.mark.timeout(900)  # seconds; on an idle machine a test takes 5 to 20
CAP = 14
LONGER = config.Sampling(max_new_tokens=CAP, stop=tuple("aeiou05XYZ"))
PROMPTS = [np.random.default_rng(3).integers(32, 127, n).tolist() for n in (4, 8, 1)]


# -- The sampler


def sampler_of(record, **engine):
    engine = config.Engine(**{"slots": 4, "max_prompt_tokens": 8, "chunk": 3} | engine)
    mesh = sharding.make_mesh(config.Mesh(fsdp=1))
    model = tiny.MOE if record else dataclasses.replace(tiny.MOE, mtp_depth=1)
    made = Sampler(
        model, engine, mesh, end_ids=tuple(range(200, 210)), seed=11, record_routes=record,
        text=lambda ids: bytes(i % 256 for i in ids).decode("latin-1"),
    )  # fmt: skip
    made.load(draw(model))
    return made


def begin(rounds):
    """Three answers to each prompt, of several caps; each question begins in a round of its own."""
    caps = [CAP, 5, 1, CAP, 9, CAP, CAP, CAP, 2]
    return [Job(i, PROMPTS[i // 3], 20 + i // 3, i % 3, caps[i], rounds[i // 3]) for i in range(9)]


def in_pieces(sampler, jobs, often):
    """Stops whenever ``often`` looks found some that ended, goes through what a checkpoint holds, and loads again."""
    breaks = 0
    while any(job.finish == GOING for job in jobs):
        sampler.load(draw(sampler.model), version=breaks)
        looks = iter(range(often))
        sampler.go_on(jobs, LONGER, lambda ended, looks=looks: next(looks, None) is None)
        jobs = jobs_of(trajectories(jobs), [job.round for job in jobs], [job.cap for job in jobs])
        breaks += 1
    return jobs, breaks


@pytest.mark.parametrize("often", [0, 1, 2])
def test_an_answer_that_was_broken_off_is_the_one_that_was_not(often):
    """Tokens, log-probs, routes and ends, wherever it was cut, with slots that are refilled and prompts that are shared."""
    sampler, rounds = sampler_of(True), (3, 3, 7)
    found, breaks = in_pieces(sampler, begin(rounds), often)
    assert breaks > 2
    ends = set()
    for i, prompt in enumerate(PROMPTS):
        three = found[3 * i : 3 * i + 3]
        whole = sampler.generate(
            [prompt], LONGER, samples=3, round=rounds[i], ids=[20 + i], caps=[job.cap for job in three]
        )  # fmt: skip
        got = trajectories(three)
        ends |= set(whole.finish.tolist())
        for name in ("tokens", "length", "finish", "loss_mask", "routes", "prompt_id", "sample"):
            np.testing.assert_array_equal(vars(got)[name], vars(whole)[name], err_msg=name)
        np.testing.assert_allclose(got.logprobs, whole.logprobs, atol=1e-5)
    assert ends == {0, 1, 2}
    several = [job for job in found if len(set(job.versions)) > 1]
    assert several and all(job.versions == sorted(job.versions) and len(job.versions) == len(job.tokens) for job in found)


def test_the_most_likely_answer_goes_on_under_drafts():
    speculative = sampler_of(False, speculative=True)
    greedy = dataclasses.replace(LONGER, temperature=0.0, stop=())
    jobs = begin((3, 3, 7))
    expected = begin((3, 3, 7))
    speculative.go_on(expected, greedy, lambda ended: False)
    looks = 0
    while any(job.finish == GOING for job in jobs):
        speculative.go_on(jobs, greedy, lambda ended: True)
        looks += 1
    assert looks > 2 and [job.tokens for job in jobs] == [job.tokens for job in expected]


# -- The stage


@contextlib.contextmanager
def working(stage, path):
    run = rundir.open_or_resume(path, config.to_json(stage))
    with contextlib.closing(run), workspace.open_workspace(prepare(stage), run, "tiny") as work:
        work.display.console = Console(file=io.StringIO())
        yield work


def stage_of(**changes):
    """Answers of many lengths, and updates that change the policy much."""
    settings = {"model": tiny.DENSE, "steps": 8, "importance_cap": 1.05, "sampling": LONGER, "kl_beta": 0.0}
    settings |= {"sequence_length": 24, "micro_batch": 4, "optimizer": config.Optimizer(lr=0.03, warmup_steps=0)}
    return tiny.grpo(**settings | changes)


def policy(work):
    """A copy of the weights, which the next update will not take away."""
    return jax.tree.map(lambda x: x.copy(), work.state.params)


def scored(work, params, t):
    """float32[N, T]: log-probs of the sampled tokens under the weights, 0 elsewhere."""

    @jax.jit
    def run(params, tokens):
        where = jax.numpy.broadcast_to(jax.numpy.arange(tokens.shape[1]), tokens.shape)
        hidden, _, _ = decoder.forward(params, tokens, where, jax.numpy.ones_like(tokens), model=work.model)
        return jax.nn.log_softmax(decoder.logits(params, hidden, work.model))

    values = np.asarray(run(params, t.tokens))[:, :-1]
    values = np.take_along_axis(values, t.tokens[:, 1:, None], -1)[..., 0]
    return np.where(t.loss_mask, np.pad(values, ((0, 0), (1, 0))), 0)


def test_with_weights_that_stay_partial_rollouts_give_the_same_answers(tmp_path):
    """Each that is learned from is the one that a whole rollout gives, in the round in which its question came; some took
    several rounds, and no question comes twice."""
    stage = stage_of(partial_rollouts=0.75, engine=config.Engine(slots=8, max_prompt_tokens=8, chunk=2))
    with working(stage, tmp_path / "run") as work:
        came, late = {}, 0
        for number in range(5):
            before = work.cursor.row
            found = rollouts.answers(work, 4)
            came |= dict.fromkeys(range(before, work.cursor.row), number)
            names = [q.name for q in found.questions[::4]]
            assert len(names) == 4 and (found.trajectories.finish != GOING).all()
            assert found.trajectories.sample.tolist() == [0, 1, 2, 3] * 4
            for i, name in enumerate(names):
                begun = came.pop(name)
                late += begun < number
                rows = slice(4 * i, 4 * i + 4)
                t = work.sampler.generate([found.questions[4 * i].ids], LONGER, samples=4, round=begun, ids=[name])
                assert asking.sampled_ids(t) == asking.sampled_ids(jax.tree.map(lambda x: x[rows], found.trajectories))  # noqa: B023
                mask = found.trajectories.loss_mask[rows]
                np.testing.assert_allclose(found.trajectories.logprobs[rows][mask], t.logprobs[t.loss_mask], atol=1e-5)
                assert found.completions[4 * i : 4 * i + 4] == asking.texts(found.questions[rows], t, work.tokenizer)
                expected = [tiny.checksum("", text, {}) for text in found.completions[rows]]
                np.testing.assert_allclose(found.rewards[rows], expected, atol=1e-6)
            work.cursor.round += 1
        assert late > 2 and len(work.kept) == 3 and sorted(came) == sorted(group.question.name for group in work.kept)


def test_each_token_is_weighed_by_the_policy_that_made_it(tmp_path):
    """By hand, of answers that began under one policy and ended under another: rho is 1 and the loss is
    -mean_i A_i mean_t min(pi(t) / pi_of_t(t), cap)."""
    stage = stage_of(
        partial_rollouts=1.0, minibatches=1, questions=4, engine=config.Engine(slots=16, max_prompt_tokens=8, chunk=2)
    )
    with working(stage, tmp_path / "run") as work:
        policies = {}
        for _ in range(3):
            policies[work.step] = policy(work)
            grpo.play_round(work)
        now = policy(work)
        answers = rollouts.answers(work, 4)
        t = answers.trajectories
        made = sum(np.where(t.version == v, scored(work, p, t), 0) for v, p in (policies | {3: now}).items())
        several = [len(set(v[m].tolist())) > 1 for v, m in zip(t.version, t.loss_mask, strict=True)]
        assert any(several) and len(set(t.version[t.loss_mask].tolist())) > 1
        np.testing.assert_allclose(t.logprobs, made, atol=2e-5)
        advantages = np.linspace(-1, 1, 16).astype(np.float32)
        weights = np.minimum(np.exp(scored(work, now, t) - made), 1.05)
        lengths = t.loss_mask.sum(1)
        expected = -np.mean(advantages * (weights * t.loss_mask).sum(1) / lengths)
        batch, count, divisor = grpo.pack(work, answers, advantages, np.arange(16), first=True)
        _, metrics = work.trainer.update(work.state, batch, count, divisor)
        assert metrics["ratio"] == 1 and metrics["loss/policy"] == pytest.approx(expected, rel=1e-4)
        capped = (np.exp(scored(work, now, t) - made) > 1.05)[t.loss_mask].mean()
        assert metrics["sampler/importance_capped"] == pytest.approx(capped, abs=1e-6) and 0.02 < capped < 0.98
        ages = grpo.age_metrics(t, 3)
        by_hand = np.concatenate([3 - v[m] for v, m in zip(t.version, t.loss_mask, strict=True)])
        assert ages["rollout/age_mean"] == pytest.approx(by_hand.mean()) and ages["rollout/age_max"] == by_hand.max() > 0
        assert ages["rollout/partial"] == np.mean(several)


APART = {
    "mesh": config.Mesh(fsdp=2),
    "engine": config.Engine(slots=16, max_prompt_tokens=8, chunk=4, devices=4, mesh=config.Mesh(fsdp=2, tensor=2)),
}


@pytest.mark.parametrize("how", ["beside", "in turn", "on devices of its own"])
def test_a_round_learns_from_answers_of_the_weights_before_the_last_rounds_updates(tmp_path, how, monkeypatch):
    """Beside the updates: the first token of a round ahead waits here for an update to begin, and that for the token."""
    apart = APART if how == "on devices of its own" else {}
    stage = stage_of(one_step_off_policy=True, old_logprobs="sampler", importance_cap=0.0, steps=6, **apart)
    seen, rows, policies = [], [], {}
    with working(stage, tmp_path / "run") as work:
        assert work.aside is not None
        if how == "in turn":
            work.aside = None
        else:
            met = threading.Barrier(2, timeout=120)
            go_on, update, samples = work.sampler.go_on, work.trainer.update, iter([False, True, True])
            updates = iter([True, False, True, False, False, False])
            monkeypatch.setattr(work.sampler, "go_on", lambda *args: (next(samples) and met.wait(), go_on(*args)))
            monkeypatch.setattr(work.trainer, "update", lambda *args: (next(updates) and met.wait(), update(*args))[1])
        original = rollouts.answers
        monkeypatch.setattr(rollouts, "answers", lambda *args: seen.append(original(*args)) or seen[-1])
        monkeypatch.setattr(work.metrics, "write", lambda step, values: rows.append(values))
        for _ in range(3):
            policies[work.step] = policy(work)
            grpo.play_round(work)
        assert work.ahead is None  # the run is over
        for number, answers in enumerate(seen):
            t = answers.trajectories
            made_by = max(0, 2 * number - 2)
            assert (t.version[t.loss_mask] == made_by).all()
            np.testing.assert_allclose(t.logprobs, scored(work, policies[made_by], t), atol=2e-5)
            if number:
                assert np.abs(t.logprobs - scored(work, policies[2 * number], t)).max() > 0.01
        assert len({q.name for a in seen for q in a.questions}) == 12
    assert [row["rollout/age_mean"] for row in rows] == [0, 1, 2, 3, 2, 3]
    assert rows[0]["ratio"] == pytest.approx(1, abs=1e-5)
    assert all(abs(row["ratio"] - 1) > 1e-4 for row in rows[1:])


# -- Resuming


@pytest.mark.parametrize(
    "changes",
    [
        {"one_step_off_policy": True, "dynamic_sampling": 1},
        pytest.param(
            {"partial_rollouts": 0.75, "length_schedule": ((4, 12),), "model": tiny.MOE, "routing_replay": True},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["ahead", "partial"],
)
def test_a_resumed_run_is_the_one_that_was_not_interrupted(tmp_path, changes):
    """From a checkpoint in whose round one rollout is under way, or answers were kept. Nothing but it is left of the first."""
    stage = stage_of(engine=config.Engine(slots=8, max_prompt_tokens=8, chunk=2), kl_beta=0.1, steps=8, **changes)
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    with working(stage, whole) as work:
        for _ in range(2):
            grpo.play_round(work)
        assert (work.ahead is not None) == stage.one_step_off_policy and bool(work.kept) == (stage.partial_rollouts > 0)
        work.checkpoints.wait()
        shutil.copytree(whole, pieces, ignore=shutil.ignore_patterns(".lock"))
        grpo.train(work)
        expected = jax.tree.map(np.asarray, work.state.params)
    with working(stage, pieces) as work:
        assert work.step == 4
        grpo.train(work)
        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, work.state.params), expected)
    assert tiny.metrics(pieces) == tiny.metrics(whole) and len(tiny.metrics(whole)) == 8
    assert tiny.samples(pieces) == tiny.samples(whole)
    if stage.partial_rollouts:
        assert max(row["rollout/partial"] for row in tiny.metrics(whole)[4:]) > 0


# -- What makes no sense


def test_older_weights_are_corrected_for():
    for name, value in (("one_step_off_policy", True), ("partial_rollouts", 0.5)):
        with pytest.raises(ConfigError, match=f"^{name} learns from answers of older weights, and importance_cap is 0: set"):
            tiny.grpo(**{name: value})
        assert tiny.grpo(**{name: value}, old_logprobs="sampler").off_policy
    with pytest.raises(ConfigError, match=r"^partial_rollouts is -0.5; it must be >= 0"):
        tiny.grpo(partial_rollouts=-0.5)
