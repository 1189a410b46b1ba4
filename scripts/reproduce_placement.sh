#!/usr/bin/env bash
# Redraws benchmarks/results/placement_<tables>.json: plans of ours, of the greedy baselines and of TorchRec, made from the
# statistics of 8 batches of generated lookups and held against the 6 batches that follow, for several seeds. Tables have a
# sixteenth of the published model's rows, so that a batch of 4,096 samples has the reuse of the published 65,536.
#
#   scripts/reproduce_placement.sh [TABLES [FOLDER [SEED...]]]     397, a temporary folder, 5 6 7
#
#   FOLDER  for 3 GB; TorchRec's answers stay in FOLDER/torchrec, and a second run does not search for them again
#
# HBM_SHARES="0.1 0.2 0.3 0.5" and TORCHREC_SECONDS="150", CPU time of each of TorchRec's two searches for a share (with and without
# caches), are the defaults; with them the searches take an hour of one core for 397 tables. 856 tables need 300 seconds each.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
export PATH=$PWD/.venv/bin:$PATH
tables=${1:-397} folder=${2:-}
shift $(($# < 2 ? $# : 2))
seeds=("$@")
[[ ${#seeds[@]} -gt 0 ]] || seeds=(5 6 7)
if [[ -z $folder ]]; then
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
fi
read -ra shares <<<"${HBM_SHARES:-0.1 0.2 0.3 0.5}"
record=benchmarks/results/placement_$tables.json
for seed in "${seeds[@]}"; do
  trace=$folder/trace stats=$folder/stats_${tables}_$seed.npz
  rm -rf "$trace"
  recsys-opt data tables --tables "$tables" --batch 4096 --batches 14 --shrink 16 --seed "$seed" --out "$trace"
  recsys-opt stats "$trace" --batches 0:8 --out "$stats" --overwrite
  recsys-opt bench placement "$stats" "$trace" --batches 8: --hbm-share "${shares[@]}" --torchrec-keep "$folder/torchrec" \
    --torchrec-seconds "${TORCHREC_SECONDS:-150}" --case "$tables tables, seed $seed" --add --record "$record"
done
