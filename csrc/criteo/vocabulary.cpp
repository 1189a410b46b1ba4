#include "criteo/vocabulary.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace criteo {

void Counts::add(const uint32_t* values, int64_t stride, const uint32_t* missing, int64_t n,
                 int64_t first) {
  for (int k = 0; k < kValues; ++k) {
    const auto column = static_cast<int>((first + k) % kValues);
    const std::lock_guard lock(locks_[column]);
    tables_[column].add(values + column * stride, missing, column, n);
  }
}

std::vector<uint32_t> Counts::take_ranked(int column, uint64_t min_count) {
  const std::lock_guard lock(locks_[column]);
  return tables_[column].take_ranked(min_count);
}

uint64_t Counts::distinct() {
  uint64_t n = 0;
  for (int c = 0; c < kValues; ++c) {
    const std::lock_guard lock(locks_[c]);
    n += tables_[c].distinct();
  }
  return n;
}

uint64_t Counts::bytes() {
  uint64_t n = 0;
  for (int c = 0; c < kValues; ++c) {
    const std::lock_guard lock(locks_[c]);
    n += tables_[c].bytes();
  }
  return n;
}

IdTable::IdTable(std::span<const uint32_t> ranked)
    : size_(ranked.size() / (Bucket::kSlots * 2 / 3) + 1), buckets_(allocate_buckets(size_)) {
  if (ranked.size() > (1u << 31) - kFirstId)
    throw std::invalid_argument(
        "a column has " + std::to_string(ranked.size()) +
        " values, more than 32-bit ids can name; use a minimum count or hashing");
  constexpr size_t kAhead = 32;
  const auto home = [&](uint32_t value) { return reduce(scatter(value), size_); };
  for (size_t r = 0; r < ranked.size(); ++r) {
    if (r + kAhead < ranked.size()) __builtin_prefetch(&buckets_[home(ranked[r + kAhead])], 1);
    uint64_t at = home(ranked[r]);
    while (buckets_[at].full())
      if (++at == size_) at = 0;
    buckets_[at].add(ranked[r], static_cast<uint32_t>(kFirstId + r));
  }
}

void IdTable::map(const uint32_t* values, const uint32_t* missing, int column, int64_t n,
                  int32_t* out) const {
  constexpr int64_t kAhead = 32;
  Bucket* buckets = buckets_.get();
  for (int64_t i = 0; i < n; ++i) {
    if (i + kAhead < n) __builtin_prefetch(&buckets[reduce(scatter(values[i + kAhead]), size_)]);
    uint64_t at = reduce(scatter(values[i]), size_);
    const uint32_t* id = buckets[at].find(values[i]);
    while (id == nullptr && buckets[at].full()) {
      if (++at == size_) at = 0;
      id = buckets[at].find(values[i]);
    }
    const int32_t present = id == nullptr ? kRareId : static_cast<int32_t>(*id);
    out[i * kValues] = (missing[i] >> column) & 1 ? kMissingId : present;
  }
}

HashIds::HashIds(uint32_t num_embeddings)
    : divisor_(num_embeddings - 1), magic_(divisor_ == 0 ? 0 : ~uint64_t{0} / divisor_ + 1) {
  if (num_embeddings < 2 || num_embeddings > 1u << 31)
    throw std::invalid_argument(
        "a cardinality is " + std::to_string(num_embeddings) +
        "; it must be at least 2 (id 0 is for missing values) and at most 2^31");
}

}  // namespace criteo
