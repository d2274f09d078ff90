#!/usr/bin/env bash
# From a clone to pictures: installs into .venv, trains RAR on the embedded digits, samples, draws.
#   launch/quickstart.sh [cpu|cuda|tpu] [run folder]
set -euo pipefail
cd "$(dirname "$0")/.."
run=${2:-runs/digits}

launch/install.sh "${1:-cpu}"
began=$SECONDS
.venv/bin/python -m rar_jax.main --config=configs/digits.py --workdir="$run"
.venv/bin/python -m rar_jax sample --checkpoint="$run"

cat <<END

Trained and sampled in $((SECONDS - began)) s. Look at
  $run/samples/grid.png          samples, one class a row
  $run/figures/curves.png        losses, accuracy, learning rate, r
  $run/figures/scan_orders.png   the six scan orders
and, for the curves in a browser: pip install tensorboard; tensorboard --logdir=$run
END
