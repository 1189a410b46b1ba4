#pragma once
// Numbers the distinct ids of a table's batch 0, 1, ... in the order in which they come first.
#include <algorithm>
#include <bit>
#include <cstdint>
#include <utility>

#include "simd.h"
#include "tt/tt_array.h"

namespace recsys_opt {

class IdSlots {
 public:
  // For at most `lookups` ids below `rows`. Of `parts` tables alike, each owns a share of the ids.
  IdSlots(int64_t rows, int64_t lookups, int64_t part, int64_t parts)
      : direct_(rows <= kDirectRows * lookups),
        part_(part),
        parts_(parts),
        shift_(64 - std::bit_width(static_cast<uint64_t>(2 * lookups))),
        slots_(direct_ ? rows : int64_t{1} << (64 - shift_)),
        ids_(std::min(rows, lookups)) {
    std::fill_n(slots_.data(), slots_.size(), kNone);
  }

  int64_t size() const { return size_; }
  int64_t id(int64_t slot) const { return ids_[slot]; }

  ALWAYS_INLINE bool owns(int64_t id) const {
    return parts_ == 1 || static_cast<int64_t>((hash(id) & 0xffffffff) * parts_ >> 32) == part_;
  }

  // The slot of an id, and whether it comes for the first time.
  ALWAYS_INLINE std::pair<int64_t, bool> find(int64_t id) {
    int64_t place = direct_ ? id : static_cast<int64_t>(hash(id) >> shift_);
    while (slots_[place] != kNone) {
      const int64_t slot = slots_[place];
      if (direct_ || ids_[slot] == id) return {slot, false};
      place = place + 1 < slots_.size() ? place + 1 : 0;
    }
    ids_[size_] = id;
    slots_[place] = static_cast<int32_t>(size_);
    return {size_++, true};
  }

 private:
  static constexpr int32_t kNone = -1;
  static constexpr int64_t kDirectRows = 4;  // a number per row, where rows are so many per lookup

  // Fibonacci hashing (Knuth, The Art of Computer Programming, 6.4).
  ALWAYS_INLINE static uint64_t hash(int64_t id) {
    return static_cast<uint64_t>(id) * 0x9e3779b97f4a7c15u;
  }

  bool direct_;
  int64_t part_, parts_;
  int shift_;
  tt::Array<int32_t> slots_;  // by row, or hashed with linear probing, at most half full
  tt::Array<int64_t> ids_;    // by slot
  int64_t size_ = 0;
};

}  // namespace recsys_opt
