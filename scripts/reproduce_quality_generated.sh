#!/usr/bin/env bash
# Quality on generated rows at the full Kaggle cardinalities: dense tables against tensor trains, one epoch, and the
# best possible AUC, which is known because the rows are generated.
#
#   scripts/reproduce_quality_generated.sh [ROWS [SEEDS [JOBS]]]        default: 10000000 rows, 1 seed, 1 job
#
# 10 M rows need 1.6 GB of disk; a run takes up to 2.8 GB of memory.
set -euo pipefail
cd "$(dirname "$0")/.."
rows=${1:-10000000}
seeds=${2:-1}
jobs=${3:-1}
export PATH="$PWD/.venv/bin:$PATH"
work=build/quality_generated # relative, so that the records' command lines are
rm -rf "$work"
trap 'rm -rf "$work"' EXIT

recsys-opt data synth --rows "$rows" --out "$work/data"
recsys-opt bench quality "$work/data" --variants dense,tt --seeds "$seeds" --jobs "$jobs" --batch-size 2048 \
  --record "benchmarks/results/quality_generated_$rows.json"
