#!/usr/bin/env bash
# Quality on real rows: dense tables and a logistic regression on vocabulary ids; then, with ids hashed to the full
# Kaggle cardinalities, dense tables against tensor trains of four ranks, with held rows, and fitted to the trained
# dense tables (by TT-SVD, and to the rows that the training rows look up) with and without fine-tuning, at a share of
# the learning rates that is chosen on the validation rows.
# Then representations on the hashed ids: dense tables, tensor trains, deep hash embeddings, hybrids, and deep hash
# embeddings for the largest tables, each at the learning rates that the validation rows chose of 8 settings. One
# epoch, 80/10/10 in time order, 5 seeds.
#
#   scripts/reproduce_quality_sample.sh TRAIN_TXT [SEARCH [JOBS [SEEDS]]]
#
#   TRAIN_TXT  Criteo Kaggle rows, plain or compressed; the records in benchmarks/results are of a 0.3 % sample
#   SEARCH     learning-rate settings tried on the validation rows for each variant (default 0: the recipe's, which
#              come from such a search, benchmarks/results/quality_sample_search.json)
#   JOBS       runs at a time, one thread and up to 2.4 GB each (default: one a core)
#   SEEDS      default 5
#
# About 15 s a run on a quiet core, 20 s more for each TT-SVD and 90 s for each fit by lookups; 100 runs with 5 seeds. The
# representations are 78 runs of 10 to 30 s. Interrupted, the same line goes on where it stopped (remove
# build/quality_sample to begin anew).
set -euo pipefail
cd "$(dirname "$0")/.."
input=$(realpath "${1:?"usage: scripts/reproduce_quality_sample.sh TRAIN_TXT [SEARCH [JOBS [SEEDS]]]"}")
search=${2:-0}
jobs=${3:-$(nproc)}
seeds=${4:-5}
export PATH="$PWD/.venv/bin:$PATH"
work=build/quality_sample # relative, so that the records' command lines are
results=benchmarks/results
mkdir -p "$work"
for ids in vocabulary hashed; do
  [ "$ids" = hashed ] && flag=(--hash) || flag=(--min-count 2)
  [ -e "$work/$ids/dataset.json" ] || recsys-opt data prepare "$input" --format kaggle --out "$work/$ids" "${flag[@]}"
done
common=(--seeds "$seeds" --search "$search" --jobs "$jobs" --logistic --resume)
recsys-opt bench quality "$work/vocabulary" --variants dense "${common[@]}" \
  --record "$work/quality_sample_vocabulary.json"
recsys-opt bench quality "$work/hashed" "${common[@]}" --work "$work" \
  --variants dense,tt8,tt16,tt32,tt64,tt32@2x2x4,tt32+cache,svd8,svd16,svd32,svd64,fit32,dense+tuned,svd32+tuned,svd64+tuned,fit32+tuned \
  --tune-rate 0.003 0.03 --record "$work/quality_sample_hashed.json"
# The recipe's rates are those of tables and tensor trains: here every representation has a search of its own.
recsys-opt bench quality "$work/hashed" --variants dense,tt32,dhe,hybrid,hybrid@halves,select --search 8 \
  --seeds "$seeds" --jobs "$jobs" --resume --work "$work" --record "$work/quality_sample_representations.json"
mv "$work"/quality_sample_*.json "$results/"
rm -rf "$work"
