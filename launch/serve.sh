#!/usr/bin/env bash
# Installs rar_jax with the page into .venv and opens the page of a run. If the run's folder does not exist, it first
# trains configs/digits_any_order.py there; without a folder, which comes first, in runs/digits_any_order.
#   launch/serve.sh [run folder] [more flags of python -m rar_jax serve]
# Environment variable PLATFORM: the JAX build to install, cpu (default), cuda or tpu.
set -euo pipefail
cd "$(dirname "$0")/.."
run=runs/digits_any_order
train=1
if [ $# -gt 0 ] && [[ $1 != -* ]]; then
  run=$1
  shift
  if [ -e "$run" ]; then train=; fi
fi

launch/install.sh "${PLATFORM:-cpu}" demo
# If this run is complete, it is not trained again, and if it was interrupted, it is resumed.
if [ -n "$train" ]; then .venv/bin/python -m rar_jax.main --config=configs/digits_any_order.py --workdir="$run"; fi
exec .venv/bin/python -m rar_jax serve --checkpoint="$run" "$@"
