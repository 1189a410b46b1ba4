#!/usr/bin/env bash
# Redraws benchmarks/results/replan.json: a plan of one day's generated lookups, kept, given new thresholds, moved within limits or
# made anew for the next day's, on which a tenth of the rows of every table have changed places; replayed on lookups that come later.
#
#   scripts/reproduce_replan.sh [TABLES [FOLDER]]     397, a temporary folder; FOLDER takes 500 MB
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
export PATH=$PWD/.venv/bin:$PATH
tables=${1:-397} folder=${2:-}
if [[ -z $folder ]]; then
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
fi
for day in 0 1; do
  recsys-opt data tables --tables "$tables" --batch 512 --shrink 128 --batches 10 --day "$day" --drift 0.1 --out "$folder/day$day"
  recsys-opt stats "$folder/day$day" --batches 0:8 --out "$folder/day$day.npz" --overwrite
done
recsys-opt bench replan "$folder"/day{0,1}.npz "$folder/day1" --batches 8: --record benchmarks/results/replan.json
