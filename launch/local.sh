#!/usr/bin/env bash
usage() {
  cat <<'USAGE'
usage: bash launch/local.sh [--dry-run | --install] [CONFIG] [--field value ...]

Installs r1jax for this machine (CPU, NVIDIA GPU or TPU) and trains CONFIG: a name from configs/ or a path; without
one, the quickstart. What follows goes to `r1jax train`; see `r1jax train CONFIG --help`.

The active environment is used if it has all that pyproject.toml asks for; else .venv is made beside pyproject.toml.

  --dry-run   print the commands instead of running them (for a dry run of the training itself, put it after CONFIG)
  --install   install what CONFIG needs, and do not train

  PYTHON=/path/to/python   the Python that .venv is made with
  JAX_PLATFORMS=cpu        do not look for an accelerator
  R1JAX_EXTRAS=wandb,...   extras of pyproject.toml to install as well
USAGE
}
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

install_only=''
case ${1:-} in
  -h | --help) usage && exit 0 ;;
  --dry-run) DRY_RUN=1 && shift ;;
  --install) install_only=1 && shift ;;
esac
case ${1:-} in
  '' | -*) config=quickstart ;;
  *) config=$1 && shift ;;
esac

accelerator=$(find_accelerator)
extras=$(extras_for "$config" "$@")
extras=${R1JAX_EXTRAS:-}${R1JAX_EXTRAS:+${extras:+,}}$extras
case $accelerator in
  cuda)
    extras="cuda${extras:+,$extras}"
    gpu_environment ;;
  tpu)
    extras="tpu${extras:+,$extras}"
    export JAX_PLATFORMS=${JAX_PLATFORMS:-tpu,cpu}
    # One process holds a TPU; a second one waits or fails in libtpu without saying for whom.
    if [ -z "$install_only" ] && held=$(holder /dev/accel[0-9]* /dev/vfio/[0-9]*); then
      die "the TPU is held by process $held; end it (kill ${held%% *}) or wait for it"
    fi ;;
esac

active=${VIRTUAL_ENV:-${CONDA_PREFIX:-}}
if [ -n "$active" ] && missing=$("$active/bin/python" "$ROOT/launch/satisfied.py" "$extras"); then
  environment=$active
  say "using the active environment $active ($accelerator)"
  if ! installed=$(cd / && "$active/bin/python" -c 'import r1jax; print(r1jax.__path__[0])' 2>/dev/null) || [ "$installed" != "$ROOT/r1jax" ]; then
    run "$active/bin/python" -m pip install --quiet --no-deps --editable "$ROOT" || die "installing r1jax in $active failed (see above)"
  fi
else
  environment=$ROOT/.venv
  [ -z "$active" ] || [ "$active" = "$environment" ] || say "the active environment $active lacks: ${missing:-a Python that runs}; using $environment"
  say "accelerator: $accelerator"
  make_venv "$environment"
  install "$environment/bin/python" "$extras"
fi

[ -z "$install_only" ] || exit 0
trap : INT # Ctrl-C is for the training, which ends and says from where it can go on; the last lines below still come
code=0
run "$environment/bin/r1jax" train "$config" "$@" || code=$?

say ""
say "r1jax is installed in $environment. From now on:"
[ "$environment" = "$active" ] || say "  source $environment/bin/activate"
[ "$accelerator" != cuda ] || say "  export XLA_PYTHON_CLIENT_MEM_FRACTION=$XLA_PYTHON_CLIENT_MEM_FRACTION"
say "  r1jax --help"
[ "$code" != 0 ] || say "  r1jax train $config"
exit "$code"
