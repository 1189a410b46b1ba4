// Counter-based randomness: every random number is a pure function of (key, counter), so that any
// row can be made alone, on any thread, in any order.
#pragma once

#include <cstdint>

namespace recsys_opt::synth {

// Bijective 64-bit finalizer (Stafford's variant 13 of MurmurHash3's, as in SplitMix64).
inline uint64_t mix(uint64_t x) {
  x ^= x >> 30;
  x *= 0xbf58476d1ce4e5b9ULL;
  x ^= x >> 27;
  x *= 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

// The counter's place in the Weyl sequence that starts at `key`, mixed: SplitMix64 with random
// access.
inline uint64_t hash(uint64_t key, uint64_t counter) {
  return mix(key + (counter + 1) * 0x9e3779b97f4a7c15ULL);
}

// A key per (seed, stream): distinct streams start at unrelated places of the sequence.
inline uint64_t stream_key(uint64_t seed, uint64_t stream) {
  return mix(mix(seed ^ 0x6a09e667f3bcc909ULL) + (stream + 1) * 0xd1342543de82ef95ULL);
}

// Uniform in [0, 1), 53 bits.
inline double unit(uint64_t h) {
  return static_cast<double>(h >> 11) * 0x1.0p-53;
}

// Mean 0, variance 1: the sum of the four 16-bit parts (Irwin-Hall of order 4, within +-3.47).
inline float bell(uint64_t h) {
  const int32_t sum = static_cast<int32_t>(h & 0xffff) + static_cast<int32_t>((h >> 16) & 0xffff) +
                      static_cast<int32_t>((h >> 32) & 0xffff) + static_cast<int32_t>(h >> 48);
  return static_cast<float>(sum - 2 * 0xffff) * (1.7320508f / 65536.0f);
}

}  // namespace recsys_opt::synth
