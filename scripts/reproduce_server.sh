#!/usr/bin/env bash
# The records of the real server: what it adds to its models' own time, and simulation held to measurement.
# Generated rows with Kaggle's shapes, a short training of three representations, a profile, then both benches:
# one worker on one core, the server and the load on another one. The machine must be quiet.
#
#   scripts/reproduce_server.sh [server|against ...]      default: both
#
# FOLDER   where data, runs and profile go, shared with reproduce_profiles.sh (default build/profiles; 12 GB)
# OUT      where the records go (default benchmarks/results)
# SECONDS_A_PATH, SECONDS_A_RUN  of load (default 10, five times a path, and 20)
set -euo pipefail
cd "$(dirname "$0")/.."
own=${FOLDER:-build/profiles}/kaggle
out=${OUT:-benchmarks/results}
. scripts/trained_runs.sh
trained_runs "$own" "--rows 1000000 --seed 1" "--evals-per-epoch 1" table dhe hybrid
[ -f "$own/server.json" ] || recsys-opt profile "${runs[@]}" --data "$own/data" --seconds 20 \
  --accuracy table=0.7879,dhe=0.7894,hybrid=0.7898 --out "$own/server.json"
common=(--runs "$own/runs" --data "$own/data" --spin 20ms)
for which in "${@:-server against}"; do
  for name in $which; do
    case $name in
      server) recsys-opt bench server --profile "$own/server.json" "${common[@]}" --record "$out/server_cpu.json" ;;
      against)
        recsys-opt bench against "$own/server.json" "${common[@]}" --policy adaptive --policy static:table@cpu \
          --shares 0.3 0.6 0.8 --sla 25ms --path-seconds "${SECONDS_A_PATH:-10}" --seconds "${SECONDS_A_RUN:-20}" \
          --record "$out/against_cpu.json" ;;
      *) sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    esac
  done
done
