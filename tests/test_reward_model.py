"""Reward models: what they learn, that a resume leaves no trace, and how their scores join the rewards of RL."""

from __future__ import annotations

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from random_models import jit

from r1jax import cli, config, loading, sharding
from r1jax import params as parameters
from r1jax.config import Preference
from r1jax.data.preferences import encode
from r1jax.data.template import Template
from r1jax.eval.reward_model import Judge, open_judge
from r1jax.models import scalar
from r1jax.stages import pipeline
from r1jax.stages.prepare import prepare

REWARD = f"{tiny.FILE}:checksum"


def train(stage, run, **options):
    assert pipeline.train(stage, name="run", run_dir=str(run), **options) == 0
    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Reward models of pairs and of labels."""
    at = tmp_path_factory.mktemp("judges")
    checkpoint = config.Checkpoint(every=10)
    point = tiny.judge(form="pointwise", reads="response", sources=(tiny.labelled(),), steps=20, checkpoint=checkpoint)
    pairs = tiny.judge(steps=20, checkpoint=checkpoint)
    return {"pairwise": train(pairs, at / "pairs"), "pointwise": train(point, at / "labels")}


@pytest.mark.parametrize("form", ["pairwise", "pointwise"])
def test_a_preference_is_learned(trained, form):
    """Digits are better than letters: of 64 prompts and answers that were not trained on."""
    rows = tiny.metrics(trained[form])
    before, after = (row for row in rows if "eval/accuracy" in row)
    assert after["eval/accuracy"] > 0.9 > before["eval/accuracy"] and after["eval/loss"] < before["eval/loss"]
    last = [row for row in rows if "loss" in row][-1]
    assert last["preference/accuracy"] > 0.7 and last["preference/good"] > last["preference/bad"]
    if form == "pairwise":
        assert last["preference/margin"] == pytest.approx(last["preference/good"] - last["preference/bad"], abs=1e-4)
        assert abs(last["length/chosen"] / last["length/rejected"] - 1) < 0.05


def test_a_resumed_run_is_the_uninterrupted_one(trained, tmp_path):
    """As a kill after step 13 leaves it: the checkpoint of step 10 and lines past it."""
    run = shutil.copytree(trained["pairwise"], tmp_path / "pairs")
    (run / "finished.json").unlink()
    shutil.rmtree(run / "checkpoints/20")
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(b"".join(line for line in lines if json.loads(line)["step"] <= 13))
    train(tiny.judge(steps=20, checkpoint=config.Checkpoint(every=10)), run, profile=(12, 12))
    assert list((run / "profile").rglob("*.xplane.pb"))
    assert tiny.metrics(run) == tiny.metrics(trained["pairwise"])
    mesh = sharding.make_mesh(config.Mesh(fsdp=1))
    one, other = (Judge(open_judge(str(path)), mesh).fingerprint for path in (run, trained["pairwise"]))
    assert one == other != Judge(open_judge(f"{run}@10"), mesh).fingerprint


@pytest.mark.parametrize("form", ["pairwise", "pointwise"])
def test_scores_are_the_values_after_the_end_token_whatever_lies_beside(trained, form):
    """Answers of many lengths together, against each in a row of its own."""
    opened = open_judge(str(trained[form]))
    texts = [f"<think>{'t' * n}</think>{'7a' * n}" for n in (1, 9, 20, 2, 17)]
    prompts = [str(n) for n in range(5)]
    mesh = sharding.make_mesh(config.Mesh(fsdp=1))
    scores = Judge(opened, mesh).scores(prompts, texts)
    template, specs = Template(opened.text, opened.tokenizer), scalar.specs(opened.model)
    params = opened.load(specs, sharding.param_shardings(specs, mesh, sharding.TRAIN), lambda done, total: None)
    value = jit(scalar.values, static_argnames="model")
    places = jnp.arange(96)[None]
    for prompt, text, score in zip(prompts, texts, scores, strict=True):
        ids, _ = encode(prompt, text, "summary" if form == "pairwise" else "response", template, opened.tokenizer)
        alone = jnp.asarray(np.pad(ids, (0, 96 - len(ids))))[None]
        values, _ = value(params, alone, places, (places < len(ids)).astype(jnp.int32), model=opened.model)
        expected = float(values[0, len(ids) - 1])
        assert score.value == pytest.approx(expected if form == "pairwise" else 1 / (1 + np.exp(-expected)), abs=1e-4)


def test_values_that_are_no_numbers_have_a_status(trained):
    opened = open_judge(str(trained["pairwise"]))
    judge = Judge(opened, sharding.make_mesh(config.Mesh(fsdp=1)))
    judge._params = {**judge._params, "value": jax.tree.map(lambda x: x * jnp.nan, judge._params["value"])}
    (score,) = judge.scores(["1"], ["2"])
    assert (score.value, score.status) == (0.0, "invalid") and "gives nan" in score.why


def test_the_reward_command_takes_a_run_and_others_refuse_it(trained, tmp_path, capsys):
    data, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows = [{"prompt": str(i), "completion": said * 4, "answer": i} for i, said in enumerate("7a" * 200)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    name = f'model{{"run":"{trained["pairwise"]}"}}'
    command = ["reward", "--data", str(data), "--out", str(out), "--workers.count", "1", "--rewards"]
    assert cli.main([*command, name, REWARD]) == 0
    found = [json.loads(line) for line in out.read_text().splitlines()]
    judge = Judge(open_judge(str(trained["pairwise"])), sharding.make_mesh(config.Mesh(fsdp=1)))
    expected = judge.scores([r["prompt"] for r in rows[:8]], [r["completion"] for r in rows[:8]])
    assert [list(row["rewards"]) for row in found] == [[name, REWARD]] * len(rows)
    np.testing.assert_allclose([r["rewards"][name] for r in found[:8]], [s.value for s in expected], rtol=1e-5, atol=1e-5)
    assert [r["rewards"][REWARD] for r in found] == [tiny.checksum("", r["completion"], {}) for r in rows]
    good, bad = ([r["rewards"][name] for r in found[i::2]] for i in range(2))
    assert np.mean(np.greater(good, bad)) > 0.9, np.mean(np.greater(good, bad))
    capsys.readouterr()
    for bad_name, said in [
        ('model{"path":"x"}', 'write a reward model as model{"run":"RUN"}'),
        ('model{"run":"nowhere"}', "nowhere"),
    ]:
        assert cli.main([*command, bad_name]) == 2
        assert said in capsys.readouterr().err
    assert cli.main(["generate", "--model", str(trained["pairwise"]), "--prompt", "1"]) == 2
    assert "is a reward model, which writes no text" in capsys.readouterr().err
    with pytest.raises(config.ConfigError, match="trained no reward model|is no run"):
        loading.open_model(str(tmp_path), head=True)


# -- In reinforcement learning


def test_the_memory_table_counts_reward_models_and_no_sampler_for_their_training(trained):
    found = prepare(rl(trained)).memory
    whole = 4 * parameters.count(scalar.specs(tiny.MOE))
    assert found.judges == 2 * whole and found.resident >= found.judges + found.weights
    own = prepare(tiny.judge()).memory
    assert own.weights == whole and own.sampler == own.cache == 0


def rl(judges, **changes) -> config.GRPO:
    """Six rounds of one update; the general source has half of the rows."""
    rewards = {REWARD: 1.0}
    sources = tuple(config.Source(path=f"{tiny.FILE}:rows", name=name, rewards=rewards) for name in ("rules", "general"))
    preference = (
        Preference(name="liked", model=f"{judges['pairwise']}@20", sources=("general",), weight=0.5, last_steps=3),
        Preference(name="safe", model=str(judges["pointwise"]), weight=-2.0, last_steps=2, rows="always"),
    )
    settings = dict(steps=6, questions=4, minibatches=1, sources=sources, preference=preference)
    return tiny.grpo(**settings | changes)


def test_preferences_count_in_the_last_steps_for_their_sources_alone(trained, tmp_path):
    run = train(rl(trained), tmp_path / "rl")
    samples = tiny.samples(run)
    assert len(samples) == 6 * 4 * 4
    judges = {
        form: Judge(open_judge(str(path)), sharding.make_mesh(config.Mesh(fsdp=1))) for form, path in trained.items()
    }
    seen = set()
    for s in samples:
        asked = {"liked"} if s["step"] > 3 and s["source"] == "general" else set()
        asked = asked | ({"safe"} if s["step"] > 4 else set())
        assert set(s["rewards"]) == {REWARD} | asked, s["step"]
        expected = tiny.checksum("", s["completion"], {})
        for name, form, weight in (("liked", "pairwise", 0.5), ("safe", "pointwise", -2.0)):
            if name in asked:
                (score,) = judges[form].scores([s["prompt"]], [s["completion"]])
                assert s["rewards"][name]["value"] == pytest.approx(score.value, abs=1e-4)
                expected += weight * score.value
        assert s["reward"] == pytest.approx(expected, abs=1e-3)
        seen.add((s["step"], s["source"]))
    assert {step for step, source in seen if source == "general"} == {4, 5, 6}
    metrics = [row for row in tiny.metrics(run) if "loss" in row]
    assert ["reward/liked" in row for row in metrics] == [False] * 3 + [True] * 3
    assert ["reward/safe" in row for row in metrics] == [False] * 4 + [True] * 2
    liked = [s["rewards"]["liked"]["value"] for s in samples if s["step"] == 5 and "liked" in s["rewards"]]
    assert metrics[4]["reward/liked"] == pytest.approx(np.mean(liked), abs=1e-5)
    ledger = json.loads((run / "ledger.json").read_text())
    assert ledger["phases"]["preference"]["flops"] > 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"preference": (Preference(model="x", sources=("other",)),)}, "no source is called 'other'"),
        ({"preference": (Preference(name=REWARD, model="x"),)}, "a source has a reward of that name"),
        ({"preference": (Preference(model="x"), Preference(model="y"))}, "preferences share a name"),
        ({"preference": (Preference(model="x", last_steps=3),)}, "every source waits for the last steps"),
        (
            {"preference": (Preference(model="x", sources=("general",), last_steps=1),), "minibatches": 2},
            "no round begins in the last 1 of 6 steps, for the last round makes 2",
        ),
    ],
)
def test_preferences_that_cannot_be(changes, said):
    with pytest.raises(config.ConfigError, match=said):
        rl({"pairwise": "a", "pointwise": "b"}, **changes)


def test_settings_of_a_reward_model_that_cannot_be():
    for changes, said in [
        ({"lora": config.LoRA(rank=2), "init": "x", "model": None}, "is trained whole"),
        ({"export": config.Export(every=1)}, "no model that other engines load"),
        ({"form": "pointwise", "margin": 1.0}, "form 'pointwise' has no pairs"),
        ({"length_balance": 1.0}, "length_balance in"),
    ]:
        with pytest.raises(config.ConfigError, match=said):
            tiny.judge(**changes)
    with pytest.raises(config.ConfigError, match="in model a reward model"):
        Preference()
