#include "replay/row_cache.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

namespace recsys_opt::replay {
namespace {

constexpr int kLru = 0, kLfu = 1;
constexpr int64_t kAhead = 24;  // lookups whose rows are on their way from memory

}  // namespace

RowCaches::RowCaches(int64_t rows, int64_t sets) : sets_(sets) {
  if (rows < 1 || sets < 1 || std::max(rows, sets * kWays) > std::numeric_limits<int32_t>::max()) {
    throw std::invalid_argument("a cache of " + std::to_string(sets) + " sets for " +
                                std::to_string(rows) + " rows; both must be 1 to 2^31 rows");
  }
  row_.resize(static_cast<size_t>(rows));
  for (auto& slots : slots_) slots.resize(static_cast<size_t>(sets * kWays));
  first_.resize(static_cast<size_t>(sets + 1));
}

template <class Id>
void RowCaches::add(const Id* ids, int64_t count, int64_t first, int64_t last, int64_t base) {
  const auto width = static_cast<uint64_t>(last - first);
  Row* const rows = row_.data() + base;
  const auto place = [&](int64_t i) { return static_cast<uint64_t>(ids[i] - first); };
  for (int64_t i = 0; i < count; ++i) {
    if (i + kAhead < count && place(i + kAhead) < width) {
      __builtin_prefetch(rows + place(i + kAhead), 1);
    }
    if (place(i) >= width) continue;
    Row& row = rows[place(i)];
    if (row.batch != batch_) {
      row.batch = batch_;
      row.lookups = 0;
      touched_.push_back(static_cast<int32_t>(&row - row_.data()));
    }
    ++row.lookups;
  }
}

template void RowCaches::add(const int32_t*, int64_t, int64_t, int64_t, int64_t);
template void RowCaches::add(const int64_t*, int64_t, int64_t, int64_t, int64_t);

// FBGEMM's sets are those of MurmurHash3's 64-bit finalizer.
uint32_t RowCaches::set_of(int64_t row) const {
  auto h = static_cast<uint64_t>(row);
  h = (h ^ (h >> 33)) * 0xff51afd7ed558ccdULL;
  h = (h ^ (h >> 33)) * 0xc4ceb9fe1a85ec53ULL;
  h ^= h >> 33;
  return static_cast<uint32_t>(h % static_cast<uint64_t>(sets_));
}

// missing_ and first_: the batch's rows that are not in the cache, by set.
void RowCaches::group_missing(int policy) {
  std::fill(first_.begin(), first_.end(), 0);
  int64_t missing = 0;
  for (const int32_t r : touched_) {
    if (row_[r].slot[policy] >= 0) continue;
    ++first_[set_of(r) + 1];
    ++missing;
  }
  for (int64_t s = 0; s < sets_; ++s) first_[s + 1] += first_[s];
  missing_.resize(static_cast<size_t>(missing));
  // Filled from each set's end, after which first_[s] is the set's first again.
  for (const int32_t r : touched_) {
    if (row_[r].slot[policy] < 0) missing_[--first_[set_of(r) + 1]] = r;
  }
  for (int64_t s = 0; s < sets_; ++s) first_[s] = first_[s + 1];
  first_[sets_] = missing;
}

void RowCaches::place(int policy, int32_t row, int64_t at, CacheTraffic* traffic) {
  Slot& slot = slots_[policy][at];
  if (slot.row >= 0) {
    row_[slot.row].slot[policy] = -1;
    ++traffic->evictions;
  }
  slot = {row, batch_};
  row_[row].slot[policy] = static_cast<int32_t>(at);
  ++traffic->loads;
}

void RowCaches::insert_lru(const int32_t* missing, int64_t count, uint32_t set,
                           CacheTraffic* traffic) {
  std::array<int32_t, kWays> order;
  const int64_t base = set * kWays;
  const Slot* const slots = slots_[kLru].data() + base;
  for (int32_t w = 0; w < kWays; ++w) order[w] = w;
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return slots[a].batch < slots[b].batch; });
  for (int64_t i = 0; i < std::min(count, kWays); ++i) {
    if (slots[order[i]].batch == batch_) break;
    place(kLru, missing[i], base + order[i], traffic);
  }
}

void RowCaches::insert_lfu(int32_t* missing, int64_t count, uint32_t set, CacheTraffic* traffic) {
  std::stable_sort(missing, missing + count,
                   [&](int32_t a, int32_t b) { return row_[a].uses > row_[b].uses; });
  std::array<int32_t, kWays> order;
  const int64_t base = set * kWays;
  const Slot* const slots = slots_[kLfu].data() + base;
  const auto uses = [&](int32_t w) {
    return slots[w].row < 0 ? int64_t{-1} : int64_t{row_[slots[w].row].uses};
  };
  for (int32_t w = 0; w < kWays; ++w) order[w] = w;
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return uses(a) < uses(b); });
  for (int64_t i = 0; i < std::min(count, kWays); ++i) {
    if (uses(order[i]) > row_[missing[i]].uses) break;
    place(kLfu, missing[i], base + order[i], traffic);
  }
}

std::array<CacheTraffic, 2> RowCaches::end_batch() {
  std::array<CacheTraffic, 2> found;
  for (const int32_t r : touched_) {
    Row& row = row_[r];
    row.uses += row.lookups;
    if (row.slot[kLru] >= 0) slots_[kLru][row.slot[kLru]].batch = batch_;
  }
  for (const int policy : {kLru, kLfu}) {
    CacheTraffic& traffic = found[policy];
    group_missing(policy);
    for (int64_t s = 0; s < sets_; ++s) {
      int32_t* const missing = missing_.data() + first_[s];
      const int64_t count = first_[s + 1] - first_[s];
      if (count == 0) continue;
      std::sort(missing, missing + count);
      const auto set = static_cast<uint32_t>(s);
      if (policy == kLru) insert_lru(missing, count, set, &traffic);
      if (policy == kLfu) insert_lfu(missing, count, set, &traffic);
    }
    for (const int32_t r : touched_) {
      const Row& row = row_[r];
      traffic.lookups += row.lookups;
      ++traffic.rows;
      if (row.slot[policy] >= 0) continue;
      traffic.direct_lookups += row.lookups;
      ++traffic.direct_rows;
    }
  }
  touched_.clear();
  ++batch_;
  return found;
}

}  // namespace recsys_opt::replay
