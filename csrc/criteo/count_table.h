// Counts how often each 32-bit value of a column occurs: open addressing, 8 bytes a slot.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <unordered_map>
#include <vector>

namespace criteo {

// Where a value's probe begins: Fibonacci hashing, then a range reduction that suits any capacity.
inline uint32_t scatter(uint32_t value) {
  return value * 0x9e3779b1u;
}
inline uint64_t reduce(uint32_t hash, uint64_t capacity) {
  return (hash * capacity) >> 32;
}

struct Slot {
  uint32_t value;
  uint32_t count;  // 0: the slot is empty
};

struct FreeDeleter {
  void operator()(void* p) const { std::free(p); }
};
using Slots = std::unique_ptr<Slot[], FreeDeleter>;

// Zeroed slots, on huge pages where they are many (the probes are random: TLB misses would
// dominate).
Slots allocate_slots(uint64_t capacity);

// 32 shards by the hash's top bits, so that growth copies one shard at a time and memory never
// doubles at once.
class CountTable {
 public:
  CountTable();

  // Counts values[i] for each i < n whose bit `column` of missing[i] is 0.
  void add(const uint32_t* values, const uint32_t* missing, int column, int64_t n);

  // The values that occur at least `min_count` times, by descending count, ties by ascending value:
  // the same whatever order they were counted in. Empties the table.
  std::vector<uint32_t> take_ranked(uint64_t min_count);

  uint64_t distinct() const;
  uint64_t bytes() const;

 private:
  static constexpr int kShardBits = 5;
  static constexpr int kShards = 1 << kShardBits;
  struct Shard {
    Slots slots;
    uint32_t capacity = 0;
    uint32_t used = 0;
  };

  Slot* home(uint32_t value, Shard*& shard);
  void count_one(Shard& shard, Slot* slot, uint32_t value);
  std::vector<uint64_t> take_packed(uint64_t min_count);
  static bool crowded(const Shard& shard);
  static void grow(Shard& shard);

  Shard shards_[kShards];
  std::unordered_map<uint32_t, uint64_t> overflow_;  // what a 32-bit count could not hold
};

}  // namespace criteo
