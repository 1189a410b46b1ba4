#include "simd.h"
#include "tiered/translate.h"

namespace recsys_opt::tiered {
namespace {

// Without branches, so that a processor that gathers does.
template <typename Id, typename Remap, typename Position>
ALWAYS_INLINE bool translate_body(const Id* __restrict ids, const Remap* __restrict remap,
                                  int64_t rows, int64_t begin, int64_t end,
                                  Position* __restrict positions) {
  const auto limit = static_cast<uint64_t>(rows);
  uint64_t outside = 0;
  for (int64_t k = begin; k < end; ++k) {
    const auto id = static_cast<int64_t>(ids[k]);
    const uint64_t bad = static_cast<uint64_t>(id) >= limit;
    const auto position = static_cast<int64_t>(remap[bad ? 0 : id]);
    outside |= bad | (static_cast<uint64_t>(position) >= limit);
    positions[k] = static_cast<Position>(position);
  }
  return outside == 0;
}

}  // namespace

SIMD_CLONES bool translate(const int32_t* ids, const int32_t* remap, int64_t rows, int64_t begin,
                           int64_t end, int32_t* positions) {
  return translate_body(ids, remap, rows, begin, end, positions);
}
SIMD_CLONES bool translate(const int64_t* ids, const int32_t* remap, int64_t rows, int64_t begin,
                           int64_t end, int32_t* positions) {
  return translate_body(ids, remap, rows, begin, end, positions);
}
SIMD_CLONES bool translate(const int32_t* ids, const int32_t* remap, int64_t rows, int64_t begin,
                           int64_t end, int64_t* positions) {
  return translate_body(ids, remap, rows, begin, end, positions);
}
SIMD_CLONES bool translate(const int64_t* ids, const int32_t* remap, int64_t rows, int64_t begin,
                           int64_t end, int64_t* positions) {
  return translate_body(ids, remap, rows, begin, end, positions);
}
SIMD_CLONES bool translate(const int32_t* ids, const int64_t* remap, int64_t rows, int64_t begin,
                           int64_t end, int64_t* positions) {
  return translate_body(ids, remap, rows, begin, end, positions);
}
SIMD_CLONES bool translate(const int64_t* ids, const int64_t* remap, int64_t rows, int64_t begin,
                           int64_t end, int64_t* positions) {
  return translate_body(ids, remap, rows, begin, end, positions);
}

}  // namespace recsys_opt::tiered
