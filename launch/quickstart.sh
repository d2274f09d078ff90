#!/usr/bin/env bash
# Installs rar_jax into .venv, trains RAR on the embedded digits, and samples images.
#   launch/quickstart.sh [cpu|cuda|tpu] [run folder]
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
run=${2:-$root/runs/digits}

"$root/launch/install.sh" "${1:-cpu}"
began=$SECONDS
"$root/.venv/bin/python" -m rar_jax.main --config="$root/configs/digits.py" --workdir="$run"
"$root/.venv/bin/python" -m rar_jax sample --checkpoint="$run"

cat <<END

Trained and sampled in $((SECONDS - began)) s. The results are
  $run/samples/grid.png          samples, one row per class
  $run/figures/curves.png        losses, accuracy, learning rate, permutation probability r
  $run/figures/scan_orders.png   the six scan orders
To see the curves in a browser: pip install tensorboard; tensorboard --logdir=$run
END
