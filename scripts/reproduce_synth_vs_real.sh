#!/usr/bin/env bash
# Real rows beside as many generated ones, column by column.
#
#   scripts/reproduce_synth_vs_real.sh SAMPLE.tsv.gz        a random sample of Criteo Kaggle's train.txt
set -euo pipefail
if [ $# -ne 1 ]; then sed -n '2,4s/^# \{0,1\}//p' "$0" >&2; exit 2; fi
sample=$(realpath "$1")
cd "$(dirname "$0")/.."
scripts/setup.sh
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
rows=$(gzip -dc "$sample" | wc -l)
.venv/bin/recsys-opt data synth --rows "$rows" --seed 1 --out "$folder/synth"
.venv/bin/recsys-opt data compare "$sample" "$folder/synth" --record benchmarks/results/synth_vs_real.json
