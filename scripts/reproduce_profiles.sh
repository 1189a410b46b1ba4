#!/usr/bin/env bash
# The profiles in benchmarks/results/profiles: generated rows with Criteo's table sizes, a short training in each
# representation, service times on one core of this machine, GPUs by their figures.
#
#   scripts/reproduce_profiles.sh [kaggle|terabyte ...]      default: both
#
# FOLDER  where data and runs go (default build/profiles; 12 GB for Kaggle's shapes, 16 GB for Terabyte's)
# OUT     where the profiles go (default benchmarks/results/profiles)
# SECONDS_A_PATH, CLOCK  of recsys-opt profile (default 60, cpu: other programs disturb it less)
#
# kaggle_dhe_cache has the deep hash embeddings with caches of frequent rows, an approximate tier, and bf16 products
# of their networks, and of the MLPs too.
#
# Accuracies are measured on the generated rows. The *_published profiles have those published for the full data
# sets (MP-Rec, ASPLOS 2023) in their place, with the same times.
# Terabyte's tables are cut at 2 M rows: 3.6 GB in fp32 in the place of 12.6 GB with the cut at 10 M.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${FOLDER:-build/profiles}
out=${OUT:-benchmarks/results/profiles}
seconds=${SECONDS_A_PATH:-60}
clock=${CLOCK:-cpu}
representations="table tt dhe hybrid select"

. scripts/trained_runs.sh

# profile NAME "SYNTH ARGUMENTS" "TRAIN ARGUMENTS" PUBLISHED
profile() {
  local name=$1 synth=$2 train=$3 published=$4 own=$folder/$1
  mkdir -p "$out"
  local runs
  trained_runs "$own" "$synth" "$train" $representations
  recsys-opt profile "${runs[@]}" --data "$own/data" --seconds "$seconds" --clock "$clock" --out "$own/cpu.json"
  for gpu in v100 h100; do
    recsys-opt profile assume "${runs[@]}" --data "$own/data" --gpu $gpu --out "$own/$gpu.json" >/dev/null
    recsys-opt profile merge "$own/cpu.json" "$own/$gpu.json" --out "$out/${name}_$gpu.json" >/dev/null
    recsys-opt profile merge "$own/cpu.json" "$own/$gpu.json" --accuracy "$published" \
      --paths table@cpu,dhe@cpu,hybrid@cpu,table@gpu,dhe@gpu,hybrid@gpu --out "$out/${name}_${gpu}_published.json"
  done
}

# caches NAME: the runs are there
caches() {
  local own=$folder/$1
  local common=(--data "$own/data" --cache-rows 10000 100000 --seconds "$seconds" --clock "$clock")
  recsys-opt profile "$own/runs/dhe" "${common[@]}" --centroids 16 --out "$own/cached.json"
  recsys-opt profile dhe+bf16="$own/runs/dhe" "${common[@]}" --networks bf16 --out "$own/cached_bf16.json"
  recsys-opt profile dhe+bf16mlp="$own/runs/dhe" "${common[@]}" --networks bf16 --products bf16 \
    --out "$own/cached_bf16mlp.json"
  recsys-opt profile merge "$own/cached.json" "$own/cached_bf16.json" "$own/cached_bf16mlp.json" \
    --out "$out/$1_dhe_cache.json"
}

for which in "${@:-kaggle terabyte}"; do
  for name in $which; do
    case $name in
      kaggle)
        profile kaggle "--rows 1000000 --seed 1" "--evals-per-epoch 1" \
          table=0.7879,dhe=0.7894,hybrid=0.7898
        caches kaggle ;;
      terabyte)
        profile terabyte_2m "--rows 300000 --seed 2 --cardinalities terabyte-10m --max-cardinality 2000000" \
          "--recipe criteo_terabyte --batch-size 128 --evals-per-epoch 1" table=0.8081,dhe=0.8099,hybrid=0.8103 ;;
      *) sed -n '2,17s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    esac
  done
done
