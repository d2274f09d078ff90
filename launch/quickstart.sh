#!/usr/bin/env bash
# Installs rar_jax into .venv, trains RAR on the embedded digits, and samples images.
#   launch/quickstart.sh [cpu|cuda|tpu] [run folder]
set -euo pipefail
run=$(realpath -m "${2:-$(dirname "$0")/../runs/digits}")
cd "$(dirname "$0")/.."

launch/install.sh "${1:-cpu}"
began=$SECONDS
.venv/bin/python -m rar_jax.main --config=configs/digits.py --workdir="$run"
.venv/bin/python -m rar_jax sample --checkpoint="$run"

cat <<END

Trained and sampled in $((SECONDS - began)) s. The results are
  $run/samples/grid.png          samples, one row per class
  $run/figures/curves.png        losses, accuracy, learning rate, permutation probability r
  $run/figures/scan_orders.png   the six scan orders
To see the curves in a browser: pip install tensorboard; tensorboard --logdir=$run
END
