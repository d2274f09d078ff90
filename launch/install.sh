#!/usr/bin/env bash
# Installs rar_jax into .venv in the project's folder, which is created if it does not exist.
#   launch/install.sh [cpu|cuda|tpu|aot] [more extras, such as test]
# aot is cpu with the GPU compiler (about 180 MB, without NVIDIA's libraries), for python -m rar_jax aot.
# The script uses the first of python3.13, python3.12, python3.11 and python3 that is 3.11 or later and has venv. If
# there is none, as on TPU images with Python 3.10, uv downloads Python 3.12 into ~/.local/share/uv and leaves the
# system unchanged.
set -euo pipefail
cd "$(dirname "$0")/.."

platform=${1:-cpu}
case "$platform" in
  cpu | cuda | tpu | aot) ;;
  *) echo "error: platform '$platform' must be cpu, cuda, tpu or aot" >&2; exit 2 ;;
esac
IFS=,
extras="$platform${2:+,${*:2}}"
unset IFS

# Debian's python3 lacks ensurepip, which is in the package python3-venv.
usable() { "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

make_venv() {
  local python uv scratch
  for python in python3.13 python3.12 python3.11 python3; do
    if usable "$python"; then
      "$python" -m venv .venv
      return
    fi
  done
  echo "No Python 3.11 or later with venv was found: downloading Python 3.12 with uv ..."
  scratch=$(mktemp -d)
  # shellcheck disable=SC2064  # expanded now, because the variable is local
  trap "rm -rf '$scratch'" EXIT
  uv=uv
  if ! command -v uv >/dev/null && python3 -m pip install --quiet --target "$scratch" uv; then uv=$scratch/bin/uv; fi
  "$uv" venv --quiet --seed --python 3.12 .venv || {
    echo "error: install Python 3.11 or later with venv (on Debian and Ubuntu: apt-get install python3.11-venv), or uv" >&2
    exit 2
  }
}

if [ ! -x .venv/bin/pip ]; then make_venv; fi

# A stamp for each set of extras holds the checksum of the setup.py that was installed.
stamp=.venv/installed-$extras
if [ "$(cat "$stamp" 2>/dev/null)" != "$(cksum <setup.py)" ]; then
  echo "Installing rar_jax[$extras] into .venv ..."
  .venv/bin/pip install --quiet --disable-pip-version-check -e ".[$extras]"
  cksum <setup.py >"$stamp"
fi
