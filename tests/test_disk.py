"""A disk that is full or takes nothing: found before training, or one line during it, and what was saved stays whole."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest
import tiny

from r1jax import cli, rundir, sharding
from r1jax.checkpoint import Checkpointer
from r1jax.observe import jsonl
from r1jax.observe.metrics import MetricsWriter
from r1jax.stages import disk
from r1jax.stages.prepare import prepare

CONFIG = """
import tiny
from r1jax import config as c


def config():
    return tiny.sft(model=tiny.DENSE, steps=6, checkpoint=c.Checkpoint(every=2))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("small.py").write_text(CONFIG)
    yield tmp_path


def train(capsys, *more, run="run"):
    """Exit code, stdout and stderr, which is at most one line."""
    code = cli.main(["train", "small.py", "--run-dir", str(run), *more])
    told = capsys.readouterr()
    assert told.err.count("\n") == (code != 0) and "Traceback" not in told.err, told.err
    return code, told.out, told.err


def is_whole(run, step):
    reader = Checkpointer(Path(run).absolute() / "checkpoints", read_only=True)
    reader._verify(step)
    reader.close()


@contextlib.contextmanager
def no_file_over(size):
    """What the system says of a file that would grow past it is what it says of a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# -- Before training


def test_the_bytes_of_a_checkpoint_are_those_that_it_takes(folder, tmp_path):
    stage = tiny.sft(model=tiny.DENSE)
    size = disk.checkpoint_bytes(prepare(stage))
    trainer = disk.Trainer(stage, tiny.DENSE, sharding.make_mesh(stage.mesh))
    state = trainer.create(trainer.init_params(0))
    assert size == sum(x.nbytes for x in jax.tree.leaves(state))
    checkpointer = Checkpointer(tmp_path / "saved")
    checkpointer.save(1, state, {})
    checkpointer.close()
    written = sum(p.stat().st_size for p in (tmp_path / "saved").rglob("*") if p.is_file())
    assert size <= written <= size + 100_000  # names, digests, and what Orbax notes of each array


def test_how_much_room_checkpoints_will_need(tmp_path):
    def stage(steps, every, keep, evaluates=False):
        c = tiny.config
        return tiny.sft(steps=steps, checkpoint=c.Checkpoint(every=every, keep=keep), eval=c.Eval(every=int(evaluates)))

    def need(*stages):
        """Bytes of one checkpoint in tens, in hundreds for the next stage, ..."""
        named = {tmp_path / str(i): (s, 10 ** (i + 1)) for i, s in enumerate(stages)}
        most, where = disk.room_needed(named)
        return most, where and where.name

    assert need(stage(100, 10, 2)) == (30, "0")  # two, and the one that is written
    assert need(stage(100, 10, 2, evaluates=True)) == (40, "0")  # and the best
    assert need(stage(15, 10, 2)) == (20, "0")  # there are no more than two
    assert need(stage(100, 10, 2), stage(5, 10, 3)) == (20 + 100, "1")
    assert need(stage(5, 10, 3), stage(100, 50, 1)) == (10 + 200, "1")
    for step in (10, 20):
        (tmp_path / "0/checkpoints" / str(step)).mkdir(parents=True)
    assert need(stage(100, 10, 2)) == (10, "0")
    assert need(stage(20, 10, 2)) == (0, None)
    # Told to end between two saves, at step 7, a run saves at 10 and at 12.
    (tmp_path / "1/checkpoints/7").mkdir(parents=True)
    assert need(stage(20, 10, 2), stage(12, 5, 2)) == (200, "1")
    assert need(stage(20, 10, 2), stage(7, 5, 2)) == (0, None)


def test_too_little_room_is_found_before_anything_is_trained(folder, capsys, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: collections.namedtuple("usage", "free")(100_000))
        code, _, err = train(capsys)
    assert code == 2 and err.startswith("r1jax: error: the checkpoints will need ") and "97.7 KiB are free in run" in err, err
    assert "lower checkpoint.keep" in err and not rundir.has_saved(folder / "run")
    # What is in the way of a run is found as early.
    (folder / "run/checkpoints").write_text("a file")
    code, _, err = train(capsys)
    assert code == 2 and "cannot write to run/checkpoints: File exists; " in err
    (folder / "run/checkpoints").unlink()
    (folder / "run/samples.jsonl").unlink()
    (folder / "run/samples.jsonl").mkdir()
    code, _, err = train(capsys)
    assert code == 2 and "cannot write to run/samples.jsonl: Is a directory; " in err
    assert not (folder / "run/metrics.jsonl").read_text()


# -- During it


def test_a_row_that_did_not_fit_names_its_file_and_is_gone_after_a_resume(tmp_path):
    writer = jsonl.Appender(tmp_path / "metrics.jsonl")
    writer.write({"step": 1})
    with no_file_over(20), pytest.raises(OSError, match=r"File too large: '.*metrics.jsonl'"):
        writer.write({"step": 2, "loss": 0.25})
    writer.close()  # and does not try again
    assert (tmp_path / "metrics.jsonl").read_bytes() == b'{"step": 1}\n{"step":'
    with contextlib.closing(jsonl.Appender(tmp_path / "metrics.jsonl", resumed_at=1)) as again:
        again.write({"step": 2})
    assert [row["step"] for row in jsonl.read(tmp_path / "metrics.jsonl")] == [1, 2]


def test_tensorboard_on_a_full_disk_is_an_error_and_no_wait(tmp_path):
    writer = MetricsWriter(tmp_path)
    with no_file_over(2000), pytest.raises(OSError, match="File too large"):
        for step in range(100):  # a line of metrics.jsonl is the shorter one
            writer.write(step, {"a": 1.0})
    size = (tmp_path / "metrics.jsonl").stat().st_size
    assert size < 2000
    with contextlib.suppress(OSError):
        writer.close()


def test_metrics_that_the_disk_does_not_take_end_the_run_in_one_line(folder, capsys, monkeypatch):
    write = MetricsWriter.write

    def write_until_full(self, step, values):
        with no_file_over((folder / "run/metrics.jsonl").stat().st_size + 10) if step == 3 else contextlib.nullcontext():
            write(self, step, values)

    with monkeypatch.context() as patched:
        patched.setattr(MetricsWriter, "write", write_until_full)
        code, _, err = train(capsys)
    assert code == 2
    assert err == (
        "r1jax: error: cannot write to run/metrics.jsonl: File too large; step 2 is saved and whole; make room, and go on with "
        "--run-dir run\n"
    )
    assert not (folder / "run/metrics.jsonl").read_bytes().endswith(b"\n")
    is_whole("run", 2)
    assert train(capsys)[0] == 0 and train(capsys, run="whole")[0] == 0
    assert tiny.metrics(folder / "run") == tiny.metrics(folder / "whole")


@pytest.fixture
def small_disk(tmp_path):
    """A disk of its own, of 2 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting a disk takes root")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def test_a_disk_that_fills_up_ends_the_run_with_the_checkpoint_before(small_disk, folder, capsys, monkeypatch):
    write, ballast = MetricsWriter.write, small_disk / "ballast"

    def fill_after_the_fifth(self, step, values):
        write(self, step, values)
        if step == 5:  # the save of step 4 has waited for that of step 2
            with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
                while True:
                    file.write(b"1" * 4096)

    run = small_disk / "run"
    with monkeypatch.context() as patched:
        patched.setattr(MetricsWriter, "write", fill_after_the_fifth)
        code, _, err = train(capsys, run=run)
    assert code == 2 and "No space left on device" in err, err
    saved = sorted(rundir.saved_steps(run))
    assert saved in ([2], [2, 4]) and any(f"step {saved[-1]} is {word}" in err for word in ("intact", "saved and whole")), err
    for step in saved:
        is_whole(run, step)
    assert json.loads((run / "config.json").read_text())["kind"] == "sft"
    os.unlink(ballast)
    assert train(capsys, run=run)[0] == 0 and train(capsys, run="whole")[0] == 0
    assert tiny.metrics(run) == tiny.metrics(folder / "whole")
    is_whole(run, 6)


def test_a_run_goes_on_from_the_newest_checkpoint_that_is_whole(folder, capsys):
    assert train(capsys)[0] == 0
    shutil.copytree("run", "whole")
    data = max(Path("run/checkpoints/6/state").rglob("d/*"), key=lambda p: p.stat().st_size)
    good = data.read_bytes()
    data.write_bytes(good[: len(good) // 2] + bytes([good[len(good) // 2] ^ 1]) + good[len(good) // 2 + 1 :])
    Path("run/finished.json").unlink()  # as a run that was killed after its last save
    code, out, _ = train(capsys)
    assert code == 0
    (line,) = [line for line in out.splitlines() if "damaged" in line]
    assert "warning: the checkpoint of step 6 is damaged (" in line and f"{data.name} has changed since" in line
    assert line.endswith("put aside: going on from step 4 of run, the newest that is whole")
    assert tiny.metrics(folder / "run") == tiny.metrics(folder / "whole")
    assert sorted(p.name for p in Path("run/checkpoints").iterdir()) == ["4", "6", "damaged-6"]
    digests = {run: (Path(run) / "checkpoints/6/about.json").read_bytes() for run in ("run", "whole")}
    assert digests["run"] == digests["whole"]
