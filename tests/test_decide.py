"""Which stages of a pipeline are run, by what lies in its run directory. Nothing is trained here."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import tiny

from r1jax import config, rundir
from r1jax.stages import decide

RECIPE = tiny.Recipe()


def finish(run: Path, name: str, pipeline: config.Pipeline = RECIPE, content: str = "", step: int | None = None) -> None:
    """What a stage leaves that was run to its end, or to ``step``, with what now lies in the directory."""
    stage = pipeline.stages()[name]
    made = rundir.create(name, config.to_json(stage), run / name)
    made.record({}, {}, inputs={other: rundir.identity(run / other) for other in pipeline.inputs()[name]})
    if isinstance(stage, config.RejectionSampling):
        made.samples.write_text("{}\n")
        rundir.rows_of(made.path).write_text(f"rows {content}\n")
    else:
        checkpoint = made.checkpoints / str(step or stage.steps)
        checkpoint.mkdir(parents=True)
        (checkpoint / "digests-0-of-1").write_text(f"{name} {content}")
        (checkpoint / "about.json").write_text("{}")
    if step is None:
        made.finish(1 if isinstance(stage, config.RejectionSampling) else stage.steps)
    made.close()


@pytest.fixture
def run(tmp_path) -> Path:
    """A finished run."""
    rundir.create("recipe", config.to_json(RECIPE), tmp_path / "run").close()
    for name in RECIPE.stages():
        finish(tmp_path / "run", name)
    return tmp_path / "run"


def doing(run: Path | None, pipeline: config.Pipeline = RECIPE, *flags) -> dict[str, str]:
    return {name: decision.do for name, decision in decide.decide(pipeline, run, *flags).items()}


def with_stage(name: str, **changes) -> config.Pipeline:
    return dataclasses.replace(RECIPE, **{name: dataclasses.replace(getattr(RECIPE, name), **changes)})


KEPT = dict.fromkeys(RECIPE.stages(), "keep")


def test_a_stage_names_the_earlier_ones_whose_model_or_rows_it_takes():
    assert RECIPE.inputs() == {
        "zero": (), "cold": ("zero",), "dev": ("cold",), "judge": ("dev",), "student": ("cold",), "rl": ("dev", "judge")
    }  # fmt: skip


def test_all_of_a_new_run_is_run_and_nothing_of_a_finished_one(tmp_path, run):
    assert doing(None) == doing(tmp_path / "other") == dict.fromkeys(KEPT, "run")
    assert doing(run) == KEPT


@pytest.mark.parametrize(
    ("stage", "changes", "why", "rerun"),
    [
        ("zero", {"clip_high": 10.0}, "clip_high was 0.2, now 10.0", ["zero", "cold", "dev", "judge", "student", "rl"]),
        ("cold", {"samples": 5}, "samples was 4, now 5", ["cold", "dev", "judge", "student", "rl"]),
        ("dev", {"batch": 4}, "batch was 8, now 4", ["dev", "judge", "rl"]),
        ("student", {"seed": 3}, "seed was 0, now 3", ["student"]),
        ("rl", {"seed": 3}, "seed was 0, now 3", ["rl"]),
    ],
)
def test_a_changed_stage_and_exactly_what_depends_on_it_are_run_anew(run, stage, changes, why, rerun):
    found = decide.decide(with_stage(stage, **changes), run)
    assert {n: d.do for n, d in found.items()} == KEPT | dict.fromkeys(rerun, "rerun")
    assert found[stage].line(stage) == f"{stage}: rerun, {why}"
    if rerun[1:]:
        assert found[rerun[1]].why == f"it begins with what {stage} will make"


def test_fields_that_are_safe_change_nothing_and_more_steps_go_on(run):
    assert doing(run, with_stage("zero", checkpoint=config.Checkpoint(every=9), steps=1)) == KEPT
    assert doing(run, with_stage("cold", workers=config.Workers(count=3))) == KEPT
    longer = doing(run, with_stage("dev", steps=9))
    assert longer == KEPT | {"dev": "go on", "judge": "rerun", "rl": "rerun"}


def test_the_pipelines_seed_is_every_stages(run):
    assert set(doing(run, dataclasses.replace(RECIPE, seed=5)).values()) == {"rerun"}
    assert doing(run, dataclasses.replace(RECIPE, seed=0)) == KEPT
    assert doing(run, dataclasses.replace(RECIPE, bill=config.Bill(price_per_hour=2.0))) == KEPT


def test_a_stage_that_has_begun_goes_on_and_one_that_has_saved_nothing_begins(run):
    shutil.rmtree(run / "rl")
    finish(run, "rl", step=1)
    assert doing(run) == KEPT | {"rl": "go on"}
    shutil.rmtree(run / "rl/checkpoints")
    assert doing(run) == KEPT | {"rl": "run"}
    # The answers of a stage that makes rows are its checkpoint.
    (run / "cold/finished.json").unlink()
    assert doing(run)["cold"] == "go on"


def test_what_a_stage_began_with_is_told_by_content(run):
    """So it does not matter where an attempt was killed that ran an earlier stage anew."""
    rundir.put_aside(run / "cold")
    assert doing(run) == KEPT | {"cold": "run", "dev": "rerun", "judge": "rerun", "student": "rerun", "rl": "rerun"}
    finish(run, "cold", content="other")
    found = decide.decide(RECIPE, run)
    assert {n: d.do for n, d in found.items()} == KEPT | {"dev": "rerun", "judge": "rerun", "student": "rerun", "rl": "rerun"}
    assert found["dev"].why == "cold is no longer what it began with"
    # What was put aside can be put back.
    shutil.rmtree(run / "cold")
    (run / "cold.1").rename(run / "cold")
    assert doing(run) == KEPT


def test_what_a_finished_stage_made_may_be_deleted(run):
    shutil.rmtree(run / "zero/checkpoints")
    assert doing(run) == KEPT
    assert doing(run, with_stage("zero", seed=4))["zero"] == "rerun"


def test_from_uses_what_is_before_it_as_it_is_and_runs_itself_anew(run):
    changed = with_stage("zero", clip_high=10.0)
    rerun = KEPT | {"dev": "rerun", "judge": "rerun", "rl": "rerun"}
    assert doing(run, changed, "dev") == rerun
    assert doing(run, RECIPE, "dev") == rerun
    assert decide.decide(RECIPE, run, "dev")["dev"].why == "--from names it"
    # Once that was begun, the same command goes on.
    decide.note_asked(run, "dev")
    assert doing(run, RECIPE, "dev") == KEPT
    decide.note_asked(run, None)
    assert doing(run, RECIPE, "dev") == rerun


def test_from_needs_what_is_before_it(run):
    shutil.rmtree(run / "cold")
    with pytest.raises(config.ConfigError, match="dev needs cold, which is before --from dev and is not finished"):
        doing(run, RECIPE, "dev")
    shutil.rmtree(run / "student")
    assert doing(run, RECIPE, "rl")["student"] == "leave"


def test_until_leaves_what_is_after_it(run):
    changed = doing(run, with_stage("zero", clip_high=10.0), None, "cold")
    assert changed == {"zero": "rerun", "cold": "rerun", "dev": "leave", "judge": "leave", "student": "leave", "rl": "leave"}
    assert doing(None, RECIPE, None, "zero") == {"zero": "run"} | dict.fromkeys(list(KEPT)[1:], "leave")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("dv", None), "--from dv: no such stage; there are zero, cold, dev, judge, student, rl"),
        ((None, "x"), "--until x: no such stage"),
        (("rl", "dev"), "--from rl comes after --until dev"),
    ],
)
def test_stages_that_are_not_there(run, flags, said):
    with pytest.raises(config.ConfigError, match=said):
        doing(run, RECIPE, *flags)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"dev": tiny.sft(sources=(tiny.made("cold"),), eval=config.Eval(every=1))},
            "dev: stage:cold holds nothing out; name eval.sources",
        ),
        ({"dev": tiny.sft(sources=(tiny.made("rl"),))}, "source 'made' is 'rl', which is no stage before it; there are: cold"),
        ({"dev": tiny.sft(sources=(tiny.made("zero"),))}, "dev: source 'made' is 'zero', which makes a model, no rows"),
        ({"rl": tiny.grpo(init="cold", model=None)}, "rl: init is 'cold', which makes rows, no model"),
        ({"rl": tiny.grpo(init="judge", model=None)}, "rl: init is 'judge', which makes a reward model, no model"),
        (
            {"rl": tiny.grpo(init="dev", model=None, preference=(config.Preference(model="student"),))},
            "rl: preference 'helpful' is 'student', which makes a model, no reward model",
        ),
        ({"judge": tiny.judge(init="rl", model=None)}, "judge: init is 'rl', which is no stage before it; there are: zero"),
        ({"cold": tiny.rejection(init="rl@3")}, "cold: init is 'rl', which is no stage before it; there are: zero"),
        ({"cold": tiny.rejection(rewrite=config.Rewrite(model="dev"))}, "rewrite.model is 'dev', which is no stage before it"),
    ],
)
def test_inputs_that_cannot_be(changes, said):
    with pytest.raises(config.ConfigError, match=said):
        dataclasses.replace(RECIPE, **changes).inputs()


def test_nothing_is_deleted(run):
    before = (run / "dev/config.json").read_text()
    assert rundir.put_aside(run / "dev") == run / "dev.1"
    finish(run, "dev", content="second")
    assert rundir.put_aside(run / "dev") == run / "dev.2"
    assert (run / "dev.1/config.json").read_text() == before
    assert json.loads((run / "dev.1/finished.json").read_text())["step"] == 2
    assert (run / "dev.2/checkpoints/2/digests-0-of-1").read_text() == "dev second"


def test_what_a_resumed_run_keeps_of_its_inputs(run):
    """Writing a changed safe field down must not lose what the stage began with."""
    kept = rundir.inputs(run / "dev")
    assert kept == {"cold": rundir.identity(run / "cold")} and kept["cold"].startswith("sha256:")
    rundir.open_or_resume(run / "dev", config.to_json(with_stage("dev", steps=9).dev)).close()
    assert rundir.inputs(run / "dev") == kept
    assert rundir.inputs(run / "cold")["zero"].startswith("step 2, sha256:")
