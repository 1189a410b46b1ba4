# shellcheck shell=bash
# Sourced by the scripts that need trained runs.

# trained_runs FOLDER "SYNTH ARGUMENTS" "TRAIN ARGUMENTS" REPRESENTATION...
# Generated rows in FOLDER/data, a short training of each representation in FOLDER/runs; what is there already
# stays. The runs' folders are in the array `runs` then.
trained_runs() {
  local own=$1 synth=$2 train=$3 representation
  shift 3
  mkdir -p "$own/runs"
  # shellcheck disable=SC2086  # several arguments each
  [ -f "$own/data/dataset.json" ] || recsys-opt data synth $synth --out "$own/data"
  runs=()
  for representation in "$@"; do
    # shellcheck disable=SC2086
    [ -e "$own/runs/$representation/checkpoint" ] ||
      recsys-opt train "$own/data" $train --representation "$representation" --out "$own/runs/$representation"
    runs+=("$own/runs/$representation")
  done
}
