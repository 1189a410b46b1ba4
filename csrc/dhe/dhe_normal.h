#pragma once
// Box and Muller's transform as straight lines of arithmetic, so that the compiler makes vector
// instructions of a loop over it: its logarithm, sine and cosine have no branches and no tables.
#include <bit>
#include <cmath>
#include <cstdint>
#include <numbers>

#include "simd.h"

namespace recsys_opt::dhe {

// ln x of a normal x > 0, to two units in the last place: x = m 2^e, m in [sqrt(1/2), sqrt(2)), and
// ln m = 2 artanh(s), s = (m - 1) / (m + 1), |s| < 0.172, by its series.
ALWAYS_INLINE double natural_logarithm(double x) {
  constexpr uint64_t kMantissa = (uint64_t{1} << 52) - 1, kOne = uint64_t{1023} << 52;
  constexpr uint64_t kTwo52 = uint64_t{1075} << 52;  // of the double 2^52, whose mantissa is 0
  const auto bits = std::bit_cast<uint64_t>(x);
  // 2^52 + a whole number, whose bits are the mantissa's: the exponent without a conversion.
  const double exponent = std::bit_cast<double>((bits >> 52) | kTwo52) - (0x1p52 + 1023.0);
  const double mantissa = std::bit_cast<double>((bits & kMantissa) | kOne);
  const bool large = mantissa > std::numbers::sqrt2;
  const double m = large ? 0.5 * mantissa : mantissa;
  const double e = large ? exponent + 1.0 : exponent;
  const double s = (m - 1.0) / (m + 1.0), z = s * s;
  double series = 1.0 / 21;
  series = series * z + 1.0 / 19;
  series = series * z + 1.0 / 17;
  series = series * z + 1.0 / 15;
  series = series * z + 1.0 / 13;
  series = series * z + 1.0 / 11;
  series = series * z + 1.0 / 9;
  series = series * z + 1.0 / 7;
  series = series * z + 1.0 / 5;
  series = series * z + 1.0 / 3;
  return e * std::numbers::ln2 + (2.0 * s + 2.0 * s * z * series);
}

// Two numbers evenly spread in (0, 1) become two that are normally distributed:
// sqrt(-2 ln u) cos(2 pi v) and sqrt(-2 ln u) sin(2 pi v).
ALWAYS_INLINE void to_normal(double u, double v, double& first, double& second) {
  const double radius = std::sqrt(-2.0 * natural_logarithm(u));
  // v in quarters of a turn: the nearest whole one, in the low bits of a number near 1.5 x 2^52,
  // and what is left, t in [-1/2, 1/2].
  constexpr double kWhole = 0x1.8p52;
  const double quarters = 4.0 * v + kWhole;
  const auto quadrant = std::bit_cast<uint64_t>(quarters);
  const double angle = (4.0 * v - (quarters - kWhole)) * (0.5 * std::numbers::pi),
               z = angle * angle;
  double sine = -1.0 / 1307674368000;  // Taylor's, to angle^15
  sine = sine * z + 1.0 / 6227020800;
  sine = sine * z - 1.0 / 39916800;
  sine = sine * z + 1.0 / 362880;
  sine = sine * z - 1.0 / 5040;
  sine = sine * z + 1.0 / 120;
  sine = sine * z - 1.0 / 6;
  sine = sine * z * angle + angle;
  double cosine = 1.0 / 20922789888000;  // to angle^16
  cosine = cosine * z - 1.0 / 87178291200;
  cosine = cosine * z + 1.0 / 479001600;
  cosine = cosine * z - 1.0 / 3628800;
  cosine = cosine * z + 1.0 / 40320;
  cosine = cosine * z - 1.0 / 720;
  cosine = cosine * z + 1.0 / 24;
  cosine = cosine * z - 0.5;
  cosine = cosine * z + 1.0;
  // A quarter turn swaps them; the signs' bits are those of the quadrant.
  const bool swapped = (quadrant & 1) != 0;
  const double across = swapped ? sine : cosine, up = swapped ? cosine : sine;
  const uint64_t across_sign = ((quadrant + 1) & 2) << 62, up_sign = (quadrant & 2) << 62;
  first = radius * std::bit_cast<double>(std::bit_cast<uint64_t>(across) ^ across_sign);
  second = radius * std::bit_cast<double>(std::bit_cast<uint64_t>(up) ^ up_sign);
}

}  // namespace recsys_opt::dhe
