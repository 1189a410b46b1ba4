#!/usr/bin/env bash
# Makes .venv with torch and this package, built. Running it again does only what is missing.
#
#   scripts/setup.sh [cpu|cuda|system]
#
#   cpu     torch's CPU build, torchrec and FBGEMM's CPU build
#   cuda    torch's CUDA build, torchrec and FBGEMM
#   system  the torch that python3 already has; nothing is downloaded (for a machine without a network)
#
# Without an argument: as last time; the first time system where python3 has torch >= 2.11 already, else cuda where nvidia-smi is, else cpu.
# PYTHON chooses the interpreter, CMAKE_ARGS goes to the native build.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
case $(command -v "$python") in # with .venv active: the interpreter that .venv was made from
  "$PWD"/.venv/*) python=$("$python" -c 'import sys; print(sys._base_executable)') ;;
esac

usable_torch() {
  "$python" - 2>/dev/null <<'PY'
import sys, torch
sys.exit(tuple(int(x) for x in torch.__version__.split("+")[0].split(".")[:2]) < (2, 11))
PY
}
kind=${1:-$(sed 's/.*-//' .venv/.installed 2>/dev/null || true)}
if [ -z "$kind" ]; then
  if usable_torch; then kind=system
  elif command -v nvidia-smi >/dev/null; then kind=cuda
  else kind=cpu; fi
fi
case $kind in
  cpu) fbgemm=./scripts/fbgemm-gpu-shim ;; # meets torchrec's "fbgemm-gpu" with the CPU build
  cuda) fbgemm=fbgemm-gpu==1.8.0 ;;
  system) fbgemm= ;;
  *) sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac

# What the environment and the native code depend on; while it is the same, nothing is done again.
installed=$(cat scripts/setup.sh scripts/fbgemm-gpu-shim/pyproject.toml pyproject.toml | sha256sum | cut -c1-16)-$kind
built=$(find csrc CMakeLists.txt setup.py -type f -exec sha256sum {} + | sort | sha256sum | cut -c1-16)-${CMAKE_ARGS:-}

mkdir -p build
exec 9>build/.setup.lock # two runs at once take turns
flock 9

# Runs a command; shows what it printed only when it fails.
quietly() {
  "$@" >build/setup.log 2>&1 || { cat build/setup.log >&2; echo "setup: failed: $*" >&2; exit 1; }
}

.venv/bin/python -m pip --version >/dev/null 2>&1 || "$python" -m venv .venv
purelib() { "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }
if [ "$kind" = system ]; then
  # Not --system-site-packages: where python3 belongs to a virtual environment, that would pass over its packages.
  purelib "$python" >"$(purelib .venv/bin/python)/recsys_opt_system.pth"
  .venv/bin/python -m pip uninstall --quiet --yes setuptools 2>/dev/null || true # an old one would hide the system's
  PATH="$PATH:$("$python" -c 'import sysconfig; print(sysconfig.get_path("scripts"))')"
fi
export PATH="$PWD/.venv/bin:$PATH" PIP_DISABLE_PIP_VERSION_CHECK=1
pip() { quietly python -m pip install --quiet "$@"; }

if [ "$(cat .venv/.installed 2>/dev/null)" != "$installed" ]; then
  echo "setup: installing into .venv ($kind) and building the native code, 1 to 3 minutes" >&2
  if [ "$kind" = system ]; then
    pip --no-build-isolation --no-deps --editable .
  else
    pip torch==2.13.0 "$fbgemm" torchrec==1.8.0 'setuptools>=77' 'pybind11>=3' cmake ninja
    pip --no-build-isolation --editable '.[dev]'
  fi
  echo "$built" >.venv/.built
  echo "$installed" >.venv/.installed
elif [ "$(cat .venv/.built 2>/dev/null)" != "$built" ] || [ ! -e recsys_opt/librecsys_opt.so ]; then
  echo "setup: building the native code" >&2
  quietly python setup.py --quiet build_ext --inplace
  echo "$built" >.venv/.built
fi
echo "setup: ready; source .venv/bin/activate && recsys-opt --help" >&2
