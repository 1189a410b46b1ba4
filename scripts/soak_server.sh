#!/usr/bin/env bash
# A server under load at 80 % of its capacity, with workers killed, models reloaded, malformed requests and slow clients
# beside it; what became of each query is held against the server's own count, and its memory is watched.
#
#   scripts/soak_server.sh [MINUTES]      default 30; writes benchmarks/results/server_soak.json
#
# FOLDER         where a small model is trained and profiled first (default build/soak)
# PROFILE, RUNS  a profile.json and the folder of its runs, to soak them instead
# OUT            the record (default benchmarks/results/server_soak.json)
# Arguments after MINUTES go to recsys-opt bench soak. It ends with 1 where something did not hold.
set -euo pipefail
cd "$(dirname "$0")/.."
minutes=${1:-30}
shift || true
folder=${FOLDER:-build/soak}
out=${OUT:-benchmarks/results/server_soak.json}

if [ -z "${PROFILE:-}" ]; then
  PROFILE=$folder/profile.json RUNS=$folder/runs
  if [ ! -e "$PROFILE" ]; then
    mkdir -p "$folder"
    [ -f "$folder/data/dataset.json" ] ||
      recsys-opt data synth --rows 60000 --max-cardinality 100000 --out "$folder/data"
    for representation in table tt; do
      [ -e "$folder/runs/$representation/checkpoint" ] ||
        recsys-opt train "$folder/data" --representation $representation --out "$folder/runs/$representation"
    done
    recsys-opt profile "$folder"/runs/{table,tt} --data "$folder/data" --workers 2 --clock cpu --seconds 20 --out "$PROFILE"
  fi
fi
recsys-opt bench soak --profile "$PROFILE" --runs "$RUNS" --seconds "${minutes}min" --record "$out" "$@"
