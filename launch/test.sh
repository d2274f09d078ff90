#!/usr/bin/env bash
# Installs rar_jax into .venv, checks formatting and lint, and runs the tests.
#   launch/test.sh [cpu|cuda|tpu] [--long]     --long also runs the tests that take minutes
set -euo pipefail
cd "$(dirname "$0")/.."
platform=cpu
marker="not long"
for argument in "$@"; do
  case "$argument" in
    --long) marker="long or not long" ;;
    *) platform=$argument ;;
  esac
done

launch/install.sh "$platform" test
.venv/bin/ruff format --check .
.venv/bin/ruff check .
.venv/bin/python -m pytest -n 2 --dist loadfile --durations=10 -m "$marker"
