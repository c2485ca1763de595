"""A run that was killed, pre-empted and finished too early ends where an uninterrupted one does."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from r1jax import cli, config, sharding
from r1jax.checkpoint import Checkpointer
from r1jax.data.sources import Mixture, load
from r1jax.params import path_name
from r1jax.stages.pipeline import PREEMPTED
from r1jax.train.update import Trainer

HERE = Path(__file__).parent
LONG = 600  # seconds; on an idle machine a piece takes 10
pytestmark = pytest.mark.timeout(3 * LONG)
CONFIG = "import test_resume\n\n\ndef config():\n    return test_resume.settings()\n"


def settings():
    held_out = config.Eval(every=4, limit=2, final_samples=2, greedy=False)
    return tiny.pipeline(sft_steps=4, steps=8, eval=held_out, trap="trap.json")


def after():
    return tiny.sft(init="begun", model=None, steps=1, eval=config.Eval(every=0), export=config.Export(every=1))


class Runs:
    """A folder in which the command is run, with one compilation cache for all."""

    def __init__(self, path: Path):
        self.path = path
        (path / "small.py").write_text(CONFIG)
        self.env = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)]),
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_COMPILATION_CACHE_DIR": str(path / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }

    def train(
        self, run: str, *more: str, trap: tuple[str, int] | None = None, config: str = "small.py"
    ) -> subprocess.CompletedProcess:
        """``trap``: the process gets this signal when it reads the row with this prompt."""
        if trap is not None:
            (self.path / "trap.json").write_text(json.dumps({"prompt": trap[0], "signal": trap[1]}))
        command = [sys.executable, "-m", "r1jax", "train", config, "--run-dir", run, *more]
        done = subprocess.run(command, cwd=self.path, env=self.env, capture_output=True, text=True, timeout=LONG)
        assert not (self.path / "trap.json").exists()
        return done


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("resume"))


@pytest.fixture(scope="module")
def whole(runs):
    """A run without any interruption."""
    done = runs.train("whole")
    assert done.returncode == 0, done.stderr
    return runs.path / "whole"


def prompt_of(whole, step):
    """The first question of the round that begins with this step."""
    return next(row["prompt"] for row in tiny.samples(whole / "grpo") if row["step"] == step and not row.get("held_out"))


def prompt_of_sft(step):
    stage = settings().sft
    return Mixture([(s, load(s)) for s in stage.sources], stage.seed)[(step - 1) * stage.batch]["prompt"]


def state_of(run, stage):
    """Every array of the last checkpoint, and its meta."""
    trainer = Trainer(stage, tiny.MOE, sharding.make_mesh(stage.mesh))
    state, meta = Checkpointer(run / "checkpoints", read_only=True).restore(trainer.abstract())
    return {path_name(p): np.asarray(x) for p, x in jax.tree_util.tree_leaves_with_path(state)}, meta


def test_the_interrupted_run_is_the_uninterrupted_one(runs, whole, monkeypatch, capsys):
    path = runs.path / "pieces"

    done = runs.train("pieces", trap=(prompt_of_sft(3), signal.SIGTERM))
    assert done.returncode == PREEMPTED, done.stderr
    assert f"told to end: saved at step 3 of {Path('pieces', 'sft')}; go on with --run-dir pieces\n" in done.stdout
    assert [row["step"] for row in tiny.metrics(path / "sft")] == [1, 2, 3]
    assert json.loads((path / "ended.json").read_text())["how"] == "pre-empted"

    # In the round before the first checkpoint, but after the evaluation before step 1.
    done = runs.train("pieces", trap=(prompt_of(whole, 1), signal.SIGKILL))
    assert done.returncode == -signal.SIGKILL and "going on from step 3 of pieces/sft" in done.stdout
    assert not (path / "ended.json").exists()
    assert (path / "sft" / "finished.json").exists() and not list(path.glob("grpo/checkpoints/[0-9]*"))
    assert [row["step"] for row in tiny.metrics(path / "grpo")] == [0]

    # In the third round: the save after the second waited for that after the first.
    done = runs.train("pieces", trap=(prompt_of(whole, 5), signal.SIGKILL))
    assert done.returncode == -signal.SIGKILL and "sft: already finished at step 4" in done.stdout
    assert list(path.glob("grpo/checkpoints/[0-9]*"))
    with open(path / "grpo" / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "loss": 1')  # torn

    # Two steps fewer, with a SIGTERM in the last round, whose checkpoint keeps the score of its evaluation.
    done = runs.train("pieces", "--grpo.steps", "6", trap=(prompt_of(whole, 5), signal.SIGTERM))
    assert done.returncode == PREEMPTED and "going on from step" in done.stdout
    about = json.loads((path / "grpo" / "checkpoints" / "6" / "about.json").read_text())
    assert about["score"] is not None

    # Nothing is left to do but to say so.
    monkeypatch.chdir(runs.path)
    before = tiny.metrics(path / "grpo")
    for said in ("going on from step 6", "grpo: already finished at step 6; more --steps make it go on"):
        assert cli.main(["train", "small.py", "--run-dir", "pieces", "--grpo.steps", "6"]) == 0
        assert said in capsys.readouterr().out
        assert json.loads((path / "grpo" / "finished.json").read_text())["step"] == 6
        assert tiny.metrics(path / "grpo") == before

    done = runs.train("pieces")
    assert done.returncode == 0, done.stderr
    for name, stage in settings().stages().items():
        early_end = [row for row in tiny.metrics(path / name) if row["step"] == 6 and "eval/pass@1" in row]
        assert len(early_end) == (name == "grpo")
        assert [row for row in tiny.metrics(path / name) if row not in early_end] == tiny.metrics(whole / name)
        found, cursor = state_of(path / name, stage)
        expected, cursor_of_whole = state_of(whole / name, stage)
        assert cursor == cursor_of_whole and found.keys() == expected.keys()
        for leaf, value in expected.items():
            np.testing.assert_array_equal(found[leaf], value, err_msg=f"{name} {leaf}")
    rows = [row for row in tiny.samples(path / "grpo") if not (row["step"] == 6 and row.get("held_out"))]
    assert rows == tiny.samples(whole / "grpo")


def test_a_dry_run_tells_what_becomes_of_each_stage_and_touches_nothing(runs, whole, monkeypatch, capsys):
    monkeypatch.chdir(runs.path)
    before = {p: p.read_bytes() for p in whole.rglob("*.json*")}
    assert cli.main(["train", "small.py", "--run-dir", "whole", "--grpo.clip-high", "10", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "sft: keep, finished\ngrpo: rerun, clip_high was 0.2, now 10.0\n" in out and "grpo: 8 steps on" in out
    assert {p: p.read_bytes() for p in whole.rglob("*.json*")} == before


def test_a_run_goes_on_without_what_it_began_from_and_makes_up_a_lost_export(runs, whole, monkeypatch, capsys):
    monkeypatch.chdir(runs.path)
    Path("after.py").write_text("import test_resume\n\n\ndef config():\n    return test_resume.after()\n")
    shutil.copytree(whole / "sft", "begun")

    def train(*more):
        assert cli.main(["train", "after.py", "--run-dir", "after", *more]) == 0
        return capsys.readouterr().out

    train()
    kept = {p: p.read_bytes() for p in Path("after/model").iterdir()}
    shutil.rmtree("begun")
    assert "already finished at step 1" in train()
    train("--steps", "2")
    assert [row["step"] for row in tiny.metrics(Path("after"))] == [1, 2]
    assert {p: p.read_bytes() for p in Path("after/model").iterdir()} == kept

    # Killed between the last save and its export.
    Path("after/finished.json").unlink()
    exported = (Path("after/exports/2") / "model.safetensors").read_bytes()
    shutil.rmtree("after/exports/2")
    train("--steps", "2")
    assert (Path("after/exports/2") / "model.safetensors").read_bytes() == exported
