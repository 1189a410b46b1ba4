#!/usr/bin/env bash
# Quality of tables chosen by a memory budget, beside one rank for the largest tables at as many bytes, at four budgets
# on real rows: ids hashed to the full Kaggle cardinalities, one epoch, 80/10/10 in time order.
#
#   scripts/reproduce_budget.sh TRAIN_TXT [SEEDS [JOBS]]
#
#   TRAIN_TXT  Criteo Kaggle rows, plain or compressed; the record in benchmarks/results is of a 0.3 % sample
#   SEEDS      default 5
#   JOBS       runs at a time, one thread each (default: one a core)
set -euo pipefail
cd "$(dirname "$0")/.."
input=${1:?"usage: scripts/reproduce_budget.sh TRAIN_TXT [SEEDS [JOBS]]"}
export PATH="$PWD/.venv/bin:$PATH"
work=build/budget # relative, so that the record's command line is
rm -rf "$work"
trap 'rm -rf "$work"' EXIT

recsys-opt data prepare "$input" --format kaggle --out "$work/hashed" --hash
for size in 2MB 4MB 8MB 20MB; do
  recsys-opt data tables "$work/hashed" --memory-budget "$size"
done
recsys-opt bench quality "$work/hashed" --seeds "${2:-5}" --jobs "${3:-$(nproc)}" --evals-per-epoch 1 \
  --variants uniform2MB,budget2MB,uniform4MB,budget4MB,uniform8MB,budget8MB,uniform20MB,budget20MB \
  --record benchmarks/results/quality_budget.json
