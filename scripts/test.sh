#!/usr/bin/env bash
# All checks: format, lint, types, layers, tests.   scripts/test.sh [--slow] [pytest arguments]
#
# The tests run in as many processes as there are cores, 4 at most; "-n 0" runs them in one, as --pdb needs.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
export PATH="$PWD/.venv/bin:$PATH"

markers=(-m "not slow")
if [ "${1:-}" = --slow ]; then markers=(); shift; fi

step() {
  printf '== %s\n' "$*" >&2
  "$@"
}
# A machine set up with "system" may lack the linters; CI has them all.
if command -v ruff >/dev/null || [ -n "${CI:-}" ]; then
  step ruff format --check .
  step ruff check .
  step clang-format --dry-run --Werror $(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')
  step mypy
  step lint-imports
else
  echo "test: the linters are not installed here; running the tests alone" >&2
fi
# So too pytest-xdist. A process that has done its tests takes over some of another's.
workers=()
if python -c 'import xdist' 2>/dev/null; then
  cores=$(nproc)
  workers=(-n "$((cores < 4 ? cores : 4))" --dist worksteal)
fi
step python -m pytest ${markers[@]+"${markers[@]}"} ${workers[@]+"${workers[@]}"} "$@"
