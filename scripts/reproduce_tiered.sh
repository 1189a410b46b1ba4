#!/usr/bin/env bash
# A model larger than the memory that it is allowed: generated rows with Kaggle's full cardinalities (2.16 GB of tables), their
# statistics, a plan for one device with 200 MB of fast memory, and training by it with the other rows in a file, private memory
# limited to 1.5 GB (`ulimit -d`; without the file the same run ends for want of memory). Fails unless the metrics are those of dense
# tables without a limit, to the last digit.
#
#   scripts/reproduce_tiered.sh [ROWS [FOLDER]]
#
#   ROWS    default 300000
#   FOLDER  for some 10 GB of data and files (default build/tiered)
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
work=${2:-build/tiered}
limit_kib=1500000
rm -rf "$work"
mkdir -p "$work"
trap 'rm -rf "$work"' EXIT

recsys-opt data synth --rows "${1:-300000}" --out "$work/data"
recsys-opt stats "$work/data" --out "$work/stats.npz"
recsys-opt plan "$work/stats.npz" --hardware a100-40gb:devices=1,hbm=200MB --embedding-dim 16 --batch-size 2048 \
  --out "$work/plan.json"
settings=(--batch-size 2048 --evals-per-epoch 1 --json)
planned=(--plan "$work/plan.json" --statistics "$work/stats.npz")
recsys-opt train "$work/data" --out "$work/dense" "${settings[@]}" >"$work/dense.json"
(
  ulimit -d $limit_kib
  recsys-opt train "$work/data" --out "$work/tiered" "${settings[@]}" "${planned[@]}" --cold-dir "$work" >"$work/tiered.json"
)
if (
  ulimit -d $limit_kib
  recsys-opt train "$work/data" --out "$work/memory" "${settings[@]}" "${planned[@]}" 2>"$work/memory.txt"
); then
  echo "reproduce_tiered: the limit is none: the run without a file did not end" >&2
  exit 1
fi
grep "out of memory" "$work/memory.txt" >&2
python - "$work" $limit_kib <<'PY'
import json, sys
from pathlib import Path
from recsys_opt.bench.record import write_record

work, limit_kib = Path(sys.argv[1]), int(sys.argv[2])
runs = {name: json.loads((work / f"{name}.json").read_text()) for name in ("dense", "tiered")}
kept = ("test", "validation", "samples_per_s", "rows", "embedding_bytes", "dense_embedding_bytes")
rows = [{"tables": name, **{key: run[key] for key in kept}} for name, run in runs.items()]
rows[1]["private_memory_limit_bytes"] = 1024 * limit_kib
write_record(
    Path("benchmarks/results/tiered_training.json"), "tiered_training", rows, command="scripts/reproduce_tiered.sh"
)
assert runs["tiered"]["test"] == runs["dense"]["test"], "the metrics differ from those of dense tables"
print("test AUC", runs["tiered"]["test"]["auc"], "with and without tiers; benchmarks/results/tiered_training.json")
PY
