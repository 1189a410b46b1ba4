#pragma once
// The check of offsets' values, on the CPU.
#include "hot_rows/hot_rows.h"

namespace recsys_opt::hot_rows {

// Offsets are non-decreasing from 0; lookups after the last are of no bag.
inline void check_offsets(const char* op, const int64_t* offsets, const Shape& s) {
  STD_TORCH_CHECK(offsets[0] == 0, op, ": offsets[0] = ", offsets[0], "; it must be 0");
  for (int64_t bag = 0; bag < s.bags(); ++bag)
    STD_TORCH_CHECK(offsets[bag] <= offsets[bag + 1], op, ": offsets[", bag + 1,
                    "] = ", offsets[bag + 1], " is less than offsets[", bag, "] = ", offsets[bag]);
  STD_TORCH_CHECK(offsets[s.bags()] <= s.ids, op, ": offsets[", s.bags(), "] = ", offsets[s.bags()],
                  " is outside the ", s.ids, " indices");
}

}  // namespace recsys_opt::hot_rows
