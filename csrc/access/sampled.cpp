#include "access/sampled.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "synth/hash.h"

namespace recsys_opt::access {
namespace {

constexpr int kBlock = 256;
constexpr int64_t kLeastSlots = 16;

uint64_t hash_of(uint64_t key) {
  return synth::mix(key * 0x9e3779b97f4a7c15ull + 1);
}

size_t scaled(uint64_t hash, size_t slots) {
  return static_cast<size_t>((static_cast<unsigned __int128>(hash) * slots) >> 64);
}

bool full(size_t used, size_t slots) {
  return used * 10 > slots * 7;
}

// The slot of a key, or the empty one that it would have.
template <class Slots>
auto& find(Slots& slots, size_t at, uint64_t key) {
  while (slots[at].key != 0 && slots[at].key != key) at = at + 1 == slots.size() ? 0 : at + 1;
  return slots[at];
}

}  // namespace

SampledCounters::SampledCounters(int64_t rows, int64_t sample_slots, int64_t head_slots)
    : rows_(rows) {
  if (rows < 1)
    throw std::invalid_argument("rows = " + std::to_string(rows) + "; it must be at least 1");
  if (sample_slots < kLeastSlots || head_slots < kLeastSlots)
    throw std::invalid_argument("a sample and a summary need at least " +
                                std::to_string(kLeastSlots) + " slots each");
  sample_.resize(static_cast<size_t>(sample_slots));
  head_.resize(static_cast<size_t>(head_slots));
}

size_t SampledCounters::sample_slot(uint64_t hash) const {
  return scaled(hash << level_, sample_.size());
}

size_t SampledCounters::head_slot(uint64_t hash) const {
  // In another order than the sample's: rows that come in its order would all crowd into one end.
  return scaled(hash * 0xd1342543de82ef95ull, head_.size());
}

bool SampledCounters::is_sampled(int64_t id) const {
  return level_ == 0 || hash_of(static_cast<uint64_t>(id) + 1) >> (64 - level_) == 0;
}

int64_t SampledCounters::add(const Ids& ids, bool late) {
  uint64_t keys[kBlock], hashes[kBlock];
  for (int64_t start = 0; start < ids.count; start += kBlock) {
    const int n = static_cast<int>(std::min<int64_t>(kBlock, ids.count - start));
    for (int i = 0; i < n; ++i) {
      const int64_t id = ids[start + i];
      if (id < 0 || id >= rows_) return start + i;
      keys[i] = static_cast<uint64_t>(id) + 1;
      hashes[i] = hash_of(keys[i]);
      if (level_ == 0 || hashes[i] >> (64 - level_) == 0)
        __builtin_prefetch(&sample_[sample_slot(hashes[i])], 1, 3);
      if (level_ > 0) __builtin_prefetch(&head_[head_slot(hashes[i])], 1, 3);
    }
    for (int i = 0; i < n; ++i) {
      // The summary comes first: if the sample is full with this lookup, its start counts the
      // sample's rows.
      if (level_ > 0) count_heavy(keys[i], hashes[i], 1);
      count_sampled(keys[i], hashes[i], late ? 0 : 1, late ? 1 : 0);
    }
    lookups_[late] += static_cast<uint64_t>(n);
  }
  return -1;
}

void SampledCounters::count_sampled(uint64_t key, uint64_t hash, uint64_t early, uint64_t late) {
  if (level_ > 0 && hash >> (64 - level_) != 0) return;
  Counted& slot = find(sample_, sample_slot(hash), key);
  const bool is_new = slot.key == 0;
  slot.key = key;
  slot.count[0] += early;
  slot.count[1] += late;
  if (is_new && full(++sampled_, sample_.size())) raise_level();
}

void SampledCounters::count_heavy(uint64_t key, uint64_t hash, uint64_t count) {
  Heavy& slot = find(head_, head_slot(hash), key);
  const bool is_new = slot.key == 0;
  slot.key = key;
  slot.least += count;
  if (is_new && full(++heavy_, head_.size())) purge_head();
}

void SampledCounters::raise_level() {
  if (level_ == 0) start_head();
  while (full(sampled_, sample_.size())) {
    ++level_;
    if (level_ > 60) throw std::logic_error("the hash of the rows is at fault");
    const std::vector<Counted> before = std::move(sample_);
    sample_ = std::vector<Counted>(before.size());
    sampled_ = 0;
    for (const Counted& row : before) {
      if (row.key == 0) continue;
      const uint64_t hash = hash_of(row.key);
      if (hash >> (64 - level_) != 0) continue;
      find(sample_, sample_slot(hash), row.key) = row;
      ++sampled_;
    }
  }
}

void SampledCounters::start_head() {
  for (const Counted& row : sample_)
    if (row.key != 0) count_heavy(row.key, hash_of(row.key), row.count[0] + row.count[1]);
}

void SampledCounters::purge_head() {
  std::vector<uint64_t> counts;
  counts.reserve(heavy_);
  for (const Heavy& row : head_)
    if (row.key != 0) counts.push_back(row.least);
  const auto middle = counts.begin() + static_cast<std::ptrdiff_t>(counts.size() / 2);
  std::nth_element(counts.begin(), middle, counts.end());
  const uint64_t taken = *middle;
  offset_ += taken;
  const std::vector<Heavy> before = std::move(head_);
  head_ = std::vector<Heavy>(before.size());
  heavy_ = 0;
  for (const Heavy& row : before) {
    if (row.key == 0 || row.least <= taken) continue;
    find(head_, head_slot(hash_of(row.key)), row.key) = {row.key, row.least - taken};
    ++heavy_;
  }
}

uint64_t SampledCounters::estimate(const Row& row) const {
  if (is_sampled(row.id)) return row.early + row.late;
  return is_head(row) ? row.least + offset_ : row.least;
}

std::vector<SampledCounters::Row> SampledCounters::known() const {
  std::vector<Row> rows;
  rows.reserve(sampled_ + heavy_);
  for (const Counted& row : sample_) {
    if (row.key == 0) continue;
    const uint64_t least = level_ > 0 ? find(head_, head_slot(hash_of(row.key)), row.key).least : 0;
    rows.push_back({static_cast<int64_t>(row.key - 1), row.count[0], row.count[1], least});
  }
  for (const Heavy& row : head_) {
    const auto id = static_cast<int64_t>(row.key - 1);
    if (row.key != 0 && !is_sampled(id)) rows.push_back({id, 0, 0, row.least});
  }
  std::sort(rows.begin(), rows.end(), [this](const Row& a, const Row& b) {
    if (is_head(a) != is_head(b)) return is_head(a);
    const uint64_t x = estimate(a), y = estimate(b);
    return x != y ? x > y : a.id < b.id;
  });
  return rows;
}

int64_t SampledCounters::head_rows() const {
  if (level_ == 0) return 0;
  return std::count_if(head_.begin(), head_.end(),
                       [this](const Heavy& row) { return row.key != 0 && row.least > offset_; });
}

void SampledCounters::merge(int level, uint64_t offset, uint64_t early, uint64_t late,
                            const std::vector<Row>& rows) {
  if (level < 0 || level > 60)
    throw std::invalid_argument("level = " + std::to_string(level) + "; it must be 0 to 60");
  for (const Row& row : rows)
    if (row.id < 0 || row.id >= rows_)
      throw std::invalid_argument("row " + std::to_string(row.id) + " is outside the table's " +
                                  std::to_string(rows_) + " rows");
  const bool had_head = level_ > 0, has_head = level > 0;
  if (level > level_) {
    if (!had_head) start_head();
    level_ = level;
    // Rows beyond the new level go.
    const std::vector<Counted> before = std::move(sample_);
    sample_ = std::vector<Counted>(before.size());
    sampled_ = 0;
    for (const Counted& row : before) {
      if (row.key == 0 || !is_sampled(static_cast<int64_t>(row.key - 1))) continue;
      find(sample_, sample_slot(hash_of(row.key)), row.key) = row;
      ++sampled_;
    }
  }
  offset_ += offset;
  lookups_[0] += early;
  lookups_[1] += late;
  for (const Row& row : rows) {
    const uint64_t key = static_cast<uint64_t>(row.id) + 1, hash = hash_of(key);
    // Of a table that had no summary, the counts are exact. While this one has none, it counts the
    // sample's rows when it starts.
    const uint64_t count = has_head ? row.least : row.early + row.late;
    if (level_ > 0 && count > 0) count_heavy(key, hash, count);
    if (has_head && (level > 0 && hash >> (64 - level) != 0)) continue;
    count_sampled(key, hash, row.early, row.late);
  }
}

}  // namespace recsys_opt::access
