#!/usr/bin/env bash
# shellcheck disable=SC2034 # variables of gke.yaml are read by their names
usage() {
  cat <<'USAGE'
usage: IMAGE=... ACCELERATOR=... HOSTS=... CHIPS=... bash launch/gke.sh [--dry-run] NAME CONFIG --run-dir gs://BUCKET/RUN [...]

Trains CONFIG, a name from configs/, in a GKE cluster: fills launch/gke.yaml in and applies it. --dry-run prints it. The pods
start again together, and the run goes on, when a node was lost or the run was told to end and has saved.

  IMAGE=...              of launch/Dockerfile, built with --target tpu or cuda and pushed to where the cluster pulls from:
                         docker build -f launch/Dockerfile --target tpu -t IMAGE . && docker push IMAGE
  ACCELERATOR=...        as the node pool is labelled: tpu-v6e-slice, tpu-v5p-slice, nvidia-h100-80gb, ...
  TOPOLOGY=4x4           of a TPU slice
  HOSTS=4 CHIPS=4        nodes, and chips or GPUs of each
  ACCOUNT=default        Kubernetes service account, with access to the bucket
  SANDBOX=1              rewards run code: gives the pods what bubblewrap needs, CAP_SYS_ADMIN among it

Needs kubectl with the cluster as its context, and JobSet in the cluster (https://jobset.sigs.k8s.io). Look with
`kubectl get jobset NAME`, `kubectl logs -f -l jobset.sigs.k8s.io/jobset-name=NAME`; end it with `kubectl delete jobset NAME`.
USAGE
}
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

case ${1:-} in
  -h | --help) usage && exit 0 ;;
  --dry-run) DRY_RUN=1 && shift ;;
esac
NAME=${1:-}
case $NAME in
  '' | -*) die "name the job and a config: IMAGE=... bash launch/gke.sh NAME CONFIG --run-dir gs://BUCKET/RUN" ;;
  *[!a-z0-9-]*) die "a JobSet is called by small letters, digits and -; not $NAME" ;;
esac
config=${2:-}
check_config "$config"
shift 2
case $(run_dir "$@") in
  gs://*/*) ;;
  *) die "a pod's disk goes with it: give --run-dir gs://BUCKET/RUN (it is '$(run_dir "$@")')" ;;
esac
[ -n "${IMAGE:-}" ] || die "set IMAGE to the image of launch/Dockerfile; bash launch/gke.sh --help says how to build it"
case "${HOSTS:-}:${CHIPS:-}" in
  [1-9]*:[1-9]*) ;;
  *) die "set HOSTS to the number of nodes and CHIPS to the chips or GPUs of each" ;;
esac

# json WORD...: a list of strings.
json() {
  local list='' word
  for word in "$@"; do
    word=${word//\\/\\\\}
    list="$list${list:+, }\"${word//\"/\\\"}\""
  done
  echo "[$list]"
}

# These names are those in gke.yaml.
ACCOUNT=${ACCOUNT:-default}
ARGUMENTS=$(json train "$config" "$@")
SECURITY='{}'
if [ -n "${SANDBOX:-}" ]; then
  SECURITY='"seccompProfile": {"type": "Unconfined"}, "appArmorProfile": {"type": "Unconfined"}'
  SECURITY="{\"capabilities\": {\"add\": [\"SYS_ADMIN\"]}, $SECURITY}"
fi
case ${ACCELERATOR:-} in
  tpu-*)
    [ -n "${TOPOLOGY:-}" ] || die "set TOPOLOGY to that of the slice, for example TOPOLOGY=4x4"
    SELECTOR="{\"cloud.google.com/gke-tpu-accelerator\": \"$ACCELERATOR\", \"cloud.google.com/gke-tpu-topology\": \"$TOPOLOGY\"}"
    LIMITS="{\"google.com/tpu\": $CHIPS}"
    ENVIRONMENT="[{\"name\": \"${ASK_THE_MACHINE%%=*}\", \"value\": \"${ASK_THE_MACHINE#*=}\"}]"
    [ "$HOSTS" != 1 ] || ENVIRONMENT='[]' ;;
  nvidia-*)
    SELECTOR="{\"cloud.google.com/gke-accelerator\": \"$ACCELERATOR\"}"
    LIMITS="{\"nvidia.com/gpu\": $CHIPS}"
    # A JobSet gives its first pod this name.
    ENVIRONMENT="[{\"name\": \"R1JAX_COORDINATOR\", \"value\": \"$NAME-workers-0-0.$NAME:8476\"}"
    ENVIRONMENT="$ENVIRONMENT, {\"name\": \"R1JAX_NUM_PROCESSES\", \"value\": \"$HOSTS\"}, {\"name\": \"R1JAX_PROCESS_ID\", \"valueFrom\":"
    index="metadata.annotations['batch.kubernetes.io/job-completion-index']"
    ENVIRONMENT="$ENVIRONMENT {\"fieldRef\": {\"fieldPath\": \"$index\"}}}]"
    [ "$HOSTS" != 1 ] || ENVIRONMENT='[]' ;;
  *) die "set ACCELERATOR to the label of the node pool, tpu-... or nvidia-... (it is '${ACCELERATOR:-}')" ;;
esac

filled=$(cat "$ROOT/launch/gke.yaml")
for variable in NAME HOSTS SELECTOR ACCOUNT IMAGE ARGUMENTS ENVIRONMENT LIMITS SECURITY; do
  filled=${filled//"\${$variable}"/"${!variable}"}
done
if [ -n "$DRY_RUN" ]; then
  echo "$filled"
  exit 0
fi
command -v kubectl >/dev/null || die "kubectl is not installed (https://kubernetes.io/docs/tasks/tools)"
kubectl apply -f - <<<"$filled"
say "the pods: kubectl logs -f -l jobset.sigs.k8s.io/jobset-name=$NAME; end it: kubectl delete jobset $NAME"
