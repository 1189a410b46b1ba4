#!/usr/bin/env bash
# Builds the CUDA kernels and tests, checks and measures them on a machine with a GPU, in one go of at most 9 minutes.
#
#   scripts/gpu_check.sh          uses the torch that python3 has; downloads nothing
#
# Sections: build, tests marked cuda, compute-sanitizer (memcheck, racecheck, initcheck), benchmarks, ncu. A section
# that fails does not stop the next ones; the last lines say how each ended, and the exit status is 1 if any failed.
# Results go to $OUT, or to benchmarks/results/gpu. GPU_CHECK_SECONDS is the time for everything (540).
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
out=${OUT:-benchmarks/results/gpu}
mkdir -p "$out"
out=$(cd "$out" && pwd)
limit=${GPU_CHECK_SECONDS:-540}
summary=()
failed=0

note() { # NAME OUTCOME
  summary+=("$(printf '%-22s %s' "$1" "$2")")
  printf '== %s: %s\n' "$1" "$2"
}

# section NAME MOST_SECONDS LOG COMMAND...: runs a command, at most so long; its output goes to $out/LOG as well.
section() {
  local name=$1 most=$2 log=$out/$3 left=$((limit - SECONDS)) began=$SECONDS status
  shift 3
  if [ "$left" -lt 10 ]; then
    note "$name" "skipped: no time left"
    return 1
  fi
  if [ "$most" -gt "$left" ]; then most=$left; fi
  printf '== %s: %s\n' "$name" "$*" | tee -a "$log"
  timeout --kill-after=5 "$most" "$@" 2>&1 | tee -a "$log" | tail -n 25
  status=${PIPESTATUS[0]}
  if [ "$status" -eq 0 ]; then
    note "$name" "passed, $((SECONDS - began)) s"
  elif [ "$status" -ge 124 ]; then
    note "$name" "FAILED: stopped after $((SECONDS - began)) s"
    failed=1
  else
    note "$name" "FAILED: status $status"
    failed=1
  fi
  return "$status"
}

finish() {
  {
    printf '\n%s\n' "gpu_check: $SECONDS s, results in $out"
    printf '%s\n' "${summary[@]}"
  } | tee "$out/summary.txt"
  exit "$failed"
}

rm -f "$out"/{environment.txt,build.log,tests.log,sanitizer.log,bench.log,ncu.log,summary.txt}
if ! command -v nvidia-smi >/dev/null || ! nvidia-smi --query-gpu=name --format=csv,noheader >/dev/null 2>&1; then
  note gpu "FAILED: nvidia-smi finds no GPU here; nothing was run"
  failed=1
  finish
fi
PATH=$PATH:/usr/local/cuda/bin
section environment 30 environment.txt bash -c \
  'nvidia-smi --query-gpu=name,driver_version,memory.total,compute_cap --format=csv; nvcc --version | tail -n 2
   python3 -c "import torch; print(\"torch\", torch.__version__)"; nproc'

# For this GPU alone: other machine code would only take time.
capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
case $capability in
  90) architecture=90a-real ;;
  *) architecture=$capability-real ;;
esac
export CMAKE_ARGS="-DRECSYS_OPT_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=$architecture"
if ! section build 240 build.log scripts/setup.sh system; then
  note "everything else" "skipped: there is no build"
  finish
fi
# shellcheck disable=SC1091 # made by the section before
source .venv/bin/activate
if command -v cuobjdump >/dev/null; then
  section registers 30 build.log cuobjdump -res-usage recsys_opt/librecsys_opt_cuda.so
else
  note registers "skipped: cuobjdump is not installed"
fi

# tests/simt compiles the kernels for the host; none of its tests needs a GPU.
section tests 150 tests.log python -m pytest -m cuda -q -rs -s -p no:cacheprovider --ignore=tests/simt tests

# A short set: one call of many tables, updates by every rule, ids out of range, both paths.
short='many_tables or clamped or (updates and float32) or (bad_values and planned)'
if command -v compute-sanitizer >/dev/null; then
  # Each allocation is torch's own, so that the end of one is not the start of the next.
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  filter=() # our kernels alone, by the option that this version has
  help=$(compute-sanitizer --help 2>&1)
  for option in --kernel-name --kernel-regex --filter; do
    if grep -q -e "$option" <<<"$help"; then
      filter=("$option" kns=recsys_opt)
      break
    fi
  done
  for tool in memcheck racecheck initcheck; do
    section "sanitizer $tool" 60 sanitizer.log compute-sanitizer --tool "$tool" --error-exitcode 9 \
      ${filter[@]+"${filter[@]}"} \
      python -m pytest -q -p no:cacheprovider tests/test_ops_tt_cuda.py -k "$short"
  done
  unset PYTORCH_NO_CUDA_MEMORY_CACHING
else
  note sanitizer "skipped: compute-sanitizer is not installed"
fi

section "bench kernels" 120 bench.log python benchmarks/tt_cuda_kernels.py "$out/tt_cuda_kernels.json"
section "bench tt" 120 bench.log recsys-opt bench tt --device cuda --rank 32 --batch-size 512 65536 --ids zipf uniform \
  --work forward step --candidates dense torch tt tt-fused --rounds 5 --record "$out/tt_cuda.json"

ncu=$(command -v ncu || find /opt/nvidia /usr/local/cuda -name ncu -type f 2>/dev/null | head -n 1)
if [ -n "$ncu" ]; then
  # The clocks are left alone: the card may be shared.
  section ncu 60 ncu.log "$ncu" --clock-control none --kernel-name-base mangled --kernel-name regex:recsys_opt \
    --section SpeedOfLight --section LaunchStats --section Occupancy --section MemoryWorkloadAnalysis \
    --section WarpStateStats python benchmarks/tt_cuda_kernels.py "$out/unused.json" --quick
else
  note ncu "skipped: ncu is not installed"
fi
finish
