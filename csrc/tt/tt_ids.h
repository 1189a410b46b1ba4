#pragma once
// Ids and offsets of a batch on the CPU: what is wrong with them, and their digits.
#include <bit>
#include <cstdint>
#include <string>

#include "tt_embedding_bag.h"

namespace recsys_opt::tt {

// The first thing wrong with a table's ids or offsets.
struct Fault {
  int64_t position = -1;  // in indices or offsets; -1: nothing is wrong
  std::string message;
};

// Division by a number known only at run time, as one multiplication where the dividend has 32
// bits.
class Divider {
 public:
  explicit Divider(uint64_t divisor)
      : divisor_(divisor),
        magic_(divisor > 1 ? UINT64_MAX / divisor + 1 : 0),
        small_shift_(31 + std::bit_width(divisor - 1)),
        small_magic_(divisor >> 31 ? 0 : ((uint64_t{1} << small_shift_) + divisor - 1) / divisor) {}
  uint64_t quotient(uint64_t x) const {
    if (divisor_ == 1) return x;
    if ((x | divisor_) >> 32) return x / divisor_;
    return static_cast<uint64_t>((static_cast<unsigned __int128>(magic_) * x) >> 64);
  }
  // Of x < 2^31 by a divisor < 2^31 (Granlund and Montgomery, "Division by invariant integers using
  // multiplication", 1994, theorem 4.2).
  uint64_t small_quotient(uint64_t x) const { return (x * small_magic_) >> small_shift_; }
  uint64_t divisor() const { return divisor_; }

 private:
  uint64_t divisor_;
  uint64_t magic_;
  int small_shift_;
  uint64_t small_magic_;
};

inline Fault id_fault(const Table& table, int64_t t, int64_t position, int64_t id) {
  return {position, "indices[" + std::to_string(position) + "] = " + std::to_string(id) +
                        " is outside the table's " + std::to_string(table.num_embeddings) +
                        " rows (table " + std::to_string(t) + ")"};
}

// What is wrong with the offsets of table t's bags.
// Ids before the first bag are refused; those after the last are of no bag, as nn.EmbeddingBag's
// include_last_offset has it.
template <typename Offset>
Fault check_offsets(const Offset* offsets, int64_t t, const Arguments& args) {
  const Offset* at = offsets + t * args.batch_size;
  for (int64_t b = 0; b <= args.batch_size; ++b) {
    const int64_t position = t * args.batch_size + b;
    if (at[b] < 0 || at[b] > args.num_indices) {
      return {position, "offsets[" + std::to_string(position) + "] = " + std::to_string(at[b]) +
                            " is outside the " + std::to_string(args.num_indices) + " indices"};
    }
    if (position == 0 && at[0] != 0) {
      return {0, "offsets[0] = " + std::to_string(at[0]) + "; the first bag must start at 0"};
    }
    if (b > 0 && at[b] < at[b - 1]) {
      return {position, "offsets[" + std::to_string(position) + "] = " + std::to_string(at[b]) +
                            " is less than offsets[" + std::to_string(position - 1) +
                            "] = " + std::to_string(at[b - 1])};
    }
  }
  return {};
}

}  // namespace recsys_opt::tt
