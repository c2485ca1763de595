"""Answers of older weights: sampled a round ahead, or over several rounds; weighed by who sampled each token, and resumed."""

import contextlib
import dataclasses
import io

import jax
import numpy as np
import pytest
import tiny
from random_models import draw
from rich.console import Console

from r1jax import config, rundir, sharding
from r1jax.config import ConfigError
from r1jax.rollout import Sampler
from r1jax.rollout.jobs import Job, jobs_of, trajectories
from r1jax.stages import grpo, rollouts, workspace
from r1jax.stages.prepare import prepare
from r1jax.types import GOING

CAP = 14
LONGER = config.Sampling(max_new_tokens=CAP, stop=("0", "5"))
PROMPTS = [np.random.default_rng(3).integers(32, 127, n).tolist() for n in (4, 8, 1)]


@pytest.fixture(scope="module", autouse=True)
def quick_to_compile():
    with tiny.quick_to_compile():
        yield


# -- The sampler


def sampler_of(record, **engine):
    engine = config.Engine(**{"slots": 4, "max_prompt_tokens": 8, "chunk": 3} | engine)
    mesh = sharding.make_mesh(config.Mesh(fsdp=1))
    model = tiny.MOE if record else dataclasses.replace(tiny.MOE, mtp_depth=1)
    made = Sampler(
        model, engine, mesh, end_ids=(40, 41, 42), text=lambda ids: bytes(i % 256 for i in ids).decode("latin-1"), seed=11,
        record_routes=record,
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
    assert ends == {0, 1, 2} or ends == {0, 2}
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
    made = path.exists()
    run = rundir.open_existing(path, config.to_json(stage)) if made else rundir.create("tiny", config.to_json(stage), path)
    with contextlib.closing(run), workspace.open_workspace(prepare(stage), run, "tiny") as work:
        work.display.console = Console(file=io.StringIO())
        yield work


def stage_of(**changes):
    settings = {"steps": 8, "importance_cap": 1.05, "old_logprobs": "trainer", "sampling": LONGER, "sequence_length": 24}
    settings |= {"optimizer": config.Optimizer(lr=0.03, warmup_steps=0), "micro_batch": 4}
    return tiny.grpo(**settings | changes)
