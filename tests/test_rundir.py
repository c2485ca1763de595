"""The rules by which a run directory is made, refused and resumed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from r1jax import config, rundir

STAGE = config.to_json(config.GRPO(model=config.Model(), steps=100))


@dataclass(frozen=True)
class TwoStages(config.Pipeline):
    zero_sft: config.SFT = field(default_factory=lambda: config.SFT(model=config.Model(), steps=10))
    grpo: config.GRPO = field(default_factory=lambda: config.GRPO(init="zero_sft", steps=20))


PIPELINE = config.to_json(TwoStages())


def changed(json_config: dict, place: str, value) -> dict:
    first, _, rest = place.partition(".")
    return json_config | {first: changed(json_config[first], rest, value) if rest else value}


def refusal(path: Path, json_config: dict) -> str:
    with pytest.raises(config.ConfigError) as error:
        rundir.open_or_resume(path, json_config)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def path(tmp_path) -> Path:
    """A run that has saved something."""
    rundir.create("x", STAGE, tmp_path / "run").close()
    (tmp_path / "run/checkpoints/3").mkdir(parents=True)
    return tmp_path / "run"


def test_a_new_run_has_a_dated_directory_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = rundir.create("quick", STAGE), rundir.create("quick", STAGE)
    for run in (first, second):
        assert run.path.parent == Path("runs") and run.path.name.startswith("quick-20")
        assert json.loads((run.path / "config.json").read_text()) == STAGE
        run.close()
    assert first.path != second.path


def test_a_directory_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "run", tmp_path / "file"):
        assert "--run-dir" in refusal(path, STAGE) and str(path) in refusal(path, STAGE)


def test_a_directory_of_other_things_is_refused_and_left_as_it_was(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert "already holds notes.txt" in refusal(tmp_path, STAGE)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')  # a Hugging Face directory
    assert not rundir.is_run(tmp_path) and "already holds config.json" in refusal(tmp_path, STAGE)


def test_an_empty_directory_or_one_left_by_a_kill_becomes_a_run(tmp_path):
    for name in (".lock", ".config.json.part"):
        (tmp_path / name).write_text("12")
    rundir.open_or_resume(tmp_path, STAGE).close()
    assert rundir.is_run(tmp_path)


def test_the_same_config_resumes(path):
    run = rundir.open_or_resume(path, STAGE)
    assert run.config == STAGE and run.path == path
    run.close()


def test_a_changed_field_is_refused_by_name_with_both_values(path):
    message = refusal(path, changed(changed(STAGE, "optimizer.lr", 0.5), "group", 4))
    assert f"optimizer.lr was {STAGE['optimizer']['lr']}, now 0.5" in message and "group was 16, now 4" in message
    assert "steps" not in message.split("A resumed run")[0]
    assert json.loads((path / "config.json").read_text()) == STAGE
    rundir.open_or_resume(path, STAGE).close()  # the refusal has given the lock back


def without(json_config: dict, *places: str) -> dict:
    """As a version wrote it that did not have these fields yet."""
    found = json.loads(json.dumps(json_config))
    for place in places:
        *parents, last = place.split(".")
        at = found
        for name in parents:
            at = at[name]
        del at[last]
    return found


def test_a_run_from_before_a_field_was_there_has_its_default(path):
    newer = ("partial_rollouts", "engine.mesh", "mesh.auto")
    older = without(STAGE, *newer) | {"commits": {"init": "abc"}}
    (path / "config.json").write_text(json.dumps(older))
    assert not rundir.changes(path, STAGE)
    message = refusal(path, changed(changed(STAGE, "partial_rollouts", 0.5), "group", 4))
    assert "with another config: group was 16, now 4; partial_rollouts was 0.0, now 0.5." in message
    rundir.open_or_resume(path, STAGE).close()
    # A field that is no more is a change, and so is what it says of the others.
    (path / "config.json").write_text(json.dumps(older | {"warmth": 3}))
    assert "warmth was 3, now null" in refusal(path, STAGE)


def test_so_has_each_stage_of_a_pipeline(tmp_path):
    path = tmp_path / "p"
    rundir.create("p", without(PIPELINE, "bill", "grpo.partial_rollouts", "zero_sft.overlap"), path).close()
    rundir.create("grpo", without(PIPELINE["grpo"], "partial_rollouts"), path / "grpo").close()
    (path / "grpo/checkpoints/3").mkdir(parents=True)
    assert not rundir.changes(path / "grpo", PIPELINE["grpo"])
    rundir.open_or_resume(path, PIPELINE).close()
    rundir.open_or_resume(path / "grpo", PIPELINE["grpo"]).close()
    assert "partial_rollouts was 0.0, now 1.0" in refusal(path / "grpo", changed(PIPELINE["grpo"], "partial_rollouts", 1.0))


def test_fields_that_are_safe_may_change_and_are_written_down(path):
    new = changed(changed(changed(STAGE, "steps", 300), "eval.every", 7), "checkpoint.keep", 9)
    rundir.open_or_resume(path, new).close()
    assert json.loads((path / "config.json").read_text()) == new
    assert "eval.every was 7, now 50" in refusal_with(path, STAGE, safe=("steps", "checkpoint"))


def refusal_with(path: Path, json_config: dict, safe: tuple[str, ...]) -> str:
    with pytest.raises(config.ConfigError) as error:
        rundir.open_or_resume(path, json_config, safe)
    return str(error.value)


def test_a_pipeline_takes_any_config_that_has_the_stages_it_had(tmp_path):
    """What becomes of a stage that changed is decided for each: tests/test_decide.py."""
    rundir.create("p", PIPELINE, tmp_path / "p").close()
    for stage in ("zero_sft", "grpo"):
        (tmp_path / "p" / stage / "checkpoints/3").mkdir(parents=True)
    more = {**PIPELINE, "rl2": PIPELINE["grpo"]}
    for new in (changed(changed(PIPELINE, "zero_sft.batch", 11), "grpo.seed", 3), more):
        rundir.open_or_resume(tmp_path / "p", new).close()
        assert json.loads((tmp_path / "p/config.json").read_text()) == new
    assert "its stages are zero_sft, grpo, rl2, not zero_sft, grpo" in refusal(tmp_path / "p", PIPELINE)
    assert json.loads((tmp_path / "p/config.json").read_text()) == more
    single = PIPELINE["grpo"]
    assert "not grpo" in refusal(tmp_path / "p", single)


def test_a_stage_of_a_pipeline_is_as_strict_as_any(tmp_path):
    path = tmp_path / "p/zero_sft"
    rundir.create("p", PIPELINE["zero_sft"], path).close()
    new = changed(PIPELINE["zero_sft"], "batch", 4)
    rundir.open_or_resume(path, new).close()  # nothing is saved yet
    (path / "checkpoints/10").mkdir(parents=True)
    assert "batch was 4, now 128" in refusal(path, PIPELINE["zero_sft"])
    rows = config.to_json(config.RejectionSampling(init="zero_sft"))
    assert "is a run of another config: its stages are sft, not rejection_sampling" in refusal(path, rows)


def test_a_stage_that_makes_rows_may_change_its_workers_alone_once_it_has_answers(tmp_path):
    rows = config.to_json(config.RejectionSampling(init="zero_sft"))
    rundir.create("r", rows, tmp_path / "r").close()
    rundir.open_or_resume(tmp_path / "r", changed(rows, "samples", 2)).close()
    rundir.open_or_resume(tmp_path / "r", rows).close()
    assert rundir.last_saved(tmp_path / "r") == ""
    (tmp_path / "r/samples.jsonl").write_text("{}\n")
    assert "samples was 4, now 2" in refusal(tmp_path / "r", changed(rows, "samples", 2))
    rundir.open_or_resume(tmp_path / "r", changed(rows, "workers.count", 5)).close()
    assert rundir.last_saved(tmp_path / "r") == "its answers"
    with pytest.raises(config.ConfigError, match="made rows, no model; they are in .*rows.jsonl"):
        rundir.last_stage(tmp_path / "r")


def test_a_finished_run_is_unfinished_by_more_steps_only(path):
    run = rundir.open_or_resume(path, STAGE)
    assert run.finished is None
    run.finish(100)
    run.close()
    for new in (STAGE, changed(STAGE, "eval.every", 3), changed(STAGE, "steps", 50), STAGE | {"steps": 50}):
        run = rundir.open_or_resume(path, new)
        assert run.finished["step"] == 100 and run.finished["time"]
        run.close()
    run = rundir.open_or_resume(path, changed(STAGE, "steps", 101))
    assert run.finished is None
    run.close()


def test_what_was_found_is_kept_in_the_config_and_is_no_setting(path):
    run = rundir.open_or_resume(path, STAGE)
    run.record({}, {"sources.a": "sha256:1"})
    assert json.loads((path / "config.json").read_text()) == {**STAGE, "digests": {"sources.a": "sha256:1"}}
    run.record({"init": "a" * 40}, {"sources.a": "sha256:2"})
    run.close()
    assert json.loads((path / "config.json").read_text()) == {
        **STAGE, "commits": {"init": "a" * 40}, "digests": {"sources.a": "sha256:2"},
    }
    rundir.open_or_resume(path, STAGE).close()


HOLD = """
import sys
from pathlib import Path
from r1jax import config, rundir
run = rundir.open_or_resume(Path(sys.argv[1]), config.to_json(config.GRPO(model=config.Model(), steps=100)))
print("held", flush=True)
sys.stdin.read()
"""


def test_two_processes_do_not_train_in_one_directory(path):
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, path], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    message = refusal(path, changed(STAGE, "seed", 4))
    assert f"another process (pid {process.pid}) is training in {path}" in message
    process.kill()
    process.communicate()
    rundir.open_or_resume(path, STAGE).close()


def test_names_of_runs():
    assert rundir.parse_run_name("runs/a-1@120") == (Path("runs/a-1"), 120)
    assert rundir.parse_run_name("runs/a@best") == (Path("runs/a"), "best")
    assert rundir.parse_run_name("runs/a") == (Path("runs/a"), None)
    assert rundir.parse_run_name("org/name@main") == (Path("org/name@main"), None)
    assert rundir.parse_run_name("a@b/run@7") == (Path("a@b/run"), 7)


def test_the_last_stage_is_the_last_one_with_a_checkpoint(tmp_path, path):
    pipeline = rundir.create("p", PIPELINE, tmp_path / "p")
    with pytest.raises(config.ConfigError, match="no checkpoint yet"):
        rundir.last_stage(pipeline.path)
    # zero_sft comes first in the config, and last in the alphabet.
    for stage, step in (("zero_sft", "10"), ("grpo", ".saving-5")):
        (pipeline.path / stage / "checkpoints" / step).mkdir(parents=True)
    assert rundir.last_stage(pipeline.path) == pipeline.path / "zero_sft"
    (pipeline.path / "grpo" / "checkpoints" / "5").mkdir()
    assert rundir.last_stage(pipeline.path) == pipeline.path / "grpo"
    assert rundir.last_stage(path) == path
    pipeline.close()
