#!/usr/bin/env bash
# Quality on generated rows at the full Kaggle cardinalities: dense tables against tensor trains of four ranks, with
# held rows, and fitted to the trained dense tables with and without fine-tuning, against deep hash embeddings for all
# tables, for the largest, and beside every table; one epoch. The best possible AUC is known, because the rows are
# generated.
#
#   scripts/reproduce_quality_generated.sh [ROWS [SEEDS [JOBS [VARIANTS [TUNE_RATE]]]]]
#
#   ROWS       default 10000000
#   SEEDS      default 1
#   JOBS       runs at a time (default 1)
#   VARIANTS   of `recsys-opt bench quality`, with commas between
#   TUNE_RATE  the share of the learning rates for fine-tuning (default: what the sample's validation rows chose)
#
# 10 M rows need 1.6 GB of disk, 2.3 more for the dense model, 9 for checkpoints of a large model; a run takes up to 5 GB
# of memory and, on one quiet core, 6 minutes, those of deep hash embeddings 10 to 25. Interrupted, the same line goes on
# where it stopped, a run from its last checkpoint (remove build/quality_generated to begin anew).
set -euo pipefail
cd "$(dirname "$0")/.."
rows=${1:-10000000}
seeds=${2:-1}
jobs=${3:-1}
variants=${4:-dense,tt8,tt16,tt32,tt64,tt32@2x2x4,tt32+cache,tt32+bf16,svd32,svd32+tuned,fit32,dense+tuned,dhe,select,hybrid}
tune_rate=${5:-0.003}
hash_rate=0.006 # of 0.003 to 0.017 (the recipe's) the best on the validation rows after 400,000 rows
export PATH="$PWD/.venv/bin:$PATH"
work=build/quality_generated # relative, so that the records' command lines are
record=quality_generated_$rows.json

mkdir -p "$work"
[ -e "$work/data_$rows/dataset.json" ] || recsys-opt data synth --rows "$rows" --out "$work/data_$rows"
recsys-opt bench quality "$work/data_$rows" --variants "$variants" --seeds "$seeds" --jobs "$jobs" --batch-size 2048 \
  --tune-rate "$tune_rate" --hash-rate "$hash_rate" --work "$work" --record "$work/$record" --resume
mv "$work/$record" "benchmarks/results/$record"
rm -rf "$work"
