// Random numbers of searches and simulations: the same for the same seed, on every machine.
#pragma once

#include <cstdint>

namespace recsys_opt {

class Random {  // splitmix64 (Steele, Lea & Flood 2014)
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15ull + 1) {}
  // One of many streams of a seed. Those of near seeds would be the same numbers, shifted by a few,
  // were they not to begin at places as random as the numbers.
  static Random stream(uint64_t seed, uint64_t number) {
    Random random(seed);
    random.state_ = random.next() + number;
    random.state_ = random.next();
    return random;
  }
  uint64_t next() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
  }
  // In [0, 1).
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }
  // In 0 .. n - 1; the bias is below n / 2^64.
  uint64_t below(uint64_t n) {
    return static_cast<uint64_t>(static_cast<unsigned __int128>(next()) * n >> 64);
  }

 private:
  uint64_t state_;
};

}  // namespace recsys_opt
