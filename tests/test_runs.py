"""How a run is and how it ended: ``r1jax runs``, and what the training loop leaves behind for it."""

import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
from rich.console import Console

from r1jax import cli, config, rundir
from r1jax.config.base import ConfigError
from r1jax.observe import runs
from r1jax.observe.metrics import MetricsWriter


def make(path: Path, settings=None, rows=({"eval/pass@1": 0.25}, {"reward/total": 0.5})) -> rundir.RunDir:
    run = rundir.create(path.name, config.to_json(settings or tiny.grpo()), path)
    run.close()
    with MetricsWriter(path, tensorboard=False) as writer:
        for step, row in enumerate(rows, 1):
            writer.write(step, row)
    return rundir.RunDir(path, run.config)


@pytest.mark.parametrize("block", [1, 3, 7, 1 << 16])
@pytest.mark.parametrize("text", ["", "torn", "a\n", "a\ntorn", "one\ntwo\nthree\n", "\n\nlong line here\nx\n"])
def test_lines_come_backwards(tmp_path, text, block):
    file = tmp_path / "lines"
    file.write_text(text)
    whole = [line.encode() for line in text.split("\n")[:-1] if line]
    assert list(runs.backwards(file, block)) == whole[::-1]


def test_each_end_is_told_apart(tmp_path):
    for how in ("guard", "pre-empted", "interrupted", "failed"):
        run = make(tmp_path / how)
        run.end(how, f"because of {how}")
        found = runs.read(run.path)
        assert (found.state, found.why, found.stages[0].state) == (how, f"because of {how}", how)
    assert runs.read(make(tmp_path / "killed").path).state == "killed"
    done = make(tmp_path / "done")
    done.finish(4)
    assert runs.read(done.path).state == "finished"


def test_a_held_run_goes_on_whatever_its_last_attempt_said(tmp_path):
    run = make(tmp_path / "run")
    run.end("guard", "no signal")
    held = rundir.open_or_resume(run.path, run.config)
    try:
        assert runs.read(run.path).state == "running"
        held.begin()
        assert runs.read(run.path).state == "running" and rundir.ended(run.path) is None
    finally:
        held.close()
    assert runs.read(run.path).state == "killed"


def test_looking_does_not_take_the_lock(tmp_path):
    run = make(tmp_path / "run")
    assert rundir.is_held(run.path) is False
    with open(run.path / ".lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert rundir.is_held(run.path) is True


def test_a_pipeline_is_where_its_last_begun_stage_is(tmp_path):
    run = make(tmp_path / "run", tiny.pipeline(), rows=())
    make(run.path / "sft", tiny.sft(), rows=({"loss": 3.0}, {"loss": 2.0})).finish(2)
    found = runs.read(run.path)
    assert [(s.name, s.state, s.step, s.steps) for s in found.stages] == [("sft", "finished", 2, 2), ("grpo", "waiting", 0, 4)]
    assert found.state == "killed" and found.current.name == "sft"
    make(run.path / "grpo").finish(4)
    assert runs.read(run.path).state == "finished"


def test_the_list_is_in_the_order_of_change_and_names_the_best_score(tmp_path, capsys):
    for age, name in enumerate(["new", "old"]):
        rows = ({"eval/pass@1": 0.25, "loss": 1.0}, {"loss": 0.5, "eval/pass@1": 0.375}, {"loss": 0.1})
        run = make(tmp_path / name, rows=rows)
        for file in run.path.iterdir():
            os.utime(file, (time.time() - 7200 * age, time.time() - 7200 * age))
    (tmp_path / "new" / "ended.json").write_text(json.dumps({"how": "guard", "why": "no signal\x1b[2J", "time": ""}))
    (tmp_path / "no-run").mkdir()
    assert cli.main(["runs", str(tmp_path), "--json"]) == 0
    old, new = json.loads(capsys.readouterr().out)
    assert old["run"].endswith("old") and 7100 < old["age_seconds"] < 7400
    assert new["state"] == "guard" and new["score"] == {"name": "eval/pass@1", "value": 0.375, "step": 2}
    assert (new["step"], new["steps"], new["kind"]) == (3, 4, "grpo")
    assert runs.show_runs(tmp_path, console=Console(width=40, highlight=False)) == 0
    shown = capsys.readouterr().out
    assert "stopped by a guard" in shown and "\\x1b[2J" in shown and "\x1b" not in shown
    assert "step 3/4" in shown and "pass@1 0.375" in shown and "2 h ago" in shown


def test_a_run_that_cannot_be_read_hides_no_other(tmp_path, capsys):
    make(tmp_path / "fine")
    make(tmp_path / "torn")
    (tmp_path / "torn" / "config.json").write_text('{"kind": "gr')
    assert cli.main(["runs", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert "fine" in out and "torn" not in out
    assert err.count("\n") == 1 and "torn/config.json is not JSON" in err


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match="nowhere is no folder"):
        runs.show_runs(tmp_path / "nowhere")


@pytest.mark.parametrize("words", [["runs", "RUNS"], ["report", "RUNS/run"], ["samples", "RUNS/run"]])
def test_looking_at_runs_loads_no_jax(tmp_path, words):
    make(tmp_path / "run")
    (tmp_path / "run" / "samples.jsonl").write_text("")
    program = "import sys; from r1jax import cli; assert not cli.main(sys.argv[1:]); assert 'jax' not in sys.modules"
    words = [word.replace("RUNS", str(tmp_path)) for word in words] + (["--no-figures"] if words[0] == "report" else [])
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
