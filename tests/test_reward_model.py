"""Reward models: what they learn, that a resume leaves no trace, and how their scores join the rewards of RL."""

from __future__ import annotations

import dataclasses

import pytest
import tiny

from r1jax import config
from r1jax.stages import pipeline

STAGE = tiny.judge()
MESH = config.Mesh(fsdp=1)


def train(stage, run, **more):
    assert pipeline.train(stage, name="run", run_dir=str(run), **more) == 0
    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Of pairs and of labels: runs to their end."""
    at = tmp_path_factory.mktemp("judges")
    point = tiny.judge(form="pointwise", reads="response", sources=(tiny.labelled(),), steps=30)
    return {"pairwise": train(tiny.judge(steps=30), at / "pairs"), "pointwise": train(point, at / "labels")}


@pytest.mark.parametrize("form", ["pairwise", "pointwise"])
def test_a_preference_is_learned(trained, form):
    """Digits are better than letters, over prompts and answers that were not trained on."""
    evals = [row for row in tiny.metrics(trained[form]) if "eval/accuracy" in row]
    assert evals[-1]["eval/accuracy"] > 0.9 > evals[0]["eval/accuracy"]
    last = [row for row in tiny.metrics(trained[form]) if "loss" in row][-1]
    assert last["preference/accuracy"] > 0.8 and last["preference/good"] > last["preference/bad"]
    print(evals)
