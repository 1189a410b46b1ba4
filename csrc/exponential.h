// Exponentially distributed numbers.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>

#include "random.h"

namespace recsys_opt {

// Of mean 1, by the ziggurat method (Marsaglia & Tsang 2000) with 256 layers: no logarithm in 98 of
// 100 draws.
class Exponential {
 public:
  Exponential() {
    constexpr double kArea = .0039496598225815571993;  // of a layer
    const double scale = 0x1p53;
    double x = kTail, above = kTail;
    width_[0] = kArea / std::exp(-x) / scale;
    width_[255] = x / scale;
    inside_[0] = static_cast<uint64_t>(x / width_[0]);
    inside_[1] = 0;
    height_[0] = 1;
    height_[255] = std::exp(-x);
    for (int i = 254; i >= 1; --i) {
      x = -std::log(kArea / x + std::exp(-x));
      inside_[i + 1] = static_cast<uint64_t>(x / above * scale);
      above = x;
      height_[i] = std::exp(-x);
      width_[i] = x / scale;
    }
  }
  double operator()(Random& random) const {
    while (true) {
      const uint64_t bits = random.next() >> 3;
      const std::size_t layer = bits & 0xFF;
      const uint64_t at = bits >> 8;
      const double x = static_cast<double>(at) * width_[layer];
      if (at < inside_[layer]) return x;
      if (layer == 0) return kTail - std::log(1 - random.uniform());
      const double y = height_[layer] + random.uniform() * (height_[layer - 1] - height_[layer]);
      if (y < std::exp(-x)) return x;
    }
  }

 private:
  static constexpr double kTail = 7.69711747013104972;
  std::array<double, 256> width_, height_;
  std::array<uint64_t, 256> inside_;
};

}  // namespace recsys_opt
