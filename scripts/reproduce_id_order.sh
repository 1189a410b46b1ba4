#!/usr/bin/env bash
# What the order of ids does on real rows: distinct prefixes and the op's time, then quality, for ids hashed to the full
# Kaggle cardinalities and the same ids by frequency and by co-occurrence. One epoch, 80/10/10 in time order.
#
#   scripts/reproduce_id_order.sh TRAIN_TXT [SEEDS [JOBS]]
#
#   TRAIN_TXT  Criteo Kaggle rows, plain or compressed; the records in benchmarks/results are of a 0.3 % sample
#   SEEDS      default 3
#   JOBS       training runs at a time, one thread each (default: one a core)
set -euo pipefail
cd "$(dirname "$0")/.."
input=${1:?"usage: scripts/reproduce_id_order.sh TRAIN_TXT [SEEDS [JOBS]]"}
export PATH="$PWD/.venv/bin:$PATH"
work=build/id_order # relative, so that the records' command lines are
rm -rf "$work"
trap 'rm -rf "$work"' EXIT

recsys-opt data prepare "$input" --format kaggle --out "$work/hashed" --hash
recsys-opt bench order "$work/hashed" --record benchmarks/results/id_order.json
for by in frequency cooccurrence; do
  recsys-opt data reorder "$work/hashed" --by "$by" --out "$work/$by"
done
for order in hashed frequency cooccurrence; do
  recsys-opt bench quality "$work/$order" --variants tt8,tt32 --seeds "${2:-3}" --jobs "${3:-$(nproc)}" \
    --evals-per-epoch 1 --record "benchmarks/results/quality_order_$order.json"
done
