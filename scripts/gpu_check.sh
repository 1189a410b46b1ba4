#!/usr/bin/env bash
# Builds the CUDA kernels and tests, measures, profiles and checks them on a machine with a GPU.
#
#   scripts/gpu_check.sh [--dry-run] [SECTION...]
#
#   SECTION    of: build tests kernels tt tiered profile sanitizer; all of them where none is named. Each needs a build, of
#              this run or of one before.
#   --dry-run  prints what would be run
#
# It uses the torch that python3 has and downloads nothing. A section that fails does not stop the next ones, but for
# the build; the last lines say how each ended, and the exit status is 1 if any failed. Results go to $OUT, or to
# benchmarks/results/gpu. GPU_CHECK_SECONDS is the time for everything (540): where a command has less than that and
# everything more, name the sections, a few at a time.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
known="build tests kernels tt tiered profile sanitizer"
dry=false
wanted=()
for word in "$@"; do
  case " --dry-run $known " in
    *" $word "*) if [ "$word" = --dry-run ]; then dry=true; else wanted+=("$word"); fi ;;
    *)
      sed -n '2,14s/^# \{0,1\}//p' "$0" >&2
      printf 'gpu_check: there is no section %s; there are %s\n' "$word" "$known" >&2
      exit 2
      ;;
  esac
done
if [ ${#wanted[@]} -eq 0 ]; then read -ra wanted <<<"$known"; fi
out=${OUT:-benchmarks/results/gpu}
if ! $dry; then
  mkdir -p "$out"
  out=$(cd "$out" && pwd)
fi
limit=${GPU_CHECK_SECONDS:-540}
summary=()
failed=0

wants() { [[ " ${wanted[*]} " == *" $1 "* ]]; }

note() { # NAME OUTCOME
  summary+=("$(printf '%-22s %s' "$1" "$2")")
  printf '== %s: %s\n' "$1" "$2"
}

# section NAME MOST_SECONDS LOG COMMAND...: runs a command, at most so long; its output goes to $out/LOG as well.
section() {
  local name=$1 most=$2 log=$out/$3 left=$((limit - SECONDS)) began=$SECONDS status
  shift 3
  if $dry; then
    printf '%s:' "$name"
    printf ' %q' "$@"
    printf '\n'
    return 0
  fi
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
  $dry && exit 0
  {
    printf '\n%s\n' "gpu_check ${wanted[*]}: $SECONDS s, results in $out"
    printf '%s\n' "${summary[@]}"
  } | tee -a "$out/summary.txt"
  exit "$failed"
}

if ! $dry; then
  if ! command -v nvidia-smi >/dev/null || ! nvidia-smi --query-gpu=name --format=csv,noheader >/dev/null 2>&1; then
    note gpu "FAILED: nvidia-smi finds no GPU here; nothing was run"
    failed=1
    finish
  fi
  if wants build; then rm -f "$out"/{log,sanitizer,summary}.txt; fi
fi
PATH=$PATH:/usr/local/cuda/bin
if wants build; then
  # shellcheck disable=SC2016 # for the inner shell
  section environment 60 log.txt bash -c \
    'nvidia-smi --query-gpu=name,driver_version,memory.total,compute_cap --format=csv; nvcc --version | tail -n 2; nproc
     python3 -c "import platform, torch; print(\"python\", platform.python_version(), \"torch\", torch.__version__)"
     for package in numpy safetensors rich pytest hypothesis setuptools pybind11; do
       python3 -c "import $package" 2>/dev/null || echo "python3 lacks $package"
     done'
  # For this GPU alone: other machine code would only take time.
  capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -d .)
  case ${capability:-90} in
    90) architecture=90a-real ;;
    *) architecture=$capability-real ;;
  esac
  export CMAKE_ARGS="-DRECSYS_OPT_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=$architecture"
  if ! section build 300 log.txt scripts/setup.sh system; then
    note "everything else" "skipped: there is no build"
    finish
  fi
fi
if ! $dry; then
  if [ ! -e .venv/bin/activate ] || [ ! -e recsys_opt/librecsys_opt_cuda.so ]; then
    note "${wanted[*]}" "FAILED: there is no build with CUDA kernels; run the section build first"
    failed=1
    finish
  fi
  # shellcheck disable=SC1091 # made by setup.sh
  source .venv/bin/activate
fi
if wants build; then
  if $dry || command -v cuobjdump >/dev/null; then
    section registers 30 log.txt cuobjdump -res-usage recsys_opt/librecsys_opt_cuda.so
  else
    note registers "skipped: cuobjdump is not installed"
  fi
fi

if wants tests; then
  # tests/simt compiles the kernels for the host; none of its tests needs a GPU.
  section tests 150 log.txt python -m pytest -m cuda -q -rs -s -p no:cacheprovider --ignore=tests/simt tests
fi
if wants kernels; then
  section kernels 150 log.txt python benchmarks/tt_cuda_kernels.py "$out/tt_cuda_kernels.json"
fi
if wants tt; then
  # The floors: a step beside nn.EmbeddingBag's, and beside a tensor train of plain torch, small and large.
  section tt 150 log.txt recsys-opt bench tt --device cuda --rank 32 --batch-size 512 65536 --ids zipf uniform \
    --work forward step --candidates dense torch tt tt-fused tt-graph tt-fused-graph --rounds 5 \
    --record "$out/tt_cuda.json"
fi

if wants tiered; then
  # Cold rows read and updated in place in pinned memory, beside tables that are wholly there.
  section tiered 150 log.txt recsys-opt bench tiered --device cuda --tables 8 --batch-size 2048 65536 \
    --hot-share 0 0.1 0.2 0.3 0.5 1 --work forward step --rounds 5 --record "$out/tiered_cuda.json"
fi

if wants profile; then
  ncu=$(command -v ncu || find /opt/nvidia /usr/local/cuda -name ncu -type f 2>/dev/null | head -n 1)
  if $dry || [ -n "$ncu" ]; then
    # The clocks are left alone: the card may be shared.
    section profile 120 log.txt "${ncu:-ncu}" --clock-control none --kernel-name-base mangled \
      --kernel-name regex:recsys_opt --section SpeedOfLight --section LaunchStats --section Occupancy \
      --section MemoryWorkloadAnalysis --section WarpStateStats --csv --log-file "$out/ncu.csv" \
      python benchmarks/tt_cuda_kernels.py "$out/unused.json" --quick
  else
    note profile "skipped: ncu is not installed"
  fi
fi

if wants sanitizer; then
  # A short set: one call of many tables, updates by every rule, ids out of range, both paths, held rows.
  short='many_tables or clamped or (updates and float32) or (bad_values and planned) or held_rows or references'
  if $dry || command -v compute-sanitizer >/dev/null; then
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
      section "sanitizer $tool" 90 sanitizer.txt compute-sanitizer --tool "$tool" --error-exitcode 9 \
        ${filter[@]+"${filter[@]}"} \
        python -m pytest -q -p no:cacheprovider tests/test_ops_tt_cuda.py tests/test_ops_hot_rows_cuda.py \
        tests/test_ops_tiered_cuda.py -k "$short"
    done
    unset PYTORCH_NO_CUDA_MEMORY_CACHING
  else
    note sanitizer "skipped: compute-sanitizer is not installed"
  fi
fi
finish
