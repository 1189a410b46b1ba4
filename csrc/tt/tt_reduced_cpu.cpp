#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "simd.h"
#include "tt_reduced.h"

namespace recsys_opt::tt {
namespace {

using BFloat16 = torch::headeronly::BFloat16;
using Half = torch::headeronly::Half;

template <typename From, typename To>
ALWAYS_INLINE void convert_body(const From* __restrict from, int64_t n, To* __restrict to) {
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<To>(static_cast<float>(from[i]));
}
SIMD_CLONES void convert(const BFloat16* from, int64_t n, float* to) {
  convert_body(from, n, to);
}
SIMD_CLONES void convert(const Half* from, int64_t n, float* to) {
  convert_body(from, n, to);
}
SIMD_CLONES void convert(const float* from, int64_t n, BFloat16* to) {
  convert_body(from, n, to);
}
SIMD_CLONES void convert(const float* from, int64_t n, Half* to) {
  convert_body(from, n, to);
}

}  // namespace

void widen(const void* from, ScalarType type, int64_t n, float* to) {
  if (type == ScalarType::BFloat16) return convert(static_cast<const BFloat16*>(from), n, to);
  convert(static_cast<const Half*>(from), n, to);
}

void narrow(const float* from, int64_t n, ScalarType type, void* to) {
  if (type == ScalarType::BFloat16) return convert(from, n, static_cast<BFloat16*>(to));
  convert(from, n, static_cast<Half*>(to));
}

}  // namespace recsys_opt::tt
