#include "simd.h"
#include "tiered/translate.h"

namespace recsys_opt::tiered {

// Without branches, so that a processor that gathers does.
template <typename Id, typename Remap, typename Position>
SIMD_CLONES bool translate(const Id* __restrict ids, const Remap* __restrict remap, int64_t rows,
                           int64_t begin, int64_t end, Position* __restrict positions) {
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

using Narrow = int32_t;
using Wide = int64_t;
template bool translate(const Narrow*, const Narrow*, int64_t, int64_t, int64_t, Narrow*);
template bool translate(const Wide*, const Narrow*, int64_t, int64_t, int64_t, Narrow*);
template bool translate(const Narrow*, const Narrow*, int64_t, int64_t, int64_t, Wide*);
template bool translate(const Wide*, const Narrow*, int64_t, int64_t, int64_t, Wide*);
template bool translate(const Narrow*, const Wide*, int64_t, int64_t, int64_t, Wide*);
template bool translate(const Wide*, const Wide*, int64_t, int64_t, int64_t, Wide*);

}  // namespace recsys_opt::tiered
