#!/usr/bin/env bash
# A small DLRM's distance to the best possible AUC, at two numbers of generated rows.
#
#   scripts/reproduce_synth_gap.sh [options of `recsys-opt bench synth-gap`]
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
exec .venv/bin/recsys-opt bench synth-gap "$@"
