#!/usr/bin/env bash
# Quality on real rows: dense tables and a logistic regression on vocabulary ids; then dense tables against tensor
# trains with ids hashed to the full Kaggle cardinalities. One epoch, 80/10/10 in time order, 5 seeds.
#
#   scripts/reproduce_quality_sample.sh TRAIN_TXT [SEARCH [JOBS]]
#
#   TRAIN_TXT  Criteo Kaggle rows, plain or compressed; the records in benchmarks/results are of a 0.3 % sample
#   SEARCH     learning-rate settings tried on the validation rows for each variant (default 0: the recipe's, which
#              come from such a search, benchmarks/results/quality_sample_search.json)
#   JOBS       runs at a time, one thread and up to 2.4 GB each (default: one a core)
set -euo pipefail
cd "$(dirname "$0")/.."
input=${1:?"usage: scripts/reproduce_quality_sample.sh TRAIN_TXT [SEARCH [JOBS]]"}
search=${2:-0}
jobs=${3:-$(nproc)}
export PATH="$PWD/.venv/bin:$PATH"
work=build/quality_sample # relative, so that the records' command lines are
rm -rf "$work"
trap 'rm -rf "$work"' EXIT

recsys-opt data prepare "$input" --format kaggle --out "$work/vocabulary" --min-count 2
recsys-opt data prepare "$input" --format kaggle --out "$work/hashed" --hash
recsys-opt bench quality "$work/vocabulary" --variants dense --logistic --seeds 5 --search "$search" --jobs "$jobs" \
  --record benchmarks/results/quality_sample_vocabulary.json
recsys-opt bench quality "$work/hashed" --variants dense,tt --logistic --seeds 5 --search "$search" --jobs "$jobs" \
  --record benchmarks/results/quality_sample_hashed.json
