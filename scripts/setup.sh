#!/usr/bin/env bash
# Makes .venv with torch and this package, built. Running it again does only what is missing.
#
#   scripts/setup.sh [cpu|cuda|system]
#
#   cpu     torch's CPU build, torchrec and FBGEMM's CPU build
#   cuda    torch's CUDA build, torchrec and FBGEMM
#   system  the torch that python3 already has; nothing is downloaded (for a machine without a network)
#
# Without an argument: system where python3 has torch >= 2.11 already, else cuda where nvidia-smi is, else cpu.
# PYTHON chooses the interpreter, CMAKE_ARGS goes to the native build.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

usable_torch() {
  "$python" - 2>/dev/null <<'PY'
import sys, torch
sys.exit(tuple(int(x) for x in torch.__version__.split("+")[0].split(".")[:2]) < (2, 11))
PY
}
kind=${1:-}
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

# What the environment depends on; while it is the same, nothing is installed again.
stamp=$(cat scripts/setup.sh scripts/fbgemm-gpu-shim/pyproject.toml pyproject.toml | sha256sum | cut -c1-16)-$kind
sources() { find csrc CMakeLists.txt setup.py -type f -exec sha256sum {} + | sort | sha256sum | cut -c1-16; }
built=$(sources)-${CMAKE_ARGS:-}

[ -x .venv/bin/python ] || "$python" -m venv $([ "$kind" = system ] && echo --system-site-packages) .venv
py=.venv/bin/python
pip="$py -m pip install --quiet --disable-pip-version-check"
if [ "$(cat .venv/.recsys_opt_installed 2>/dev/null)" != "$stamp" ]; then
  echo "setup: installing into .venv ($kind)" >&2
  if [ "$kind" = system ]; then
    $pip --no-build-isolation --no-deps --editable .
  else
    $pip torch==2.13.0 "$fbgemm" torchrec==1.8.0 'setuptools>=77' 'pybind11>=3' cmake ninja
    PATH="$PWD/.venv/bin:$PATH" $pip --no-build-isolation --editable '.[dev]'
  fi
  echo "$stamp" >.venv/.recsys_opt_installed
  echo "$built" >.venv/.recsys_opt_built
elif [ "$(cat .venv/.recsys_opt_built 2>/dev/null)" != "$built" ]; then
  echo "setup: building the native code" >&2
  PATH="$PWD/.venv/bin:$PATH" $py setup.py --quiet build_ext --inplace >&2
  echo "$built" >.venv/.recsys_opt_built
fi
echo "setup: ready; source .venv/bin/activate && recsys-opt --help" >&2
