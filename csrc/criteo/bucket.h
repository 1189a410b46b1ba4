// Open addressing by cache lines: a bucket holds 8 values and a 32-bit number for each, so that a
// probe is one line and one comparison of 8 values, and its length seldom varies (branch
// mispredictions would cost more than the miss).
#pragma once
#include <cstdint>
#include <cstdlib>
#include <memory>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace criteo {

struct alignas(64) Bucket {
  static constexpr int kSlots = 8;
  uint32_t values[kSlots];   // the lowest slots are in use
  uint32_t numbers[kSlots];  // 0: the slot is empty

  bool full() const { return numbers[kSlots - 1] != 0; }

  // Bit i: words[i] == wanted.
  static uint32_t matches(const uint32_t* words, uint32_t wanted) {
#ifdef __SSE2__
    const __m128i all = _mm_set1_epi32(static_cast<int>(wanted));
    const auto* v = reinterpret_cast<const __m128i*>(words);
    const int low = _mm_movemask_ps(_mm_castsi128_ps(_mm_cmpeq_epi32(_mm_load_si128(v), all)));
    const int high = _mm_movemask_ps(_mm_castsi128_ps(_mm_cmpeq_epi32(_mm_load_si128(v + 1), all)));
    return static_cast<uint32_t>(low | high << 4);
#else
    uint32_t bits = 0;
    for (int i = 0; i < kSlots; ++i) bits |= static_cast<uint32_t>(words[i] == wanted) << i;
    return bits;
#endif
  }

  // The number of `value` in this bucket, or nullptr.
  uint32_t* find(uint32_t value) {
    const uint32_t bits = matches(values, value);  // empty slots hold 0, but lie above a true 0
    if (bits == 0) return nullptr;
    uint32_t* number = &numbers[__builtin_ctz(bits)];
    return *number != 0 ? number : nullptr;
  }

  // Adds a value that is not here; there must be room.
  void add(uint32_t value, uint32_t number) {
    const int i = __builtin_ctz(matches(numbers, 0));
    values[i] = value;
    numbers[i] = number;
  }
};

// Where a value's probe begins: Fibonacci hashing, then a range reduction that suits any number of
// buckets.
inline uint32_t scatter(uint32_t value) {
  return value * 0x9e3779b1u;
}
inline uint64_t reduce(uint32_t hash, uint64_t buckets) {
  return (hash * buckets) >> 32;
}

struct FreeDeleter {
  void operator()(void* p) const { std::free(p); }
};
using Buckets = std::unique_ptr<Bucket[], FreeDeleter>;

// At least `n` empty buckets, on huge pages where they are many (probes are random: TLB misses
// would dominate); sets `n` to how many there are.
Buckets allocate_buckets(uint64_t& n);

}  // namespace criteo
