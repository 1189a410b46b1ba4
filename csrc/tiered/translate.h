#pragma once
// Ids to positions, on the CPU: positions[k] = remap[ids[k]] for the lookups [begin, end) of a
// table of `rows` rows. False where an id is outside the table, or its position is.
#include <cstdint>

namespace recsys_opt::tiered {

template <typename Id, typename Remap,
          typename Position>  // int32_t or int64_t; Position holds Remap
bool translate(const Id* ids, const Remap* remap, int64_t rows, int64_t begin, int64_t end,
               Position* positions);

// Asks for the remaps of the lookups [begin, end): of a large table they are misses in every cache,
// as its rows are.
template <typename Id, typename Remap>
inline void ask_for_remaps(const Id* ids, const Remap* remap, int64_t rows, int64_t begin,
                           int64_t end) {
  for (int64_t k = begin; k < end; ++k)
    if (static_cast<uint64_t>(ids[k]) < static_cast<uint64_t>(rows))
      __builtin_prefetch(remap + ids[k]);
}

}  // namespace recsys_opt::tiered
