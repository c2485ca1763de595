"""Which of several processes a command is: by flags, variables or SLURM; and whether it can reach the first."""

import os
import socket

import pytest

from r1jax import cli, place
from r1jax.config import ConfigError
from r1jax.place import Place


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in os.environ:
        if name.startswith(("SLURM_", "R1JAX_", "CUDA_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")


SLURM = {
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_PROCID": "11",
    "SLURM_LOCALID": "3",
    "SLURM_NODEID": "1",
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "node[007-008],other",
    "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
    "SLURM_GPUS_ON_NODE": "8",
}


def in_slurm(monkeypatch, gpus=0, **changes):
    for name, value in (SLURM | changes).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(place, "visible_gpus", lambda: gpus)
    (found,) = place.find()
    return found


def test_a_process_on_its_own_has_no_place():
    assert place.find() == place.find(1) == [] and place.from_environment() is None


def test_flags_and_variables_say_the_same(monkeypatch):
    by_flags = place.find(coordinator="h:1", count=3, rank=2)
    assert by_flags == [Place("h:1", 3, 2)]
    for name, value in by_flags[0].variables().items():
        monkeypatch.setenv(name, value)
    assert place.from_environment() == by_flags[0] and place.find() == by_flags
    assert place.find(coordinator="auto") == [Place("auto")]


def test_processes_of_one_machine_share_its_gpus(monkeypatch):
    monkeypatch.setattr(place, "visible_gpus", lambda: 4)
    first, second = place.find(2)
    assert (first.rank, second.rank, first.count) == (0, 1, 2) and first.coordinator == second.coordinator
    assert first.coordinator.startswith("127.0.0.1:")
    assert first.variables()["JAX_LOCAL_DEVICE_IDS"] == "0,1" and second.variables()["JAX_LOCAL_DEVICE_IDS"] == "2,3"
    with pytest.raises(ConfigError, match="--processes 3 does not divide the 4 GPUs"):
        place.find(3)


def test_a_slurm_task_is_found(monkeypatch):
    found = in_slurm(monkeypatch, gpus=8)
    assert found == Place("node007:61441", 16, 11) and found.devices == (3,)
    assert in_slurm(monkeypatch, gpus=8, SLURM_STEP_TASKS_PER_NODE="8,2", SLURM_LOCALID="1").devices == (4, 5, 6, 7)
    # Alone on its node, or bound by SLURM to a GPU of its own, it takes what it sees.
    assert in_slurm(monkeypatch, gpus=8, SLURM_STEP_TASKS_PER_NODE="1(x16)").devices == ()
    assert in_slurm(monkeypatch, gpus=1).devices == () == in_slurm(monkeypatch, gpus=0).devices
    assert in_slurm(monkeypatch, JAX_COORDINATOR_PORT="5").coordinator == "node007:5"
    with pytest.raises(ConfigError, match="SLURM_PROCID must be a number; it is ''"):
        in_slurm(monkeypatch, SLURM_PROCID="")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")  # a batch script's own step
    assert place.find() == []


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("a", "a"), ("a,b", "a"), ("n[001-015],b", "n001"), ("n[3,7-9]", "n3"), ("gpu-1[20-22]", "gpu-120"), ("a-b,c[1]", "a-b")],
)
def test_the_first_host_of_a_node_list(nodes, first):
    assert place.first_host(nodes) == first


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ("--coordinator h:1", "give --process-count and --process-id too"),
        ("--process-count 2 --process-id 0", "give --coordinator too"),
        ("--coordinator h --process-count 2 --process-id 0", "the coordinator is 'h'; it must be HOST:PORT"),
        ("--coordinator h:1 --process-count 2 --process-id 2", "the process is number 2 of 2; numbers go from 0 to 1"),
        ("--processes 2 --coordinator h:1 --process-count 2 --process-id 0", "leave one of them out"),
        ("--processes -1", "--processes is -1"),
        ("--coordinator h:1 --process-count 2 --process-id 0", "must agree on the run directory; name it with --run-dir"),
    ],
)
def test_a_mistake_is_one_line(capsys, flags, why):
    assert cli.main(["train", "quickstart", *flags.split()]) == 2
    error = capsys.readouterr().err
    assert why in error and error.count("\n") == 1


def test_a_tpu_takes_one_process(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "tpu,cpu")
    with pytest.raises(ConfigError, match="one process takes all TPU chips"):
        place.find(4)


def test_gpus_are_those_that_are_visible(monkeypatch, tmp_path):
    assert place.visible_gpus() == 0  # JAX_PLATFORMS is cpu
    monkeypatch.setenv("JAX_PLATFORMS", "cuda,cpu")
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100'\necho '  MIG 1g'\necho 'GPU 1: NVIDIA H100'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert place.visible_gpus() == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,6")
    assert place.visible_gpus() == 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert place.visible_gpus() == 0


def test_process_0_needs_its_port_and_the_others_process_0():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"process 0 cannot listen at port {port}: Address already in use"):
            Place(f"127.0.0.1:{port}", 2, 0).reach(1)
        Place(f"127.0.0.1:{port}", 2, 1).reach(1)
    Place(f"127.0.0.1:{port}", 2, 0).reach(1)
    with pytest.raises(ConfigError, match=rf"process 1 of 2: nobody answers at 127.0.0.1:{port} within 0.3 s \(.*refused"):
        Place(f"127.0.0.1:{port}", 2, 1).reach(0.3)
