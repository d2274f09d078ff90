#!/usr/bin/env bash
# Trains on a Cloud TPU slice: creates it unless it is there, installs, runs on all its workers and shows their log.
# Started again when the run ends preempted and saved (exit code 75), on a new slice if this one was taken away.
#   launch/tpu_vm.sh [--dry_run] NAME ZONE TYPE --config=configs/rar_b.py --workdir=gs://BUCKET/RUN [more flags]
# such as: launch/tpu_vm.sh rar us-central1-a v5litepod-64 --config=...
# TPU_VERSION names the runtime image (by default v5e's, v2-alpha-tpuv5-lite); TPU_CREATE_FLAGS are added when the slice
# is created, such as --spot. SIGTERM and SIGINT are passed on, and then it is not started again. The slice stays.
set -euo pipefail
cd "$(dirname "$0")/.."
preempted=75

dry_run=
if [ "${1:-}" = --dry_run ]; then
  dry_run=1
  shift
fi
if [ $# -lt 4 ]; then
  echo "error: launch/tpu_vm.sh NAME ZONE TYPE --config=configs/NAME.py --workdir=gs://BUCKET/RUN [flags]" >&2
  exit 2
fi
name=$1 zone=$2 type=$3
shift 3
version=${TPU_VERSION:-v2-alpha-tpuv5-lite}
read -r -a create_flags <<<"${TPU_CREATE_FLAGS:-}"
tpu=(gcloud compute tpus tpu-vm)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

run() {
  if [ -z "$dry_run" ]; then
    "$@"
    return
  fi
  local argument
  for argument in "$@"; do
    if [[ "$argument" =~ ^[A-Za-z0-9_./:=,-]+$ ]]; then printf '%s ' "$argument"; else printf '%s ' "${argument@Q}"; fi
  done
  echo
}

# READY, PREEMPTED, ... or nothing where there is no such slice.
state() { "${tpu[@]}" describe "$name" --zone="$zone" --format='value(state)' 2>/dev/null || true; }

# Makes sure that the slice is there, with this project on it.
provide() {
  local found=
  if [ -z "$dry_run" ]; then found=$(state); fi
  if [ "$found" != READY ]; then
    # What is left of a slice that was taken away is in the way of a new one.
    if [ -n "$found" ]; then "${tpu[@]}" delete "$name" --zone="$zone" --quiet; fi
    run "${tpu[@]}" create "$name" --zone="$zone" --accelerator-type="$type" --version="$version" \
      ${create_flags[@]+"${create_flags[@]}"}
  fi
  run tar --exclude=./.git --exclude=./.venv --exclude=./runs -czf "$scratch/rar_jax.tgz" .
  run "${tpu[@]}" scp "$scratch/rar_jax.tgz" "$name:" --zone="$zone" --worker=all
  on_workers "mkdir -p rar_jax && tar -xzf rar_jax.tgz -C rar_jax && rar_jax/launch/install.sh tpu"
}

on_workers() { run "${tpu[@]}" ssh "$name" --zone="$zone" --worker=all --command="$1"; }

# Each worker says its exit code itself: that of ssh to several need not be one of theirs.
printf -v flags '%q ' "$@"
train="cd rar_jax && { .venv/bin/python -m rar_jax.main $flags; echo \"exit code \$?\"; }"

stopping=
# shellcheck disable=SC2317,SC2329  # called by the trap
stop() {
  stopping=1 interrupted=1
  on_workers "pkill -TERM -f '[r]ar_jax.main'" || true
}
trap stop TERM INT

while true; do
  provide
  if [ -n "$dry_run" ]; then
    on_workers "$train"
    exit
  fi
  { on_workers "$train" || true; } 2>&1 | tee "$scratch/log" &
  # A trapped signal ends a wait early.
  while true; do
    interrupted=
    wait $! || true
    if [ -z "$interrupted" ]; then break; fi
  done
  codes=$(sed -n 's/.*exit code \([0-9]*\)$/\1/p' "$scratch/log" | sort -un | tr '\n' ' ')
  case "$codes" in
    "0 ") exit 0 ;;
    "$preempted " | "0 $preempted ") echo "Preempted and saved" >&2 ;;
    *)
      found=$(state)
      if [ "$found" = READY ] || [ -z "$found" ]; then
        echo "error: the workers ended with exit code ${codes:-unknown}" >&2
        exit 1
      fi
      echo "The slice is $found" >&2
      ;;
  esac
  if [ -n "$stopping" ]; then exit $preempted; fi
  echo "Starting again" >&2
done
