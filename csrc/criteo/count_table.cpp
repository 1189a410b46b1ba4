#include "criteo/count_table.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

namespace criteo {
namespace {
constexpr uint64_t kHugePage = 2u << 20;
constexpr uint32_t kFirstCapacity = 64;
constexpr uint32_t kDoublingUpTo = 4096;  // slots of a shard; above, it grows by half
constexpr int64_t kBatch = 32;            // probes in flight

// Least significant digit first, 11 bits a pass; a digit that all words share costs nothing.
void radix_sort(std::vector<uint64_t>& words) {
  constexpr int kBits = 11, kPasses = 6;
  constexpr uint64_t kMask = (1u << kBits) - 1;
  std::vector<uint64_t> starts(kPasses << kBits, 0);
  for (const uint64_t word : words)
    for (int pass = 0; pass < kPasses; ++pass)
      ++starts[static_cast<uint64_t>(pass) << kBits | ((word >> (pass * kBits)) & kMask)];
  std::vector<uint64_t> other(words.size());
  for (int pass = 0; pass < kPasses; ++pass) {
    uint64_t* start = &starts[static_cast<size_t>(pass) << kBits];
    if (!words.empty() && start[(words[0] >> (pass * kBits)) & kMask] == words.size()) continue;
    uint64_t sum = 0;
    for (uint64_t digit = 0; digit <= kMask; ++digit) sum += std::exchange(start[digit], sum);
    for (const uint64_t word : words) other[start[(word >> (pass * kBits)) & kMask]++] = word;
    words.swap(other);
  }
}
}  // namespace

Slots allocate_slots(uint64_t capacity) {
  const uint64_t wanted = capacity * sizeof(Slot);
  const uint64_t alignment = wanted >= 2 * kHugePage ? kHugePage : 64;
  const uint64_t bytes = (wanted + alignment - 1) / alignment * alignment;
  void* p = std::aligned_alloc(alignment, bytes);
  if (p == nullptr) throw std::bad_alloc();
  if (alignment == kHugePage) madvise(p, bytes, MADV_HUGEPAGE);
  std::memset(p, 0, bytes);
  return Slots(static_cast<Slot*>(p));
}

CountTable::CountTable() {
  for (Shard& shard : shards_) {
    shard.slots = allocate_slots(kFirstCapacity);
    shard.capacity = kFirstCapacity;
  }
}

inline Slot* CountTable::home(uint32_t value, Shard*& shard) {
  const uint32_t hash = scatter(value);
  shard = &shards_[hash >> (32 - kShardBits)];
  return &shard->slots[reduce(hash << kShardBits, shard->capacity)];
}

inline void CountTable::count_one(Shard& shard, Slot* slot, uint32_t value) {
  Slot* const end = shard.slots.get() + shard.capacity;
  while (slot->count != 0 && slot->value != value)
    if (++slot == end) slot = shard.slots.get();
  slot->value = value;
  shard.used += slot->count == 0;
  if (++slot->count == 0) [[unlikely]] {
    slot->count = 1u << 31;
    overflow_[value] += 1u << 31;
  }
}

void CountTable::add(const uint32_t* values, const uint32_t* missing, int column, int64_t n) {
  Shard* shards[kBatch];
  Slot* homes[kBatch];
  uint32_t present[kBatch];
  for (int64_t begin = 0; begin < n;) {
    int64_t m = 0;
    for (; m < kBatch && begin < n; ++begin) {
      present[m] = values[begin];
      homes[m] = home(values[begin], shards[m]);
      __builtin_prefetch(homes[m], 1);
      m += 1 - ((missing[begin] >> column) & 1);
    }
    bool full = false;
    for (int64_t i = 0; i < m; ++i) {
      count_one(*shards[i], homes[i], present[i]);
      full |= crowded(*shards[i]);
    }
    if (full) [[unlikely]]
      for (Shard& shard : shards_)
        if (crowded(shard)) grow(shard);
  }
}

// Over 3/4 full, or without room for a whole batch of new values.
inline bool CountTable::crowded(const Shard& shard) {
  return shard.used * 4ull > shard.capacity * 3ull || shard.capacity - shard.used <= kBatch;
}

void CountTable::grow(Shard& shard) {
  const uint64_t old_capacity = shard.capacity;
  const uint64_t capacity =
      old_capacity + (old_capacity <= kDoublingUpTo ? old_capacity : old_capacity / 2);
  Slots slots = allocate_slots(capacity);
  for (uint32_t i = 0; i < shard.capacity; ++i) {
    const Slot& old = shard.slots[i];
    if (old.count == 0) continue;
    uint64_t at = reduce(scatter(old.value) << kShardBits, capacity);
    while (slots[at].count != 0)
      if (++at == capacity) at = 0;
    slots[at] = old;
  }
  shard.slots = std::move(slots);
  shard.capacity = static_cast<uint32_t>(capacity);
}

// (~count, value) in one word each, so that ascending words are the wanted order; frees the shards
// as it goes.
std::vector<uint64_t> CountTable::take_packed(uint64_t min_count) {
  const auto kept = [&](const Slot& slot) {
    return slot.count != 0 && (slot.count >= min_count || overflow_.contains(slot.value));
  };
  uint64_t n = 0;
  for (const Shard& shard : shards_)
    for (uint32_t i = 0; i < shard.capacity; ++i) n += kept(shard.slots[i]);
  std::vector<uint64_t> packed;
  packed.reserve(n);
  for (Shard& shard : shards_) {
    for (uint32_t i = 0; i < shard.capacity; ++i) {
      const Slot& slot = shard.slots[i];
      if (!kept(slot)) continue;
      const uint32_t count = overflow_.contains(slot.value) ? ~0u : slot.count;
      packed.push_back(static_cast<uint64_t>(~count) << 32 | slot.value);
    }
    shard = Shard{allocate_slots(kFirstCapacity), kFirstCapacity, 0};
  }
  return packed;
}

std::vector<uint32_t> CountTable::take_ranked(uint64_t min_count) {
  std::unordered_map<uint32_t, uint64_t> huge;
  for (const auto& [value, more] : overflow_) {
    Shard* shard;
    const Slot* slot = home(value, shard);
    while (slot->value != value || slot->count == 0)
      if (++slot == shard->slots.get() + shard->capacity) slot = shard->slots.get();
    huge[value] = more + slot->count;
  }
  std::vector<uint64_t> packed = take_packed(min_count);
  overflow_.clear();
  radix_sort(packed);
  std::vector<uint32_t> ranked(packed.begin(), packed.end());  // the low halves
  // Counts of 2^32 - 1 and more were packed alike; they are the first ones.
  std::sort(ranked.begin(), ranked.begin() + static_cast<int64_t>(huge.size()),
            [&](uint32_t a, uint32_t b) { return huge[a] != huge[b] ? huge[a] > huge[b] : a < b; });
  return ranked;
}

uint64_t CountTable::distinct() const {
  uint64_t n = 0;
  for (const Shard& shard : shards_) n += shard.used;
  return n;
}

uint64_t CountTable::bytes() const {
  uint64_t n = 0;
  for (const Shard& shard : shards_) n += shard.capacity * sizeof(Slot);
  return n;
}

}  // namespace criteo
