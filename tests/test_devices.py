"""SFT and GRPO give the same numbers on one device, on meshes of eight, and on two processes that share eight."""

import dataclasses
import os
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


def settings(mesh):
    """Two rounds of one update, so that the second rollout is the updated policy's; importance weights read the sampler."""
    return tiny.pipeline(mesh=mesh, steps=2, minibatches=1, importance_cap=2.0, export=config.Export(every=1, keep=1))


def grpo_from(run, mesh):
    """The second stage alone, from what the first one learned in another run."""
    return dataclasses.replace(settings(mesh).grpo, init=str(run / "sft"))


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    path = tmp_path_factory.mktemp("devices") / "one"
    with tiny.quick_to_compile():
        assert pipeline.train(settings(config.Mesh(fsdp=1)), name="one", run_dir=str(path)) == 0
    return path


def check_same(run, expected):
    found, wanted = tiny.metrics(run), tiny.metrics(expected)
    assert [row["step"] for row in found] == [1, 2]
    for row, reference in zip(found, wanted, strict=True):
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


def test_a_mesh_of_all_batch_and_model_axes_gives_the_numbers_of_one_device(one_device, tmp_path):
    mesh = config.Mesh(data=2, expert=2, tensor=2, fsdp=1)
    with tiny.quick_to_compile():
        assert pipeline.train(settings(mesh), name="mesh", run_dir=str(tmp_path / "run")) == 0
    check_same(tmp_path / "run" / "sft", one_device / "sft")
    check_same(tmp_path / "run" / "grpo", one_device / "grpo")


def test_a_mesh_that_splits_sequences_gives_the_numbers_of_one_device(one_device, tmp_path):
    """From a checkpoint of one device."""
    mesh = config.Mesh(context=2, fsdp=4)
    with tiny.quick_to_compile():
        assert pipeline.train(grpo_from(one_device, mesh), name="mesh", run_dir=str(tmp_path / "run")) == 0
    check_same(tmp_path / "run", one_device / "grpo")


def test_two_processes_give_the_numbers_of_one_device(one_device, tmp_path):
    """The real command on 2 x 4 devices, started as a launcher does."""
    here = Path(__file__).parent
    (tmp_path / "shared.py").write_text(
        "from pathlib import Path\n\nimport test_devices\n\n\n"
        f"def config():\n    return test_devices.grpo_from(Path({str(one_device)!r}), test_devices.EVERY_DEVICE)\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(here.parent), str(here)]),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "R1JAX_COORDINATOR": f"127.0.0.1:{port}",
        "R1JAX_NUM_PROCESSES": "2",
    }
    command = [sys.executable, "-m", "r1jax", "train", "shared.py", "--run-dir", "run"]
    logs = [open(tmp_path / f"log{i}", "w+") for i in range(2)]  # noqa: SIM115
    processes = [
        subprocess.Popen(command, cwd=tmp_path, env=env | {"R1JAX_PROCESS_ID": str(i)}, stdout=log, stderr=log)
        for i, log in enumerate(logs)
    ]
    try:
        codes = [p.wait(timeout=LONG) for p in processes]
    finally:
        for p in processes:
            p.kill()
        for log in logs:
            log.close()
    assert codes == [0, 0], "".join((tmp_path / f"log{i}").read_text()[-3000:] for i in range(2))
    check_same(tmp_path / "run", one_device / "grpo")
    shown = [(tmp_path / f"log{i}").read_text() for i in range(2)]
    assert "step 2/2" in shown[0] and "step 2/2" not in shown[1]
