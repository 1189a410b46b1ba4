#include "machine/ceilings.h"

#include <algorithm>
#include <barrier>
#include <chrono>
#include <functional>
#include <new>
#include <numeric>
#include <thread>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define RECSYS_OPT_X86 1
#endif

namespace recsys_opt::machine {
namespace {

using Clock = std::chrono::steady_clock;
typedef float Vector __attribute__((vector_size(64)));
constexpr int64_t kVectorFloats = 16;

// What loops compute goes here, so that none of it is left out.
volatile float sink;

constexpr int kTries = 5;

// Runs work(thread), which does `units` of something a call, on every thread until `seconds` have
// passed. Units a second of all together, each thread over its own time; the best of some tries,
// since others may use the machine.
double rate(int threads, double seconds, const std::function<int64_t(int)>& work) {
  std::barrier start(threads);
  std::vector<double> rates(static_cast<size_t>(threads) * kTries);
  const auto run = [&](int thread) {
    work(thread);  // touches its memory, and brings the clock up
    for (int i = 0; i < kTries; ++i) {
      start.arrive_and_wait();
      const auto began = Clock::now();
      int64_t units = 0;
      double passed = 0;
      do {
        units += work(thread);
        passed = std::chrono::duration<double>(Clock::now() - began).count();
      } while (passed < seconds);
      rates[i * threads + thread] = static_cast<double>(units) / passed;
    }
  };
  std::vector<std::thread> others;
  for (int t = 1; t < threads; ++t) others.emplace_back(run, t);
  run(0);
  for (std::thread& other : others) other.join();
  double best = 0;
  for (int i = 0; i < kTries; ++i) {
    const auto first = rates.begin() + i * threads;
    best = std::max(best, std::accumulate(first, first + threads, 0.0));
  }
  return best;
}

constexpr int64_t kSteps = 4096;

// kSums sums that depend on themselves alone: enough of them hide the latency of an FMA.
int64_t fma_portable() {
  constexpr int kSums = 8;
  Vector sums[kSums], factor, addend;
  for (int64_t j = 0; j < kVectorFloats; ++j) {
    factor[j] = 0.999f;
    addend[j] = 0.001f;
  }
  for (Vector& sum : sums) sum = addend;
  for (int64_t step = 0; step < kSteps; ++step) {
    for (Vector& sum : sums) sum = sum * factor + addend;
  }
  float total = 0;
  for (const Vector& sum : sums) total += sum[0];
  sink = total;
  return 2 * kSteps * kSums * kVectorFloats;
}

#ifdef RECSYS_OPT_X86

constexpr int kAvx512Sums = 12;  // of 32 registers

__attribute__((target("avx512f"))) int64_t fma_avx512() {
  const __m512 factor = _mm512_set1_ps(0.999f), addend = _mm512_set1_ps(0.001f);
  __m512 sums[kAvx512Sums];
  for (__m512& sum : sums) sum = addend;
  for (int64_t step = 0; step < kSteps; ++step) {
#pragma GCC unroll 16
    for (int i = 0; i < kAvx512Sums; ++i) sums[i] = _mm512_fmadd_ps(sums[i], factor, addend);
  }
  __m512 total = sums[0];
  for (int i = 1; i < kAvx512Sums; ++i) total = _mm512_add_ps(total, sums[i]);
  sink = _mm512_reduce_add_ps(total);
  return 2 * kSteps * kAvx512Sums * 16;
}

constexpr int kAvx2Sums = 10;  // of 16 registers

__attribute__((target("avx2,fma"))) int64_t fma_avx2() {
  const __m256 factor = _mm256_set1_ps(0.999f), addend = _mm256_set1_ps(0.001f);
  __m256 sums[kAvx2Sums];
  for (__m256& sum : sums) sum = addend;
  for (int64_t step = 0; step < kSteps; ++step) {
#pragma GCC unroll 16
    for (int i = 0; i < kAvx2Sums; ++i) sums[i] = _mm256_fmadd_ps(sums[i], factor, addend);
  }
  __m256 total = sums[0];
  for (int i = 1; i < kAvx2Sums; ++i) total = _mm256_add_ps(total, sums[i]);
  sink = total[0];
  return 2 * kSteps * kAvx2Sums * 8;
}

__attribute__((target("avx512f,avx512bf16"))) int64_t dot_bf16() {
  const __m512bh one = (__m512bh)_mm512_set1_epi16(0x3f80);  // 1 in bfloat16
  __m512 sums[kAvx512Sums];
  for (__m512& sum : sums) sum = _mm512_setzero_ps();
  for (int64_t step = 0; step < kSteps; ++step) {
#pragma GCC unroll 16
    for (int i = 0; i < kAvx512Sums; ++i) sums[i] = _mm512_dpbf16_ps(sums[i], one, one);
  }
  __m512 total = sums[0];
  for (int i = 1; i < kAvx512Sums; ++i) total = _mm512_add_ps(total, sums[i]);
  sink = _mm512_reduce_add_ps(total);
  return 2 * kSteps * kAvx512Sums * 32;
}

#endif

int64_t fma() {
#ifdef RECSYS_OPT_X86
  if (__builtin_cpu_supports("avx512f")) return fma_avx512();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return fma_avx2();
#endif
  return fma_portable();
}

// The sum of n floats at x (n a multiple of 64), in vectors.
#ifdef RECSYS_OPT_X86
__attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#endif
float sum_of(const float* x, int64_t n) {
  Vector sums[4] = {};
  const Vector* at = reinterpret_cast<const Vector*>(x);
  for (int64_t i = 0; i < n / kVectorFloats; i += 4) {
    for (int j = 0; j < 4; ++j) sums[j] += at[i + j];
  }
  const Vector total = sums[0] + sums[1] + sums[2] + sums[3];
  return total[0] + total[kVectorFloats - 1];
}

// The sum of `count` rows of `width` floats (a multiple of 16) at `rows`.
#ifdef RECSYS_OPT_X86
__attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#endif
float sum_rows(const float* table, int64_t width, const uint32_t* rows, int64_t count) {
  constexpr int64_t kAhead = 24;
  Vector total = {};
  for (int64_t i = 0; i < count; ++i) {
    if (i + kAhead < count) {
      const float* next = table + rows[i + kAhead] * width;
      for (int64_t j = 0; j < width; j += kVectorFloats) __builtin_prefetch(next + j);
    }
    const Vector* row = reinterpret_cast<const Vector*>(table + rows[i] * width);
    for (int64_t j = 0; j < width / kVectorFloats; ++j) total += row[j];
  }
  return total[0] + total[kVectorFloats - 1];
}

struct Aligned {
  explicit Aligned(int64_t floats)
      : data(static_cast<float*>(::operator new(floats * sizeof(float), std::align_val_t{4096}))) {
    for (int64_t i = 0; i < floats; ++i) data[i] = 1.0f;  // pages of its own
  }
  ~Aligned() { ::operator delete(data, std::align_val_t{4096}); }
  Aligned(const Aligned&) = delete;
  float* data;
};

}  // namespace

double fp32_flops_per_s(int threads, double seconds) {
  return rate(threads, seconds, [](int) { return fma(); });
}

double bf16_flops_per_s(int threads, double seconds) {
#ifdef RECSYS_OPT_X86
  if (__builtin_cpu_supports("avx512bf16")) {
    return rate(threads, seconds, [](int) { return dot_bf16(); });
  }
#endif
  return 0;
}

double read_bytes_per_s(int64_t bytes, int threads, double seconds) {
  const int64_t floats = bytes / static_cast<int64_t>(sizeof(float)) / threads / 64 * 64;
  const Aligned memory(floats * threads);
  const int64_t times =
      floats < (1 << 20) ? (1 << 20) / floats + 1 : 1;  // between looks at the clock
  return rate(threads, seconds, [&](int thread) {
    float total = 0;
    for (int64_t i = 0; i < times; ++i) total += sum_of(memory.data + thread * floats, floats);
    sink = total;
    return times * floats * static_cast<int64_t>(sizeof(float));
  });
}

double gather_bytes_per_s(int64_t table_bytes, int64_t row_bytes, int threads, double seconds) {
  constexpr int64_t kRows = 1 << 16;  // between looks at the clock
  const int64_t width = row_bytes / static_cast<int64_t>(sizeof(float));
  const int64_t rows = table_bytes / row_bytes;
  const Aligned table(rows * width);
  constexpr int64_t kBatches = 64;  // before a row comes round again
  std::vector<uint32_t> order(threads * kBatches * kRows);
  uint64_t state = 0x9e3779b97f4a7c15;
  for (uint32_t& row : order) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    row = static_cast<uint32_t>(((state >> 33) * static_cast<uint64_t>(rows)) >> 31);
  }
  std::vector<int64_t> turn(threads * 8);
  return rate(threads, seconds, [&](int thread) {
    const int64_t batch = thread * kBatches + turn[thread * 8]++ % kBatches;
    sink = sum_rows(table.data, width, order.data() + batch * kRows, kRows);
    return kRows * row_bytes;
  });
}

}  // namespace recsys_opt::machine
