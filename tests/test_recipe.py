"""A pipeline with every kind of stage: what it makes, what is skipped and run anew, and that kills leave no trace."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from r1jax import cli, loading, rundir, sharding
from r1jax.checkpoint import Checkpointer
from r1jax.data import sft, sources
from r1jax.data.readable import fault
from r1jax.data.template import Template
from r1jax.params import path_name
from r1jax.stages.pipeline import PREEMPTED
from r1jax.train.update import Trainer

HERE = Path(__file__).parent
LONG = 900  # seconds; on an idle machine 40
pytestmark = pytest.mark.timeout(3 * LONG)
CONFIG = "import tiny\n\n\ndef config():\n    return tiny.Recipe()\n"
STAGES = tiny.Recipe().stages()
MADE = ("rows.jsonl", "statistics.json", "report.jsonl", "samples.jsonl")


class Runs:
    """A folder in which the command is run, with one compilation cache for all."""

    def __init__(self, path: Path):
        self.path = path
        (path / "recipe.py").write_text(CONFIG)
        self.env = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)]),
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_COMPILATION_CACHE_DIR": str(path / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }

    def start(self, run: str, *more: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "r1jax", "train", "recipe.py", "--run-dir", run, *more]
        log = open(self.path / f"{run}.log", "a")  # noqa: SIM115 (the process writes there)
        return subprocess.Popen(command, cwd=self.path, env=self.env, stdout=log, stderr=subprocess.STDOUT, text=True)

    def train(self, run: str, *more: str) -> str:
        """Runs to the end, and returns what was printed."""
        at = (self.path / f"{run}.log").stat().st_size if (self.path / f"{run}.log").exists() else 0
        code = self.start(run, *more).wait(LONG)
        said = (self.path / f"{run}.log").read_bytes()[at:].decode()
        assert code == 0, said
        return said


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="module")
def whole(runs) -> Path:
    """A run without any interruption."""
    said = runs.train("whole")
    assert "what it cost" in said and "zero" in said
    return runs.path / "whole"


def rows_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "rows.jsonl").read_text().splitlines()]


def content(run: Path) -> dict[Path, bytes]:
    """Every file that a command may only write if it does something."""
    return {p: p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file() and p.name not in (".lock", "ledger.json")}


def state_of(run: Path, name: str) -> dict[str, np.ndarray]:
    """Every array of the last checkpoint."""
    model = tiny.DENSE if name == "student" else tiny.MOE
    stage = STAGES[name]
    trainer = Trainer(stage, model, sharding.make_mesh(stage.mesh))
    state, _ = Checkpointer(run / "checkpoints", read_only=True).restore(trainer.abstract())
    return {path_name(p): np.asarray(x) for p, x in jax.tree_util.tree_leaves_with_path(state)}


def same(run: Path, other: Path) -> None:
    """The two runs have the same metrics but for the clock's, samples, rows, and weights, bit for bit."""
    for name in STAGES:
        assert tiny.metrics(run / name) == tiny.metrics(other / name), name
        if name == "cold":
            for file in MADE:
                assert (run / name / file).read_bytes() == (other / name / file).read_bytes(), file
            continue
        found, expected = state_of(run / name, name), state_of(other / name, name)
        assert found.keys() == expected.keys()
        for leaf, value in expected.items():
            np.testing.assert_array_equal(found[leaf], value, err_msg=f"{name} {leaf}")


# -- What it makes


def test_the_rows_are_the_right_and_readable_answers(whole):
    """Checked anew, from the texts alone."""
    rows, stage = rows_of(whole / "cold"), STAGES["cold"]
    answers = tiny.samples(whole / "cold")
    given = {row["prompt"] for row in tiny.rows("train")[:8]}
    assert len(answers) == 8 * stage.samples and {a["prompt"] for a in answers} == given
    assert rows and all(tiny.checksum("", row["completion"], {}) >= 0.1 for row in rows)
    assert all(fault(row, row["completion"], stage.readable) is None for row in rows)
    assert max(Counter(row["prompt"] for row in rows).values()) <= stage.per_prompt
    by_place = {(a["prompt_id"], a["sample"]): a for a in answers}
    for row in rows:
        origin = row["provenance"]
        answer = by_place[origin["prompt"], origin["sample"]]
        assert (answer["prompt"], answer["completion"]) == (row["prompt"], row["completion"])
        assert answer["finish"] != "length" and answer["dropped"] == ""
        assert (origin["model"], origin["step"], origin["source"]) == ("zero", 2, "tiny")
        assert list(origin["rewards"].values()) == [tiny.checksum("", row["completion"], {})]
    told = json.loads((whole / "cold/statistics.json").read_text())
    assert told["kept"] == told["rows"] == len(rows) and told["answers"] == len(answers) and told["prompts"] == 8
    assert told["kept"] + sum(told["dropped"].values()) == told["answers"]
    assert told["dropped"]["cut off"] == sum(
        a["finish"] == "length" and tiny.checksum("", a["completion"], {}) >= 0.1 for a in answers
    )


def test_a_student_trains_on_exactly_these_rows(whole):
    opened = loading.open_model(str(whole / "student"))
    template = Template(opened.text, opened.tokenizer)
    (source,) = STAGES["student"].sources
    rows = sources.load(sources.Source(path=str(whole / "cold/rows.jsonl"), name=source.name))
    for i, made in enumerate(rows_of(whole / "cold")):
        example = sft.encode(rows[i], template, opened.tokenizer)
        said = [opened.tokenizer.decode(example.tokens[part].tolist()) for part in (~example.trained, example.trained)]
        assert said == [made["prompt"], made["completion"] + "<|end|>"]
    digests = json.loads((whole / "student/config.json").read_text())["digests"]
    assert digests == {"sources.made": rows.identity}


def test_every_stage_leaves_a_model_and_the_stage_of_rows_says_that_it_has_none(whole, capsys):
    for name in STAGES:
        if name not in ("cold", "judge"):
            assert loading.open_model(str(whole / name)).model.n_layers == (1 if name == "student" else 2)
    assert cli.main(["generate", "--model", str(whole / "cold"), "--prompt", "1="]) == 2
    assert "made rows, no model" in capsys.readouterr().err
    assert loading.open_model(str(whole / "judge"), head=True).head == loading.ScalarHead("pairwise", "summary")
    assert cli.main(["generate", "--model", str(whole / "judge"), "--prompt", "1="]) == 2
    assert "is a reward model, which writes no text" in capsys.readouterr().err


def test_the_bill_adds_up(whole):
    told = json.loads((whole / "ledger.json").read_text())
    assert list(told["stages"]) == list(STAGES) and told["put_aside"] == {}
    for name, stage in told["stages"].items():
        phases = stage["phases"]
        assert 0 < sum(p["device_hours"] for p in phases.values()) <= stage["device_hours"] * 1.001
        assert stage["flops"] > 0 and phases["rollout" if name in ("zero", "rl", "cold") else "update"]["flops"] > 0
    asked = told["stages"]["zero"]["phases"]["rollout"]["tokens"]
    assert asked == sum(a["length"] for a in tiny.samples(whole / "zero"))


# -- What is skipped, and what is run anew


def test_a_finished_pipeline_does_nothing_and_says_so(whole, monkeypatch, capsys):
    monkeypatch.chdir(whole.parent)
    before = content(whole)
    assert cli.main(["train", "recipe.py", "--run-dir", "whole"]) == 0
    said = capsys.readouterr().out
    assert "every stage is finished: nothing to do" in said
    assert "whole/zero: already finished at step 2" in said and "whole/cold: already made whole/cold/rows.jsonl" in said
    assert {p: b for p, b in content(whole).items() if p.name != "curve.png"} == before


def test_a_changed_stage_is_run_anew_and_no_other(runs, whole):
    shutil.copytree(whole, runs.path / "changed")
    run = runs.path / "changed"
    before = content(run)
    said = runs.train("changed", "--student.seed", "5")
    assert "student: rerun, seed was 0, now 5; what it made is kept in changed/student.1\n" in said
    assert said.count("rerun") == 1 and said.count("steps 1 to") == 1
    after = content(run)
    for path, was in before.items():
        at = run / "student.1" / path.relative_to(run / "student") if path.is_relative_to(run / "student") else path
        of_the_whole = path in (run / "config.json", run / "ended.json", run / "report.html") or run / "report" in path.parents
        assert of_the_whole or after[at] == was, path
    assert json.loads((run / "student/config.json").read_text())["seed"] == 5
    # Given the old value again, the stage is run once more, to what it was.
    assert "student: rerun, seed was 5, now 0" in runs.train("changed")
    same(run, whole)
    assert json.loads((run / "ledger.json").read_text())["put_aside"]["device_hours"] > 0


def test_what_depends_on_changed_rows_is_run_anew(runs, whole, monkeypatch, capsys):
    monkeypatch.chdir(runs.path)
    before = content(whole)
    assert cli.main(["train", "recipe.py", "--run-dir", "whole", "--cold.per-prompt", "1", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(
        "zero: keep, finished\ncold: rerun, per_prompt was 2, now 1\ndev: rerun, it begins with what cold will make\n"
        "judge: rerun, it begins with what dev will make\nstudent: rerun, it begins with what cold will make\n"
        "rl: rerun, it begins with what dev and judge will make\n"
    )
    assert "cold: zero answers on" in said and "dev: its rows are not made yet" in said
    assert content(whole) == before
    assert cli.main(["train", "recipe.py", "--run-dir", "whole", "--from", "devv"]) == 2
    assert "--from devv: no such stage" in capsys.readouterr().err


# -- Kills


def test_sampling_goes_on_from_the_last_whole_batch(runs, whole):
    """As a kill leaves it: in the middle of a line, between the lines of a batch, before and after a file is whole."""
    shutil.copytree(whole, runs.path / "torn")
    cold = runs.path / "torn/cold"
    samples, metrics = ((whole / "cold" / file).read_bytes() for file in ("samples.jsonl", "metrics.jsonl"))
    (cold / "finished.json").unlink()
    (cold / "rows.jsonl").unlink()
    first = metrics.index(b"\n") + 1
    lines = samples.splitlines(keepends=True)
    (cold / "metrics.jsonl").write_bytes(metrics[: first + 9])
    (cold / "samples.jsonl").write_bytes(b"".join(lines[:-3]) + lines[-3][:20])
    (cold / ".rows.jsonl.part").write_bytes(b"half")
    said = runs.train("torn", "--until", "cold")
    assert "going on from batch 1 of 2" in said and "torn/rl: left out, after --until cold" in said
    assert all((cold / file).read_bytes() == (whole / "cold" / file).read_bytes() for file in MADE)
    ledger = json.loads((cold / "ledger.json").read_text())
    assert ledger["resumes"] == 1 and ledger["redone_seconds"] > 0
    # What was made again is the same, so nothing that depends on it is run anew.
    assert "every stage is finished: nothing to do" in runs.train("torn")


def changes(run: Path) -> tuple:
    """What a run has written, so that another value means that it went on."""
    return tuple(sorted((str(p), p.stat().st_size) for p in run.rglob("*") if p.exists() and p.is_file()))


def killed_at_random(runs: Runs, name: str, kills: int, seed: int) -> None:
    """Starts the pipeline again and again, and kills it after a random number of changes in its directory; then lets it end."""
    rng = random.Random(seed)
    left = kills
    while True:
        process = runs.start(name)
        patience = rng.randint(1, 30) if left else 10**9
        seen, last = 0, changes(runs.path / name)
        began = time.monotonic()
        while process.poll() is None and seen < patience:
            assert time.monotonic() - began < LONG, (runs.path / f"{name}.log").read_text()
            time.sleep(0.02)
            try:
                now = changes(runs.path / name)
            except FileNotFoundError:  # it was renamed meanwhile
                continue
            seen, last = seen + (now != last), now
        if process.poll() is None:
            process.send_signal(signal.SIGKILL if left % 4 else signal.SIGTERM)
            left -= 1
        code = process.wait(LONG)
        assert code in (0, -signal.SIGKILL, -signal.SIGTERM, PREEMPTED), (runs.path / f"{name}.log").read_text()
        if code == 0:
            return


def test_a_run_that_was_killed_at_random_is_the_undisturbed_one(runs, whole):
    killed_at_random(runs, "killed", kills=3, seed=1)
    same(runs.path / "killed", whole)


def killed_in(runs: Runs, name: str, stage: str, changed: int) -> str:
    """Starts the pipeline and kills it once so many changes were seen in the directory of a stage, or in the whole where that
    stage is finished. Returns the stage that was under way."""
    run = runs.path / name
    process = runs.start(name)
    seen, last, began = 0, None, time.monotonic()
    while process.poll() is None and seen < changed:
        assert time.monotonic() - began < LONG, (runs.path / f"{name}.log").read_text()
        time.sleep(0.01)
        place = run if (run / stage / "finished.json").exists() else run / stage
        with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
            now = place, changes(place)
            seen, last = seen + (last is not None and now != last), now
    process.kill()
    assert process.wait(LONG) == -signal.SIGKILL, (runs.path / f"{name}.log").read_text()
    return next(s for s in STAGES if not (run / s / "finished.json").exists())


@pytest.mark.slow
def test_twenty_kills_over_all_stages(runs, whole):
    """SIGKILL in each stage, first as soon as it has written anything, then at three random points."""
    rng, hit = random.Random(11), Counter()
    for stage in STAGES:
        for changed in (1, *(rng.randint(2, 5) for _ in range(3))):
            hit[killed_in(runs, "killed20", stage, changed)] += 1
    runs.train("killed20")
    same(runs.path / "killed20", whole)
    assert hit.total() == 20 and hit.keys() == STAGES.keys(), hit


@pytest.mark.slow
def test_two_processes_take_the_decisions_of_one(runs, whole):
    """The stage of rows on two devices, of one process and of two."""
    (runs.path / "both.py").write_text(
        "import tiny\nfrom r1jax.config import Mesh\n\n\n"
        "def config():\n    return tiny.rejection(init='whole/zero', mesh=Mesh(fsdp=2))\n"
    )
    command = [sys.executable, "-m", "r1jax", "train", "both.py", "--run-dir"]
    one = runs.env | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    subprocess.run([*command, "one"], cwd=runs.path, env=one, check=True, timeout=LONG)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command += ["two", "--coordinator", f"127.0.0.1:{port}", "--process-count", "2", "--process-id"]
    env = runs.env | {"XLA_FLAGS": ""}
    processes = [subprocess.Popen([*command, str(i)], cwd=runs.path, env=env) for i in range(2)]
    try:
        assert [p.wait(timeout=LONG) for p in processes] == [0, 0]
    finally:
        for p in processes:
            p.kill()
    assert all((runs.path / "two" / file).read_bytes() == (runs.path / "one" / file).read_bytes() for file in MADE)


def test_put_aside_directories_are_no_stages(whole):
    assert rundir.last_stage(whole) == whole / "rl"
