"""SFT and GRPO give the same numbers on one device, on meshes of eight, and on two processes that share eight, one of which
may be killed on the way."""

import dataclasses
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file

from r1jax import cli, config
from r1jax.stages import pipeline

EVERY_DEVICE = config.Mesh()  # fsdp 8
LONG = 600  # seconds; on an idle machine each takes less than 60
pytestmark = pytest.mark.timeout(2 * LONG)


def settings(mesh, trap=""):
    """Two rounds of one update, so that the second rollout is the updated policy's; importance weights read the sampler."""
    return tiny.pipeline(
        mesh=mesh, steps=2, minibatches=1, importance_cap=2.0, export=config.Export(every=1, keep=1), trap=trap,
        checkpoint=config.Checkpoint(every=1),
    )  # fmt: skip


def grpo_from(run, mesh, trap=""):
    """The second stage alone, from what the first one learned in another run."""
    return dataclasses.replace(settings(mesh, trap).grpo, init=str(run / "sft"))


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    path = tmp_path_factory.mktemp("devices") / "one"
    assert pipeline.train(settings(config.Mesh(fsdp=1)), name="one", run_dir=str(path)) == 0
    return path


def check_same(run, expected):
    found, wanted = tiny.metrics(run), tiny.metrics(expected)
    assert [row["step"] for row in found] == [1, 2]
    for row, reference in zip(found, wanted, strict=True):
        if "rollout/reshard_bytes" in row:  # on all devices together: not of how many there are
            reference["rollout/reshard_bytes"] = row["rollout/reshard_bytes"]
        assert row == pytest.approx(reference, rel=1e-5, abs=1e-5)
    if "reward/total" in found[0]:
        assert tiny.samples(run) == tiny.samples(expected)
        check_exported(run, expected)


def check_exported(run, expected):
    """The last policy, alone, as a Hugging Face directory."""
    ours, theirs = (load_file(path / "exports" / "2" / "model.safetensors") for path in (run, expected))
    assert [path.name for path in (run / "exports").iterdir()] == ["2"]
    assert ours.keys() == theirs.keys()
    for name, x in theirs.items():
        np.testing.assert_allclose(ours[name], x, atol=3e-4, rtol=0, err_msg=name)  # Adam enlarges rounding


def test_an_export_during_training_is_the_checkpoints(one_device, tmp_path):
    assert cli.main(["export", "--model", str(one_device), "--out", str(tmp_path / "out"), "--mesh.fsdp", "1"]) == 0
    for name in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        during = one_device / "grpo" / "exports" / "2" / name
        assert (tmp_path / "out" / name).read_bytes() == during.read_bytes()


@pytest.mark.slow
def test_a_mesh_of_all_batch_and_model_axes_gives_the_numbers_of_one_device(one_device, tmp_path):
    mesh = config.Mesh(data=2, expert=2, tensor=2, fsdp=1)
    assert pipeline.train(settings(mesh), name="mesh", run_dir=str(tmp_path / "run")) == 0
    check_same(tmp_path / "run" / "sft", one_device / "sft")
    check_same(tmp_path / "run" / "grpo", one_device / "grpo")


@pytest.mark.slow
def test_a_mesh_that_splits_sequences_gives_the_numbers_of_one_device(one_device, tmp_path):
    """From a checkpoint of one device."""
    mesh = config.Mesh(context=2, fsdp=4)
    assert pipeline.train(grpo_from(one_device, mesh), name="mesh", run_dir=str(tmp_path / "run")) == 0
    check_same(tmp_path / "run", one_device / "grpo")


def shared_config(path, one_device, trap=""):
    """A config of the stage above, and what a process of 4 devices is started with."""
    here = Path(__file__).parent
    (path / "shared.py").write_text(
        "from pathlib import Path\n\nimport test_devices\n\n\ndef config():\n"
        f"    return test_devices.grpo_from(Path({str(one_device)!r}), test_devices.EVERY_DEVICE, {trap!r})\n"
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "R1JAX_"))}
    return env | {
        "PYTHONPATH": os.pathsep.join([str(here.parent), str(here)]),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }


TRAIN = [sys.executable, "-m", "r1jax", "train", "shared.py", "--run-dir", "run"]


def test_two_processes_give_the_numbers_of_one_device(one_device, tmp_path):
    """The tasks of a SLURM step, as srun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = shared_config(tmp_path, one_device) | {
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_TASKS_PER_NODE": "2",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NODEID": "0",
        "SLURM_JOB_ID": "7",
        "JAX_COORDINATOR_PORT": str(port),
    }
    logs = [open(tmp_path / f"log{i}", "w+") for i in range(2)]  # noqa: SIM115
    tasks = [env | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} for i in range(2)]
    parents = [
        subprocess.Popen(TRAIN, cwd=tmp_path, env=task, stdout=log, stderr=log) for task, log in zip(tasks, logs, strict=True)
    ]
    try:
        codes = [p.wait(timeout=LONG) for p in parents]
    finally:
        for p in parents:
            p.terminate()
        for log in logs:
            log.close()
    assert codes == [0, 0], "".join((tmp_path / f"log{i}").read_text()[-3000:] for i in range(2))
    check_same(tmp_path / "run", one_device / "grpo")
    shown = [(tmp_path / f"log{i}").read_text() for i in range(2)]
    assert "step 2/2" in shown[0] and shown[1] == ""
    assert "run directory: run" in (tmp_path / "run" / "logs" / "rank-1.log").read_text()


@pytest.mark.parametrize(
    ("rank", "again"), [("1", "one process"), pytest.param("0", "two processes", marks=pytest.mark.slow)]
)
def test_a_killed_process_ends_the_group_with_one_line_and_the_run_goes_on(
    one_device, tmp_path, monkeypatch, rank, again
):
    """In the second round, once both have saved the first. It goes on with as many processes, or in one with all devices."""
    env = shared_config(tmp_path, one_device, "trap.json")
    second = next(row["prompt"] for row in tiny.samples(one_device / "grpo") if row["step"] == 2)
    trap = {"prompt": second, "signal": 9, "rank": rank, "after": "run/checkpoints/1"}
    (tmp_path / "trap.json").write_text(json.dumps(trap))
    command = [*TRAIN, "--processes", "2"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=LONG)
    assert done.returncode == 1, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("r1jax: ")]
    assert re.fullmatch(
        rf"r1jax: error: rank {rank} on {re.escape(socket.gethostname())} in phase \w+ after step 1 was lost: "
        rf"signal 9 \(SIGKILL\); log run/logs/rank-{rank}.log; all others were ended; --run-dir run goes on from step 1", line,
    ), line  # fmt: skip
    states = [json.loads((tmp_path / "run" / "logs" / f"rank-{i}.json").read_text()) for i in range(2)]
    for state in states:
        with pytest.raises(ProcessLookupError):
            os.kill(state["pid"], 0)
    (tmp_path / "trap.json").unlink()
    if again == "one process":
        monkeypatch.chdir(tmp_path)
        stage = grpo_from(one_device, EVERY_DEVICE, "trap.json")
        assert pipeline.train(stage, name="shared", run_dir="run") == 0
    else:
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=LONG)
        assert done.returncode == 0 and "going on from step 1 of run" in done.stdout, done.stderr
    check_same(tmp_path / "run", one_device / "grpo")
