#!/usr/bin/env bash
# Rows shaped like Criteo Terabyte's, from text to a trained model under a plan: generated days of text, prepared with the published
# table sizes (10M cap: 12.58 GB of tables of dimension 64), counted, planned for one device with 1 GB of fast memory, and trained with
# the other rows in a file, private memory limited to 2.5 GB (`ulimit -d`; without the file the same run ends for want of memory).
# Fails unless the metrics are those of dense tables without a limit, to the last digit, and unless the share of lookups in the slow
# tier that the plan predicts is within 10 % of what the later rows show. With the 40M cap (48 GB of tables) it stops at the plan and its replay.
#
#   scripts/reproduce_terabyte.sh [ROWS [FOLDER]]
#
#   ROWS    default 600000
#   FOLDER  for some 14 GB of data and files (default build/terabyte); the dense run takes 14 GB of memory
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
rows=${1:-600000}
work=${2:-build/terabyte}
limit_kib=2500000
rm -rf "$work"
mkdir -p "$work"
trap 'rm -rf "$work"' EXIT

# Runs a command; its wall and CPU time go to stages.jsonl.
stage() {
  local name=$1
  shift
  python - "$name" "$work/stages.jsonl" "$@" <<'PY'
import json, os, subprocess, sys, time

name, path, *command = sys.argv[1:]
began = time.perf_counter()
process = subprocess.Popen(command)
_, status, used = os.wait4(process.pid, 0)
with open(path, "a") as file:
    times = {"wall_seconds": time.perf_counter() - began, "cpu_seconds": used.ru_utime + used.ru_stime}
    file.write(json.dumps({"stage": name, **{k: round(v, 2) for k, v in times.items()}}) + "\n")
sys.exit(os.waitstatus_to_exitcode(status))
PY
}

stage synth recsys-opt data synth --rows "$rows" --cardinalities terabyte-40m --text-days 8 --out "$work/text"
for cap in 40m 10m; do
  stage "prepare, $cap" recsys-opt data prepare "$work/text" --hash --cardinalities "terabyte-$cap" --out "$work/$cap"
  stage "stats, $cap" recsys-opt stats "$work/$cap" --out "$work/$cap.npz"
  # 1 GB is 8 % of the smaller model's 12.8 GB; the larger one gets as large a share of its own.
  hbm=$([[ $cap == 10m ]] && echo 1GB || echo 3.82GB)
  stage "plan, $cap" recsys-opt plan "$work/$cap.npz" --hardware "a100-40gb:devices=1,hbm=$hbm" --embedding-dim 64 \
    --batch-size 2048 --out "$work/$cap.json"
  stage "replay, $cap" recsys-opt plan replay "$work/$cap.json" "$work/$cap" --json >"$work/replay_$cap.json"
done
settings=("$work/10m" --recipe criteo_terabyte --evals-per-epoch 1 --checkpoint-every-s none --json)
planned=(--plan "$work/10m.json" --statistics "$work/10m.npz")
stage "train, dense" recsys-opt train "${settings[@]}" --out "$work/dense" >"$work/dense.json"
(
  ulimit -d $limit_kib
  stage "train, tiered" recsys-opt train "${settings[@]}" --out "$work/tiered" "${planned[@]}" --cold-dir "$work" >"$work/tiered.json"
)
if (
  ulimit -d $limit_kib
  recsys-opt train "${settings[@]}" --out "$work/memory" "${planned[@]}" 2>"$work/memory.txt"
); then
  echo "reproduce_terabyte: the limit is none: the run without a file did not end" >&2
  exit 1
fi
grep "out of memory" "$work/memory.txt" >&2
python - "$work" $limit_kib <<'PY'
import json, sys
from pathlib import Path
from recsys_opt.bench.record import write_record

work, limit_kib = Path(sys.argv[1]), int(sys.argv[2])
stages = [json.loads(line) for line in (work / "stages.jsonl").read_text().splitlines()]
runs = {name: json.loads((work / f"{name}.json").read_text()) for name in ("dense", "tiered")}
kept = ("test", "validation", "samples_per_s", "rows", "embedding_bytes", "dense_embedding_bytes")
rows = [{"tables": name, **{key: run[key] for key in kept}} for name, run in runs.items()]
rows[1]["private_memory_limit_bytes"] = 1024 * limit_kib
replays = {}
for cap in ("10m", "40m"):
    found = json.loads((work / f"replay_{cap}.json").read_text())
    replays[cap] = {key: found[key] for key in ("batches", "batch_size", "slow_share", "slowest_device_seconds")}
write_record(
    Path("benchmarks/results/terabyte.json"),
    "terabyte",
    rows,
    command="scripts/reproduce_terabyte.sh",
    stages=stages,
    replay=replays,
)
for stage in stages:
    print(f"{stage['stage']:<16}{stage['wall_seconds']:>8.1f} s{stage['cpu_seconds']:>8.1f} s of CPU")
for cap, found in replays.items():
    share = found["slow_share"]
    print(f"{cap}: slow share predicted {share['predicted']:.3%}, later {share['realised']:.3%}")
    assert abs(share["relative_error"]) <= 0.1, "the predicted share of slow lookups is off by more than 10 %"
assert runs["tiered"]["test"] == runs["dense"]["test"], "the metrics differ from those of dense tables"
print("test AUC", runs["tiered"]["test"]["auc"], "with and without tiers; benchmarks/results/terabyte.json")
PY
