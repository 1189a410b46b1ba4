#!/usr/bin/env bash
# Redraws benchmarks/results/placement_<tables>.json: plans of ours, of the greedy baselines and of TorchRec,
# made from the statistics of 8 batches of generated lookups and held against the 2 batches that follow.
#
#   scripts/reproduce_placement.sh [TABLES [BATCH [FOLDER]]]     397, 4096, a temporary folder
#
# With the defaults: 2.5 GB of disk; some 12 minutes, most of them TorchRec's search.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
export PATH=$PWD/.venv/bin:$PATH
tables=${1:-397} batch=${2:-4096} folder=${3:-}
if [[ -z $folder ]]; then
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
fi
trace=$folder/trace_$tables stats=$folder/stats_$tables.npz
[[ -f $trace/tables.json ]] ||
  recsys-opt data tables --tables "$tables" --batch "$batch" --batches 10 --seed 5 --out "$trace"
recsys-opt stats "$trace" --batches 0:8 --out "$stats" --overwrite
recsys-opt bench placement "$stats" "$trace" --batches 8: --torchrec-seconds 75 \
  --record "benchmarks/results/placement_$tables.json"
