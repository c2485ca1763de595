"""Runs on gs://, against a stand-in for Google Cloud Storage on this machine: metrics, events, samples and checkpoints."""

import concurrent.futures
import contextlib
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import gcs_server
import jax.numpy as jnp
import numpy as np
import pytest
import test_decide
import test_recipe
import test_resume
import tiny

from r1jax import cli, config, hub, lease, mirror, rundir
from r1jax.checkpoint import Checkpointer, CheckpointError
from r1jax.data.sources import Mixture, load
from r1jax.observe import runs as runs_of
from r1jax.stages import decide
from r1jax.stages.pipeline import PREEMPTED

with_gcsfs = pytest.mark.skipif(not importlib.util.find_spec("gcsfs"), reason="needs the extra gs, which test has")
pytestmark = pytest.mark.timeout(3 * test_resume.LONG)


@pytest.fixture(scope="module")
def storage():
    hub.list_buckets_anew()  # etils keeps the first file system that it makes, and a test here makes one without ours
    with gcs_server.serving() as storage:
        yield storage


@pytest.fixture(scope="module")
def runs(tmp_path_factory, storage):
    runs = test_resume.Runs(tmp_path_factory.mktemp("gcs"))
    runs.env |= storage.environment | {"XDG_CACHE_HOME": str(runs.path / "home")}
    runs.env["JAX_COMPILATION_CACHE_DIR"] = os.environ.get("JAX_COMPILATION_CACHE_DIR", runs.env["JAX_COMPILATION_CACHE_DIR"])
    return runs


@pytest.fixture
def train(runs, storage, monkeypatch, capsys):
    """Trains stage.py in this process: (exit code, stdout, stderr)."""
    for name, value in (storage.environment | {"XDG_CACHE_HOME": str(runs.path / "home")}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(runs.path)
    (runs.path / "stage.py").write_text("import test_gcs\n\n\ndef config():\n    return test_gcs.settings()\n")

    def train(run, trap=None):
        if trap is not None:
            (runs.path / "trap.json").write_text(json.dumps({"prompt": trap[0], "signal": trap[1]}))
        code = cli.main(["train", "stage.py", "--run-dir", run])
        return code, *capsys.readouterr()

    return train


def settings():
    return tiny.sft(sources=(tiny.source("trap.json"),), steps=8, log=config.Log())


def prompt_of(step):
    stage = settings()
    return Mixture([(s, load(s)) for s in stage.sources], stage.seed)[(step - 1) * stage.batch]["prompt"]


def on_another_machine(runs, storage):
    """And minutes later."""
    shutil.rmtree(runs.path / "home/r1jax")
    for name in [name for name in storage if name.endswith(f"/{mirror.LEASE}")]:
        held_by(storage, name, **json.loads(storage[name]) | {"renewed": time.time() - lease.LIMIT - 1})


def held_by(storage, name, **changes):
    about = {"host": "elsewhere", "pid": 7, "since": "2026-01-01T10:00:00+00:00", "token": "t", "renewed": time.time()}
    storage.put(name, json.dumps(about | changes).encode())


def download(storage, run, to):
    """The run in the bucket as a directory."""
    for name, content in storage.items():
        if name.startswith(f"bucket/runs/{run}/"):
            file = to / name.removeprefix(f"bucket/runs/{run}/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    return to


def steps_of(storage, stage):
    """The checkpoints of a stage that are whole."""
    marks = [name for name in storage if name.startswith(f"bucket/runs/{stage}/checkpoints/") and name.endswith("/about.json")]
    return sorted(int(name.split("/")[-2]) for name in marks)


@with_gcsfs
def test_checkpoints_in_a_bucket(storage, monkeypatch):
    from etils import epath

    for name, value in storage.environment.items():
        monkeypatch.setenv(name, value)
    place = epath.Path("gs://bucket/saved/checkpoints")

    def state(step):
        return {"w": jnp.arange(6.0).reshape(2, 3) + step, "step": step}

    with contextlib.closing(Checkpointer(place, keep=2)) as checkpoints:
        assert checkpoints.latest() is None
        for step, score in ((1, 0.9), (2, 0.1), (3, 0.2), (4, None)):
            checkpoints.save(step, state(step), {"cursor": step}, score)
        checkpoints.wait()
        assert checkpoints.steps() == [1, 3, 4] and checkpoints.best() == 1  # the newest two, and the best
        assert not [name for name in storage if name.startswith("bucket/saved/checkpoints/2/")]
        found, meta = checkpoints.restore(state(0))
        np.testing.assert_array_equal(found["w"], state(4)["w"])
        assert (found["step"], meta) == (4, {"cursor": 4})
        storage.down = True
        with pytest.raises(CheckpointError, match="could not save step 5 to gs://bucket/saved/.*before it are intact"):
            checkpoints.save(5, state(5), {})
            checkpoints.wait()
        storage.down = False

    del storage["bucket/saved/checkpoints/4/about.json"]  # as if its machine had vanished before this was written
    file = next(name for name in storage if re.match("bucket/saved/checkpoints/3/state/.*d/", name))
    storage[file] = storage[file][:-1] + bytes([storage[file][-1] ^ 1])
    with contextlib.closing(Checkpointer(place, read_only=True)) as checkpoints:
        assert checkpoints.steps() == [1, 3] and [name for name in storage if name.startswith("bucket/saved/checkpoints/4/")]
        with pytest.raises(CheckpointError, match="start from gs://bucket/saved@1"):
            checkpoints.restore(state(0))
    with contextlib.closing(Checkpointer(place)):
        assert not [name for name in storage if name.startswith("bucket/saved/checkpoints/4/")]


@pytest.mark.slow
@with_gcsfs
def test_a_run_on_machines_that_vanish_is_the_one_on_a_machine_that_does_not(runs, train, storage, tmp_path):
    code, _, err = train("whole")
    assert code == 0, err

    # While step 6 is made: the save of step 4 waited for that of step 2.
    done = runs.train("gs://bucket/runs/one", config="stage.py", trap=(prompt_of(6), signal.SIGKILL))
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert "run directory: gs://bucket/runs/one\n" in done.stdout
    saved = steps_of(storage, "one")[-1]
    assert tiny.metrics(download(storage, "one", tmp_path / "killed"))[-1]["step"] == 4
    assert not list((runs.path / "home").rglob("checkpoints"))
    assert f"bucket/runs/one/{mirror.LEASE}" in storage
    # Rows past the checkpoint, and a checkpoint without its last file, as of a machine that vanished in between.
    file = "bucket/runs/one/metrics.jsonl"
    storage.put(file, storage[file] + b'{"step": 99, "loss": 1.0}\n')
    storage.put("bucket/runs/one/checkpoints/99/digests-0-of-1", b"")
    on_another_machine(runs, storage)

    code, out, err = train("gs://bucket/runs/one", trap=(prompt_of(7), signal.SIGTERM))
    assert code == PREEMPTED, err
    assert f"going on from step {saved} of gs://bucket/runs/one" in out
    assert "saved at step 7 of gs://bucket/runs/one; go on with --run-dir gs://bucket/runs/one\n" in out
    assert steps_of(storage, "one")[-1] == 7 and not [name for name in storage if "/checkpoints/99/" in name]
    assert tiny.metrics(download(storage, "one", tmp_path / "told"))[-1]["step"] == 7
    on_another_machine(runs, storage)

    code, _, err = train("gs://bucket/runs/one")
    assert code == 0, err
    found = download(storage, "one", tmp_path / "found")
    assert tiny.metrics(found) == tiny.metrics(runs.path / "whole")
    assert json.loads((found / "finished.json").read_text())["step"] == 8
    assert len(list((found / "tb").iterdir())) == 3  # a file of events for each attempt
    assert steps_of(storage, "one") == [7, 8] and f"bucket/runs/one/{mirror.LEASE}" not in storage

    order = [name.removeprefix("bucket/runs/one/") for name in storage.written]
    commit = order.index("checkpoints/8/about.json")
    assert order.index("checkpoints/8/state/manifest.ocdbt") > max(i for i in range(commit) if order[i] == "metrics.jsonl")
    assert order.index("finished.json") > commit

    code, out, _ = train("gs://bucket/runs/one")
    assert code == 0 and "already finished at step 8" in out


@with_gcsfs
@pytest.mark.slow
def test_a_pipeline_too(runs, storage, tmp_path):
    done = runs.train("both")
    assert done.returncode == 0, done.stderr
    whole = runs.path / "both"
    done = runs.train("gs://bucket/runs/two", trap=(test_resume.prompt_of_sft(3), signal.SIGTERM))
    assert done.returncode == PREEMPTED, done.stderr
    on_another_machine(runs, storage)
    done = runs.train("gs://bucket/runs/two", trap=(test_resume.prompt_of(whole, 5), signal.SIGKILL))
    assert done.returncode == -signal.SIGKILL and steps_of(storage, "two/grpo"), done.stderr
    on_another_machine(runs, storage)
    done = runs.train("gs://bucket/runs/two")
    assert done.returncode == 0 and "sft: already finished at step 4" in done.stdout, done.stderr
    found = download(storage, "two", tmp_path / "found")
    for stage in ("sft", "grpo"):
        assert tiny.metrics(found / stage) == tiny.metrics(whole / stage)
    assert tiny.samples(found / "grpo") == tiny.samples(whole / "grpo")


@with_gcsfs
@pytest.mark.slow
def test_the_whole_recipe_too(storage, tmp_path):
    runs = test_recipe.Runs(tmp_path)
    runs.env |= storage.environment | {"XDG_CACHE_HOME": str(runs.path / "home")}
    runs.train("whole")
    place = "gs://bucket/runs/recipe"
    command = [sys.executable, "-m", "r1jax", "train", "recipe.py", "--run-dir", place]
    for made in ("zero/checkpoints/2/about.json", "cold/rows.jsonl", "student/finished.json", None):
        log = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        with subprocess.Popen(command, cwd=runs.path, env=runs.env, **log) as process:
            while made is not None and f"bucket/runs/recipe/{made}" not in storage and process.poll() is None:
                time.sleep(0.05)
            if made is not None:
                process.kill()
            said = process.communicate()[0].decode()
        assert process.returncode == (0 if made is None else -signal.SIGKILL), said
        if made is not None:
            on_another_machine(runs, storage)
    assert "cold: already made gs://bucket/runs/recipe/cold/rows.jsonl" in said
    found = download(storage, "recipe", tmp_path / "found")
    test_recipe.same(found, runs.path / "whole")
    assert json.loads((found / "ledger.json").read_text())["total"]["device_hours"] > 0


@with_gcsfs
def test_stages_in_a_bucket_are_decided_by_what_it_holds_and_moved_by_hand(storage, monkeypatch, tmp_path):
    for name, value in (storage.environment | {"XDG_CACHE_HOME": str(tmp_path)}).items():
        monkeypatch.setenv(name, value)
    place, recipe = "gs://bucket/runs/decided", test_decide.RECIPE
    with contextlib.closing(rundir.create("recipe", config.to_json(recipe), mirror.here(place))) as made:
        for name in recipe.stages():
            test_decide.finish(made.path, name)
    shutil.rmtree(tmp_path)
    run = rundir.find(place)
    assert test_decide.doing(run) == test_decide.KEPT
    seeded = test_decide.with_stage("rl", seed=3)
    with pytest.raises(config.ConfigError) as error:
        decide.decide(seeded, run)
    assert str(error.value) == (
        f"{place}: rl must be run anew (rl: seed was 0, now 3), and in a bucket nothing is put aside for you: move it away "
        f"(gcloud storage mv {place}/rl {place}/rl.1), or delete it, and begin again"
    )
    digests = f"bucket/runs/decided/dev/checkpoints/{recipe.dev.steps}/digests-0-of-1"
    kept = storage[digests]
    storage.put(digests, b"of another checkpoint")
    with pytest.raises(config.ConfigError, match=r"judge and rl must be run anew \(judge: dev is no longer what"):
        decide.decide(recipe, run)
    storage.put(digests, kept)
    for name in [name for name in storage if name.startswith("bucket/runs/decided/rl/")]:
        storage.put(name.replace("/rl/", "/rl.1/"), storage.pop(name))
    assert test_decide.doing(rundir.find(place), seeded) == test_decide.KEPT | {"rl": "run"}


@with_gcsfs
def test_a_bucket_that_refuses_and_a_folder_of_other_things_are_one_line(train, storage):
    storage.put("bucket/other/notes.txt", b"mine")
    code, _, err = train("gs://bucket/other")
    assert (code, err) == (2, "r1jax: error: gs://bucket/other already holds notes.txt; name a new or an empty directory\n")
    storage.down = True
    try:
        code, _, err = train("gs://bucket/runs/none")
    finally:
        storage.down = False
    assert code == 2 and err.count("\n") == 1
    assert err.startswith("r1jax: error: gs://bucket/runs/none: ") and "credentials" in err


@pytest.fixture
def machines(storage, monkeypatch, tmp_path):
    """Copies of one run on several machines."""
    for name, value in (storage.environment | {"XDG_CACHE_HOME": str(tmp_path)}).items():
        monkeypatch.setenv(name, value)
    storage.pop(LEASE, None)
    copies = [mirror.here("gs://bucket/runs/held", process=i) for i in range(8)]
    for path in copies:
        path.mkdir(parents=True)
    return copies


LEASE = "bucket/runs/held/lease.json"


@with_gcsfs
def test_of_machines_that_begin_at_once_one_holds_the_run(machines, storage):
    """And each of the others is told who."""
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = [f.exception() or f.result() for f in [pool.submit(lease.Lease, path) for path in machines]]
    (holder,) = [x for x in found if isinstance(x, lease.Lease)]
    refused = [x for x in found if x is not holder]
    assert len(refused) == 7 and all(isinstance(x, config.ConfigError) for x in refused)
    about = json.loads(storage[LEASE])
    who = f"{socket.gethostname()} (pid {os.getpid()}) trains in gs://bucket/runs/held since {about['since']}, last heard of"
    assert all(str(x).startswith(who) and "remove gs://bucket/runs/held/lease.json" in str(x) for x in refused)
    holder.renew()
    again = json.loads(storage[LEASE])
    assert again["renewed"] > about["renewed"] and {**again, "renewed": 0} == {**about, "renewed": 0}
    holder.release()
    assert LEASE not in storage
    lease.Lease(machines[1]).release()


@with_gcsfs
def test_an_old_lease_is_taken_and_who_held_it_writes_no_more(machines, storage, monkeypatch):
    monkeypatch.setattr(lease, "RENEWED", 0.05)
    first = lease.Lease(machines[0])
    began = json.loads(storage[LEASE])["renewed"]
    while json.loads(storage[LEASE])["renewed"] == began:  # by itself
        time.sleep(0.02)
    with monkeypatch.context() as patch:
        patch.setattr(lease, "LIMIT", -1.0)
        second = lease.Lease(machines[1])
    run = rundir.RunDir(machines[0], {}, None, mirror.Uploads(machines[0]), first)
    (machines[0] / "metrics.jsonl").write_text("{}")
    lost = r"^gs://bucket/runs/held: this process no longer holds its lease .*pid \d+\) took it"
    with pytest.raises(config.ConfigError, match=lost):
        run.upload()
    assert not [name for name in storage if name.endswith("held/metrics.jsonl")]
    first.release()
    assert LEASE in storage  # the second's
    del storage[LEASE]
    with pytest.raises(config.ConfigError, match=r"no longer holds its lease \(it was removed\)"):
        second.renew()
    second.release()


@with_gcsfs
def test_a_run_that_goes_on_elsewhere_is_running_until_its_lease_is_old(machines, storage):
    run = rundir.create("held", config.to_json(tiny.grpo()), machines[0])
    run.close()
    assert rundir.is_held(machines[1]) is False and runs_of.read(machines[0]).state == "killed"
    held_by(storage, LEASE)
    assert rundir.is_held(machines[1]) is True and runs_of.read(machines[0]).state == "running"
    held_by(storage, LEASE, renewed=time.time() - lease.LIMIT - 1)
    assert rundir.is_held(machines[1]) is False


@with_gcsfs
def test_how_the_last_attempt_ended_is_forgotten_in_the_bucket_too(machines, storage):
    run = rundir.create("held", config.to_json(tiny.grpo()), machines[0])
    run.end("failed", "no rows")
    run.upload()
    assert "bucket/runs/held/ended.json" in storage
    run.begin()
    assert "bucket/runs/held/ended.json" not in storage
    run.close()


@with_gcsfs
def test_what_a_killed_process_of_this_machine_left_is_taken_at_once(machines, storage):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for pid, token, taken in ((ended.pid, "mine", True), (os.getppid(), "mine", False), (ended.pid, "another's", False)):
        (machines[0] / lease.MARK).write_text("mine")
        held_by(storage, LEASE, pid=pid, token=token)
        if taken:
            lease.Lease(machines[0]).release()
        else:
            with pytest.raises(config.ConfigError, match="^elsewhere"):
                lease.Lease(machines[0])


@with_gcsfs
def test_who_was_not_heard_of_lately_is_waited_for(machines, storage, monkeypatch, capsys):
    waits = []
    monkeypatch.setattr(lease.time, "sleep", lambda s: (waits.append(s), held_by(storage, LEASE, renewed=time.time() - 301)))
    held_by(storage, LEASE, renewed=time.time() - 200)
    lease.Lease(machines[0]).release()
    assert waits == [pytest.approx(100, abs=5)] and "waiting 100 s whether it still lives" in capsys.readouterr().out


@with_gcsfs
def test_a_second_machine_refuses_to_train_and_writes_nothing(train, storage):
    held_by(storage, "bucket/runs/held/lease.json")
    before = dict(storage)
    code, _, err = train("gs://bucket/runs/held")
    assert code == 2 and err.count("\n") == 1 and dict(storage) == before
    assert err.startswith("r1jax: error: elsewhere (pid 7) trains in gs://bucket/runs/held since 2026-01-01T10:00:00+00:00, ")


EXPORTS = """
from pathlib import Path
from r1jax import mirror
path = mirror.here("gs://bucket/exports/run")
uploads = mirror.Uploads(path)
def made(name, text):
    (path / name).parent.mkdir(parents=True, exist_ok=True)
    (path / name).write_text(text)
files = ("finished.json", "metrics.jsonl", "config.json", "tb/events.1")
for name in (*files, "exports/2/model.safetensors", "exports/4/model.safetensors", ".lock"):
    made(name, "old")
uploads.upload()
made("tb/events.1", "newer")
uploads.upload()
mirror.fetch(path)
print(sorted(p.relative_to(path).as_posix() for p in path.rglob("*")))
(path / "exports/2").rmdir()
made("exports/6/model.safetensors", "new")
mirror.Uploads(path).upload()
"""


@with_gcsfs
def test_only_what_changed_is_uploaded_and_exports_come_and_go(runs, storage):
    before = len(storage.written)
    program = [sys.executable, "-c", EXPORTS]
    done = subprocess.run(program, env=runs.env, cwd=runs.path, capture_output=True, text=True, timeout=test_resume.LONG)
    assert done.returncode == 0, done.stderr
    kept = [".lock", "config.json", "exports", "exports/2", "exports/4", "finished.json", "metrics.jsonl", "tb", "tb/events.1"]
    assert eval(done.stdout) == kept
    written = [name.removeprefix("bucket/exports/run/") for name in storage.written[before:]]
    exports = ["exports/2/model.safetensors", "exports/4/model.safetensors"]
    assert written[0] == "config.json" and sorted(written[1:4]) == sorted(["tb/events.1", *exports])
    assert written[4:7] == ["metrics.jsonl", "finished.json", "tb/events.1"]
    assert storage["bucket/exports/run/tb/events.1"] == b"newer"
    left = [name for name in storage if name.startswith("bucket/exports/run/exports/")]
    assert [name.split("/")[4] for name in sorted(left)] == ["4", "6"]


def test_names_in_buckets(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = mirror.here("gs://bucket/runs/one/", process=3)
    assert path.is_relative_to(tmp_path) and path != mirror.here("gs://bucket/runs/one", process=4)
    assert str(mirror.there(path / "grpo")) == "gs://bucket/runs/one/grpo"
    assert mirror.there(tmp_path / "runs/one") == tmp_path / "runs/one"
    for name in ("gs://", "gs://bucket", "gs://bucket/", "gs://bucket/../other"):
        with pytest.raises(ValueError, match="name a folder in the bucket"):
            mirror.here(name)


def test_a_file_that_is_not_whole_never_has_its_name(tmp_path):
    class Broken(io.BytesIO):
        def read(self, *_):
            raise OSError("gone")

    class Source:
        def open(self, _):
            return Broken()

    (tmp_path / "metrics.jsonl").write_text("kept")
    with pytest.raises(OSError, match="gone"):
        mirror._copy(Source(), tmp_path / "metrics.jsonl")
    assert (tmp_path / "metrics.jsonl").read_text() == "kept"
