#!/usr/bin/env bash
# Trains on a Cloud TPU slice: creates the slice if it does not exist, installs this project, runs the command on all
# workers and shows their log. It restarts a run that was preempted and saved (exit code 75), on a new slice if the old
# one was reclaimed.
#   launch/tpu_vm.sh [--dry_run] NAME ZONE TYPE --config=configs/rar_b.py --workdir=gs://BUCKET/RUN [more flags]
# for example: launch/tpu_vm.sh rar us-central1-a v5litepod-64 --config=...
# With --dry_run the commands are printed and not run. SIGTERM and SIGINT are forwarded to the run, which is then not
# restarted. The slice is not deleted at the end. Environment variables:
#   TPU_VERSION        runtime image; the default is v2-alpha-tpuv5-lite, the image for v5e
#   TPU_CREATE_FLAGS   more flags for creating the slice, such as --spot
#   TPU_SETUP          command that each worker runs after every install, for example to mount the data
#   TPU_COMMAND        command of python -m rar_jax, such as sample; the default is train (python -m rar_jax.main)
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
case ${TPU_COMMAND:-train} in
  train) program=rar_jax.main ;;
  *) program="rar_jax $TPU_COMMAND" ;;
esac
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

# Prints the state of the slice, such as READY or PREEMPTED, or nothing if the slice does not exist.
state() { "${tpu[@]}" describe "$name" --zone="$zone" --format='value(state)' 2>/dev/null || true; }

# Sleeps for a number of seconds, or until the script is stopped.
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

# Creates the slice if it does not exist. Waits until the zone has capacity, or until the script is stopped.
provide() {
  local found
  while [ -z "$stopping" ]; do
    found=$(state)
    case "$found" in
      READY) return ;;
      "")
        if create 2>&1 | tee "$scratch/created" >&2; then continue; fi
        # Waiting does not help against a mistake in the flags or a quota.
        if [ -z "$stopping" ] && ! grep -qi capacity "$scratch/created"; then exit 1; fi
        echo "No capacity for a $type in $zone: trying again in a minute" >&2
        ;;
      # A reclaimed slice must be deleted before a new one of the same name can be created.
      PREEMPTED | TERMINATED)
        if "${tpu[@]}" delete "$name" --zone="$zone" --quiet; then continue; fi
        echo "The slice is $found and could not be deleted: trying again in a minute" >&2
        ;;
      *) echo "The slice is $found: checking again in a minute" >&2 ;;
    esac
    pause 60
  done
}

# Copies this project to the workers and installs it.
install() {
  run tar --exclude=./.git --exclude=./.venv --exclude=./runs -czf "$scratch/rar_jax.tgz" . &&
    run "${tpu[@]}" scp "$scratch/rar_jax.tgz" "$name:" --zone="$zone" --worker=all &&
    on_workers "mkdir -p rar_jax && tar -xzf rar_jax.tgz -C rar_jax && rar_jax/launch/install.sh tpu" &&
    if [ -n "${TPU_SETUP:-}" ]; then on_workers "$TPU_SETUP"; fi
}

# Succeeds if the slice was reclaimed. Its state can still be READY for a while after its workers are gone.
reclaimed() {
  local found
  echo "Checking for two minutes whether the slice was reclaimed" >&2
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

# Each worker prints its exit code, because the exit code of ssh to several workers need not be one of theirs.
printf -v flags '%q ' "$@"
train="cd rar_jax && { .venv/bin/python -m $program $flags; echo \"exit code \$?\"; }"
# The pattern matches Python, but not the shell that started it, which has the same words in its command line and must
# still print the exit code. The loop waits for a Python that has not started yet.
end="for _ in \$(seq 30); do pkill -TERM -f '^[.]venv/bin/python -m ${program//./[.]} ' && break; sleep 1; done"

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
    # A trapped signal interrupts wait, which is then called again.
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
      # Stopped before there was anything to save, or while running a command that does not save.
      if [ "$codes" = "143 " ] && [ -n "$stopping" ]; then exit 143; fi
      echo "The workers ended with exit code ${codes:-unknown}" >&2
      # Exit code 2 is a user's mistake, which a restart does not correct.
      if [ "$codes" = "2 " ] || ! reclaimed; then
        echo "error: the workers failed, but the slice was not reclaimed" >&2
        exit 1
      fi
      ;;
  esac
  if [ -n "$stopping" ]; then exit $preempted; fi
  echo "Restarting" >&2
done
