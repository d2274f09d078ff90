#!/usr/bin/env bash
# Installs rar_jax with the page into .venv and opens the page of a run. If the run's folder does not exist, it first
# trains configs/digits_any_order.py there.
#   launch/serve.sh [run folder] [more flags of python -m rar_jax serve]
# The folder, if one is given, must be the first argument. Default: runs/digits_any_order.
# Environment variable PLATFORM: the JAX build to install, cpu (default), cuda or tpu.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
run=$root/runs/digits_any_order
train=1
if [ $# -gt 0 ] && [[ $1 != -* ]]; then
  run=$1
  shift
  if [ -e "$run" ]; then train=; fi
fi

"$root/launch/install.sh" "${PLATFORM:-cpu}" demo
# The default run is resumed if it was interrupted. A named folder that exists is used as it is.
if [ -n "$train" ]; then
  "$root/.venv/bin/python" -m rar_jax.main --config="$root/configs/digits_any_order.py" --workdir="$run"
fi
exec "$root/.venv/bin/python" -m rar_jax serve --checkpoint="$run" "$@"
