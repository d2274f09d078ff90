#!/usr/bin/env bash
# Trains on a Cloud TPU slice: creates it unless it is there, installs, runs on all its workers and shows their log.
# Started again when the run ends preempted and saved (exit code 75), on a new slice if this one was taken away.
#   launch/tpu_vm.sh [--dry_run] NAME ZONE TYPE --config=configs/rar_b.py --workdir=gs://BUCKET/RUN [more flags]
# such as: launch/tpu_vm.sh rar us-central1-a v5litepod-64 --config=...
# SIGTERM and SIGINT are passed on, and then it is not started again. The slice stays. In the environment:
#   TPU_VERSION        the runtime image; by default v5e's, v2-alpha-tpuv5-lite
#   TPU_CREATE_FLAGS   added when the slice is created, such as --spot
#   TPU_SETUP          a command for each worker, after every install: mounts the data, on a new slice too
#   TPU_MODULE         what is run; by default rar_jax.main
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
module=${TPU_MODULE:-rar_jax.main}
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

on_workers() { run "${tpu[@]}" ssh "$name" --zone="$zone" --worker=all --command="$1"; }

# READY, PREEMPTED, ... or nothing where there is no such slice.
state() { "${tpu[@]}" describe "$name" --zone="$zone" --format='value(state)' 2>/dev/null || true; }

# So many seconds, or until stopped.
pause() {
  local i
  for ((i = 0; i < $1; i++)); do
    if [ -n "$stopping" ]; then return; fi
    sleep 1
  done
}

create() {
  run "${tpu[@]}" create "$name" --zone="$zone" --accelerator-type="$type" --version="$version" \
    ${create_flags[@]+"${create_flags[@]}"}
}

# Makes sure that the slice is there; waits, until stopped, for a zone that has room for it.
provide() {
  local found
  while [ -z "$stopping" ]; do
    found=$(state)
    case "$found" in
      READY) return ;;
      "")
        if create 2>&1 | tee "$scratch/created" >&2; then continue; fi
        # Not for a mistake in the flags, or a quota.
        if [ -z "$stopping" ] && ! grep -qi capacity "$scratch/created"; then exit 1; fi
        echo "No room for a $type in $zone: trying again in a minute" >&2
        ;;
      # What is left of a slice that was taken away is in the way of a new one.
      PREEMPTED | TERMINATED)
        if "${tpu[@]}" delete "$name" --zone="$zone" --quiet; then continue; fi
        echo "The slice is $found and could not be deleted: trying again in a minute" >&2
        ;;
      *) echo "The slice is $found: looking again in a minute" >&2 ;;
    esac
    pause 60
  done
}

# Puts this project on the slice.
install() {
  run tar --exclude=./.git --exclude=./.venv --exclude=./runs -czf "$scratch/rar_jax.tgz" . &&
    run "${tpu[@]}" scp "$scratch/rar_jax.tgz" "$name:" --zone="$zone" --worker=all &&
    on_workers "mkdir -p rar_jax && tar -xzf rar_jax.tgz -C rar_jax && rar_jax/launch/install.sh tpu" &&
    if [ -n "${TPU_SETUP:-}" ]; then on_workers "$TPU_SETUP"; fi
}

# Whether the slice is taken away. It can be called READY for a while after its workers are gone.
taken_away() {
  local found
  echo "Asking for two minutes whether the slice was taken away" >&2
  for _ in {1..12}; do
    found=$(state)
    if [ -n "$stopping" ]; then return 1; fi
    if [ -n "$found" ] && [ "$found" != READY ]; then
      echo "The slice is $found" >&2
      return
    fi
    pause 10
  done
  return 1
}

# Each worker says its exit code itself: that of ssh to several need not be one of theirs.
printf -v flags '%q ' "$@"
train="cd rar_jax && { .venv/bin/python -m $module $flags; echo \"exit code \$?\"; }"
# Python alone, as the shell around it, whose command line has the same words, is to say the exit code; and where it has
# not begun yet, once it has.
end="for _ in \$(seq 30); do pkill -TERM -f '^[.]venv/bin/python -m ${module//./[.]} ' && break; sleep 1; done"

stopping=
training=
# shellcheck disable=SC2317,SC2329  # called by the trap
stop() {
  stopping=1 interrupted=1
  if [ -n "$training" ]; then on_workers "$end" || true; fi
}
trap stop TERM INT

if [ -n "$dry_run" ]; then
  create
  install
  on_workers "$train"
  exit
fi
while true; do
  provide
  codes=
  if [ -z "$stopping" ] && install && [ -z "$stopping" ]; then
    { on_workers "$train" || true; } 2>&1 | tee "$scratch/log" &
    training=$!
    # A trapped signal ends a wait early.
    while true; do
      interrupted=
      wait "$training" || true
      if [ -z "$interrupted" ]; then break; fi
    done
    training=
    codes=$(sed -n 's/.*exit code \([0-9]*\)$/\1/p' "$scratch/log" | sort -un | tr '\n' ' ')
  elif [ -n "$stopping" ]; then
    exit $preempted
  fi
  case "$codes" in
    "0 ") exit 0 ;;
    "$preempted " | "0 $preempted ") echo "Preempted and saved" >&2 ;;
    *)
      # Stopped before there was anything to save, or of a command that is not training.
      if [ "$codes" = "143 " ] && [ -n "$stopping" ]; then exit 143; fi
      echo "The workers ended with exit code ${codes:-unknown}" >&2
      # 2 is a user's mistake.
      if [ "$codes" = "2 " ] || ! taken_away; then
        echo "error: the slice is there, and its workers failed" >&2
        exit 1
      fi
      ;;
  esac
  if [ -n "$stopping" ]; then exit $preempted; fi
  echo "Starting again" >&2
done
