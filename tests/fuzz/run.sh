#!/usr/bin/env bash
# Fuzzes the Criteo reader with clang's libFuzzer, address and undefined-behaviour sanitizers.
#
#   tests/fuzz/run.sh [seconds] [--record]      default 60; finds are left in build/fuzz, the corpus grows there too
#
# --record writes benchmarks/results/fuzz_criteo_reader.json (with the project's .venv active).
# Needs clang++ with libFuzzer (Debian: apt-get install clang libclang-rt-14-dev); CLANG chooses another compiler.
set -euo pipefail
cd "$(dirname "$0")/../.."
seconds=${1:-60}
record=${2:-}
clang=${CLANG:-clang++}
command -v "$clang" >/dev/null || { echo "run.sh: $clang is not here: apt-get install clang libclang-rt-14-dev" >&2; exit 1; }

mkdir -p build/fuzz/corpus
flags="-std=c++20 -O1 -g -fno-omit-frame-pointer -fno-sanitize-recover=all -DCRITEO_MAX_LINE_BYTES=600 -DCRITEO_COUNT_LIMIT=2 -Icsrc -pthread"
sanitizers=address,undefined
# The reader is instrumented for coverage, the harness is not: its branches would lead the search astray.
"$clang" $flags -fsanitize=$sanitizers -c -o build/fuzz/harness.o tests/fuzz/reader_fuzz.cpp
"$clang" $flags -fsanitize=fuzzer,$sanitizers -o build/fuzz/reader_fuzz build/fuzz/harness.o \
  csrc/criteo/{row,chunker,batch,count_table,vocabulary}.cpp
version=$("$clang" --version | head -1)
export ASAN_OPTIONS=malloc_context_size=2
{
  echo "$version"
  time build/fuzz/reader_fuzz -max_total_time="$seconds" -max_len=2000 -print_final_stats=1 \
    -artifact_prefix=build/fuzz/ -dict=tests/fuzz/criteo.dict build/fuzz/corpus tests/fuzz/corpus
} 2>&1 | tee build/fuzz/log
if [ -n "$record" ]; then python3 tests/fuzz/record.py "$version" build/fuzz/log; fi
