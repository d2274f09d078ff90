#!/usr/bin/env bash
# Makes .venv in the project's folder if need be and installs rar_jax into it.
#   launch/install.sh [cpu|cuda|tpu] [more extras, such as test]
set -euo pipefail
cd "$(dirname "$0")/.."

platform=${1:-cpu}
case "$platform" in
  cpu | cuda | tpu) ;;
  *) echo "error: platform '$platform' must be cpu, cuda or tpu" >&2; exit 2 ;;
esac
extras=$platform${2:+,$2}

if ! command -v python3 >/dev/null; then
  echo "error: python3 is not here; install Python 3.11 or later" >&2
  exit 2
fi
if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "error: $(python3 --version) is too old; install Python 3.11 or later" >&2
  exit 2
fi
if [ ! -x .venv/bin/pip ]; then
  python3 -m venv .venv || { echo "error: python3 has no venv module; on Debian: apt-get install python3-venv" >&2; exit 2; }
fi

# Installed already? A stamp for each set of extras holds the checksum of the setup.py it was installed from.
stamp=.venv/installed-$extras
if [ "$(cat "$stamp" 2>/dev/null)" != "$(cksum <setup.py)" ]; then
  echo "Installing rar_jax[$extras] into .venv ..."
  .venv/bin/pip install --quiet --disable-pip-version-check -e ".[$extras]"
  cksum <setup.py >"$stamp"
fi
