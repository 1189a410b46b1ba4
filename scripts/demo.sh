#!/usr/bin/env bash
# Set-up and the main job on generated data: generate, train dense and tensor-train tables, compare, report.
#
#   scripts/demo.sh [options of `recsys-opt demo`]        e.g. scripts/demo.sh --out /tmp/demo --rows 500000
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
exec .venv/bin/recsys-opt demo "$@"
