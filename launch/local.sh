#!/usr/bin/env bash
# Trains in N processes on this machine, and restarts them whenever they were preempted and saved (exit code 75).
#   launch/local.sh [--dry_run] N --config=configs/digits.py [more flags of rar_jax.main]
# With --dry_run the commands are printed and not run. Process i uses GPU i, or the i-th GPU of CUDA_VISIBLE_DEVICES.
# SIGTERM and SIGINT are forwarded to the processes, which are then not restarted.
set -euo pipefail
cd "$(dirname "$0")/.."
preempted=75

dry_run=
if [ "${1:-}" = --dry_run ]; then
  dry_run=1
  shift
fi
count=${1:-}
if ! [[ "$count" =~ ^[1-9][0-9]*$ ]]; then
  echo "error: N must be the number of processes: launch/local.sh N --config=configs/NAME.py [flags]" >&2
  exit 2
fi
shift

if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then
  IFS=, read -r -a gpus <<<"$CUDA_VISIBLE_DEVICES"
  if [ "$count" -gt ${#gpus[@]} ]; then
    echo "error: CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES has ${#gpus[@]} GPUs for $count processes" >&2
    exit 2
  fi
elif [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
  # An empty CUDA_VISIBLE_DEVICES hides all GPUs.
  gpus=()
else
  mapfile -t gpus < <(seq 0 $((count - 1)))
fi

# Draws the coordinator's port, so that a restart does not wait for the port of the previous start.
port() { echo $((20000 + (RANDOM * 32768 + RANDOM) % 20000)); }

pids=()
stopping=
interrupted=
# shellcheck disable=SC2317,SC2329  # called by the trap
stop() {
  stopping=1 interrupted=1
  if [ ${#pids[@]} -gt 0 ]; then kill -TERM "${pids[@]}" 2>/dev/null || true; fi
}
trap stop TERM INT

# Waits for all processes. Returns the first exit code of a failure, otherwise 75 if one was preempted, otherwise 0.
wait_for_all() {
  local pid code result=0
  for pid in "${pids[@]}"; do
    # A trapped signal interrupts wait, which is then called again.
    while true; do
      interrupted=
      code=0
      wait "$pid" || code=$?
      if [ -z "$interrupted" ]; then break; fi
    done
    if [ "$code" != 0 ] && { [ "$result" = 0 ] || [ "$result" = $preempted ]; }; then result=$code; fi
  done
  return "$result"
}

while true; do
  address=127.0.0.1:$(port)
  pids=()
  for ((i = 0; i < count; i++)); do
    command=(.venv/bin/python -m rar_jax.main "$@"
      --coordinator_address="$address" --num_processes="$count" --process_id="$i")
    if [ -n "$dry_run" ]; then
      printf '%q ' "CUDA_VISIBLE_DEVICES=${gpus[i]:-}" "${command[@]}"
      echo
      continue
    fi
    CUDA_VISIBLE_DEVICES=${gpus[i]:-} "${command[@]}" &
    pids+=($!)
  done
  if [ -n "$dry_run" ]; then exit 0; fi
  code=0
  wait_for_all || code=$?
  if [ "$code" != $preempted ] || [ -n "$stopping" ]; then exit "$code"; fi
  echo "Preempted and saved: restarting" >&2
done
