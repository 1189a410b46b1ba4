#!/usr/bin/env bash
# The records of serving: the simulator's rate beside SimPy, and policies side by side on the committed profiles.
set -euo pipefail
cd "$(dirname "$0")/.."
profiles=benchmarks/results/profiles
recsys-opt bench serving --rounds 9
recsys-opt bench policies $profiles/{kaggle,terabyte_2m}_{h100,v100}_published.json \
  $profiles/{kaggle,terabyte_2m}_v100.json
