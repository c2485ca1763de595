#!/usr/bin/env bash
usage() {
  cat <<'USAGE'
usage: ZONE=... TYPE=... bash launch/tpu_vm.sh [--dry-run] NAME CONFIG --run-dir gs://BUCKET/RUN [--field value ...]

Trains CONFIG, a name from configs/, on the Cloud TPU slice NAME: makes the slice unless it is there, copies this checkout to
every host of it, installs r1jax there, starts the training on all and shows what host 0 prints. Run again, it goes on showing
a training that still runs, or resumes one that was stopped. A slice that was pre-empted is made again and the run goes on in
its bucket. The slice stays when the training has ended, and so does its price: the last line says how to delete it.

  ZONE=us-east5-b        where
  TYPE=v6e-8             accelerator type: v4-8, v5litepod-16, v5p-128, v6e-256, ...
  SPOT=1                 a spot slice: cheaper, and taken away at any time. The run directory has to be on gs:// then
  QUEUED=1               ask by a queued resource of the same name, and wait for it
  RUNTIME=...            software version of the hosts; without it that of TYPE
  PROJECT=...            without it gcloud's own
  RETRY=60               seconds between two looks at a slice that is being made or was lost

Needs gcloud, logged in. The slice's service account must be allowed to write to the bucket. Several hosts share no disk: they
need a run directory on gs://, or a path that you mount on each.
USAGE
}
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

case ${1:-} in
  -h | --help) usage && exit 0 ;;
  --dry-run) DRY_RUN=1 && shift ;;
esac
name=${1:-}
case $name in
  '' | -*) die "name a slice and a config: ZONE=... TYPE=... bash launch/tpu_vm.sh NAME CONFIG --run-dir gs://BUCKET/RUN" ;;
  *[!a-z0-9-]*) die "a slice is called by small letters, digits and -; not $name" ;;
esac
config=${2:-}
check_config "$config"
shift 2
retry=${RETRY:-60}
[ -n "${ZONE:-}" ] || die "set ZONE to the zone of the slice, for example ZONE=us-east5-b"
[ -n "${TYPE:-}" ] || die "set TYPE to the slice's accelerator type, for example TYPE=v6e-8"
runtime=${RUNTIME:-}
if [ -z "$runtime" ]; then
  case $TYPE in
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v4-*) runtime=tpu-ubuntu2204-base ;;
    *) die "TYPE=$TYPE is no type that this script knows the software version of; set RUNTIME too" ;;
  esac
fi
where=$(run_dir "$@")
case $where in
  gs://*/*) ;;
  *)
    [ -z "${SPOT:-}" ] || die "a spot slice takes its disks with it: give --run-dir gs://BUCKET/RUN (it is '${where:-none}')"
    [ -n "$where" ] || set -- "$@" --run-dir "runs/$name"
    say "note: the run directory is on the slice's own disk and goes with it; several hosts cannot share it" ;;
esac
[ -n "$DRY_RUN" ] || command -v gcloud >/dev/null || die "gcloud is not installed (https://cloud.google.com/sdk/docs/install)"

place=(--zone "$ZONE")
[ -z "${PROJECT:-}" ] || place+=(--project "$PROJECT")
tpu() { run gcloud compute tpus tpu-vm "$1" "${@:2}" "${place[@]}"; }
queue() { run gcloud compute tpus queued-resources "$1" "$name" "${@:2}" "${place[@]}"; }

# The slice's state, empty if there is none.
state() { gcloud compute tpus tpu-vm describe "$name" "${place[@]}" --format 'value(state)' 2>/dev/null || true; }

make_slice() {
  local spot=()
  [ -z "${SPOT:-}" ] || spot=(--spot)
  if [ -n "${QUEUED:-}" ]; then
    queue create --node-id "$name" --accelerator-type "$TYPE" --runtime-version "$runtime" ${spot[@]+"${spot[@]}"}
  else
    tpu create "$name" --accelerator-type "$TYPE" --version "$runtime" ${spot[@]+"${spot[@]}"}
  fi
}

remove_slice() {
  if [ -n "${QUEUED:-}" ]; then queue delete --force --quiet; else tpu delete "$name" --quiet; fi
}

# Returns when the slice is ready.
have_slice() {
  local found asked=''
  if [ -n "$DRY_RUN" ]; then make_slice && return; fi
  while :; do
    found=$(state)
    case $found in
      READY) return ;;
      '')
        if [ -n "${QUEUED:-}" ]; then
          asked=$(gcloud compute tpus queued-resources describe "$name" "${place[@]}" --format 'value(state.state)' 2>/dev/null || true)
        fi
        case $asked in
          '') say "making the slice $name ($TYPE)" && { make_slice || say "that did not work; again in $retry s"; } ;;
          SUSPENDED | FAILED) remove_slice || true ;;
          *) say "the queued resource $name is $asked" ;;
        esac ;;
      CREATING | STARTING | RESTARTING | REPAIRING) say "the slice $name is $found" ;;
      *) say "the slice $name is $found: it is made again" && { remove_slice || true; } && continue ;;
    esac
    [ "$(state)" = READY ] || sleep "$retry"
  done
}

# on WORKERS COMMAND: runs a shell command on hosts of the slice.
on() { tpu ssh "$name" --worker "$1" --command "$2"; }

words=$(printf '%q ' "$config" "$@")
# The images have Python 3.10; bubblewrap is what rewards run code in.
prepare="mkdir -p r1jax && tar -xzf r1jax.tgz -C r1jax && cd r1jax && { command -v python3.11 bwrap >/dev/null ||
  { sudo apt-get -q update && sudo apt-get -qy install python3.11 python3.11-venv bubblewrap; }; } &&
  bash launch/local.sh --install $words"
# It outlives the connection. One that still runs is left alone.
start="cd r1jax && if ! kill -0 \$(cat pid 2>/dev/null) 2>/dev/null; then rm -f code;
  setsid nohup bash -c $(printf %q "env $ASK_THE_MACHINE bash launch/local.sh $words; echo \$? >code") >train.log 2>&1 </dev/null &
  echo \$! >pid; fi"
follow="cd r1jax && tail -n 100 -F --pid=\$(cat pid) train.log"
running="kill -0 \$(cat r1jax/pid 2>/dev/null) 2>/dev/null"

archive=$(mktemp -d)
trap 'rm -rf "$archive"' EXIT
run tar -C "$ROOT" -czf "$archive/r1jax.tgz" LICENSE README.md configs launch pyproject.toml r1jax

while :; do
  have_slice
  # A slice may be lost at any of these; then it is made again.
  if { [ -z "$DRY_RUN" ] && on 0 "$running"; } || {
    tpu scp "$archive/r1jax.tgz" "$name:r1jax.tgz" --worker all && on all "$prepare" && on all "$start"
  }; then
    on 0 "$follow" || true
    [ -z "$DRY_RUN" ] || exit 0
    code=$(on 0 "cat r1jax/code" 2>/dev/null || true)
    case $code in
      0)
        say "done: $(run_dir "$@"). The slice is still there: gcloud compute tpus tpu-vm delete $name ${place[*]}"
        exit 0 ;;
      75 | '') say "stopped before its end (${code:-the connection or the slice was lost}); it goes on" ;;
      *) say "error: the training ended with $code, see above; the slice is still there" && exit "$code" ;;
    esac
  elif [ "$(state)" = READY ]; then
    die "installing on $name failed (see above)"
  fi
  sleep "$retry"
done
