#include "criteo/count_table.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

namespace criteo {
namespace {
constexpr uint64_t kHugePage = 2u << 20;
// Sizes of a shard, in buckets.
constexpr uint64_t kFirstSize = 4;
constexpr uint64_t kGrowth = 4;
constexpr uint64_t kLargest = 1 << 17;  // 8 MiB; then it splits
// What a slot cannot hold goes to CountTable::overflow_. (The fuzzer sets less.)
#ifdef CRITEO_COUNT_LIMIT
constexpr uint64_t kCountLimit = CRITEO_COUNT_LIMIT;
#else
constexpr uint64_t kCountLimit = uint64_t{1} << 32;
#endif
constexpr int64_t kAhead = 24;  // values whose buckets are on their way from memory

// Least significant digit first, 11 bits a pass; a digit that all words share costs nothing.
void sort_words(std::vector<uint64_t>& words) {
  constexpr size_t kFew = 1 << 12;  // the passes' counters would cost more than comparisons
  if (words.size() < kFew) {
    std::sort(words.begin(), words.end());
    return;
  }
  constexpr int kBits = 11, kPasses = 6;
  constexpr uint64_t kMask = (1u << kBits) - 1;
  std::vector<uint64_t> starts(kPasses << kBits, 0);
  for (const uint64_t word : words)
    for (int pass = 0; pass < kPasses; ++pass)
      ++starts[static_cast<uint64_t>(pass) << kBits | ((word >> (pass * kBits)) & kMask)];
  std::vector<uint64_t> other(words.size());
  for (int pass = 0; pass < kPasses; ++pass) {
    uint64_t* start = &starts[static_cast<size_t>(pass) << kBits];
    if (start[(words[0] >> (pass * kBits)) & kMask] == words.size()) continue;
    uint64_t sum = 0;
    for (uint64_t digit = 0; digit <= kMask; ++digit) sum += std::exchange(start[digit], sum);
    for (const uint64_t word : words) other[start[(word >> (pass * kBits)) & kMask]++] = word;
    words.swap(other);
  }
}
}  // namespace

Buckets allocate_buckets(uint64_t& n) {
  const uint64_t alignment = n * sizeof(Bucket) >= kHugePage ? kHugePage : sizeof(Bucket);
  const uint64_t bytes = (n * sizeof(Bucket) + alignment - 1) / alignment * alignment;
  n = bytes / sizeof(Bucket);
  void* p = std::aligned_alloc(alignment, bytes);
  if (p == nullptr) throw std::bad_alloc();
  if (alignment == kHugePage) madvise(p, bytes, MADV_HUGEPAGE);
  std::memset(p, 0, bytes);
  return Buckets(static_cast<Bucket*>(p));
}

CountTable::Shard::Shard(uint32_t depth, uint64_t buckets)
    : depth(depth), size(buckets), buckets(allocate_buckets(size)) {}

void CountTable::Shard::insert(uint32_t value, uint32_t count) {
  Bucket* bucket = home(scatter(value));
  while (bucket->full()) bucket = next(bucket);
  bucket->add(value, count);
  ++used;
}

template <class Visit>
void CountTable::for_each(const Shard& shard, Visit visit) {
  for (uint64_t b = 0; b < shard.size; ++b) {
    const Bucket& bucket = shard.buckets[b];
    for (int i = 0; i < Bucket::kSlots && bucket.numbers[i] != 0; ++i)
      visit(bucket.values[i], bucket.numbers[i]);
  }
}

CountTable::CountTable() {
  empty();
}

void CountTable::empty() {
  depth_ = 0;
  shards_.clear();
  shards_.push_back(std::make_unique<Shard>(0, kFirstSize));
  directory_ = {shards_.back().get()};
  overflow_.clear();
}

void CountTable::add(const uint32_t* values, const uint32_t* missing, int column, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    if (i + kAhead < n) {
      const uint32_t ahead = scatter(values[i + kAhead]);
      __builtin_prefetch(shard_of(ahead).home(ahead), 1);
    }
    if ((missing[i] >> column) & 1) continue;
    const uint32_t hash = scatter(values[i]);
    Shard& shard = shard_of(hash);
    count(shard, shard.home(hash), values[i]);
  }
}

inline void CountTable::count(Shard& shard, Bucket* bucket, uint32_t value) {
  for (;; bucket = shard.next(bucket)) {
    if (uint32_t* number = bucket->find(value); number != nullptr) [[likely]] {
      if (++*number == static_cast<uint32_t>(kCountLimit)) [[unlikely]] {
        *number = static_cast<uint32_t>(kCountLimit / 2);
        overflow_[value] += kCountLimit / 2;
      }
      return;
    }
    if (!bucket->full()) break;
  }
  bucket->add(value, 1);
  ++shard.used;
  if (shard.crowded()) [[unlikely]]
    make_room(shard);
}

void CountTable::make_room(Shard& shard) {
  if (shard.size >= kLargest) {
    split(shard);
    return;
  }
  Shard larger(shard.depth, std::min(shard.size * kGrowth, kLargest));
  for_each(shard, [&](uint32_t value, uint32_t count) { larger.insert(value, count); });
  shard = std::move(larger);
}

void CountTable::split(Shard& shard) {
  const uint32_t depth = shard.depth + 1;
  if (depth > depth_) {
    std::vector<Shard*> twice(directory_.size() * 2);
    for (size_t i = 0; i < twice.size(); ++i) twice[i] = directory_[i / 2];
    directory_ = std::move(twice);
    ++depth_;
  }
  Shard lower(depth, shard.size);
  auto upper = std::make_unique<Shard>(depth, shard.size);
  for_each(shard, [&](uint32_t value, uint32_t count) {
    ((scatter(value) >> (32 - depth)) & 1 ? *upper : lower).insert(value, count);
  });
  // Of the directory's entries for the old shard, the upper half is for the hashes whose next bit
  // is 1.
  const auto first = std::find(directory_.begin(), directory_.end(), &shard);
  const auto entries = int64_t{1} << (depth_ - shard.depth);
  std::fill(first + entries / 2, first + entries, upper.get());
  shard = std::move(lower);
  shards_.push_back(std::move(upper));
}

// (~count, value) in one word each, so that ascending words are the wanted order; frees the shards
// as it goes.
std::vector<uint64_t> CountTable::take_packed(uint64_t min_count) {
  const auto is_kept = [&](uint32_t value, uint32_t count) {
    return count >= min_count || overflow_.contains(value);
  };
  uint64_t kept = 0;
  for (const auto& shard : shards_)
    for_each(*shard, [&](uint32_t value, uint32_t count) { kept += is_kept(value, count); });
  std::vector<uint64_t> packed;
  packed.reserve(kept);
  directory_.clear();
  for (auto& shard : shards_) {
    for_each(*shard, [&](uint32_t value, uint32_t count) {
      if (!is_kept(value, count)) return;
      const uint32_t packed_count = overflow_.contains(value) ? ~0u : count;
      packed.push_back(static_cast<uint64_t>(~packed_count) << 32 | value);
    });
    shard.reset();
  }
  return packed;
}

std::vector<uint32_t> CountTable::take_ranked(uint64_t min_count) {
  std::unordered_map<uint32_t, uint64_t> huge;
  for (const auto& [value, more] : overflow_) {
    const Shard& shard = shard_of(scatter(value));
    Bucket* bucket = shard.home(scatter(value));
    const uint32_t* number;
    while ((number = bucket->find(value)) == nullptr) bucket = shard.next(bucket);
    huge[value] = more + *number;
  }
  std::vector<uint64_t> packed = take_packed(min_count);
  empty();
  sort_words(packed);
  std::vector<uint32_t> ranked(packed.begin(), packed.end());  // the low halves
  // Counts over the limit were packed alike; they are the first ones.
  std::sort(ranked.begin(), ranked.begin() + static_cast<int64_t>(huge.size()),
            [&](uint32_t a, uint32_t b) { return huge[a] != huge[b] ? huge[a] > huge[b] : a < b; });
  return ranked;
}

uint64_t CountTable::distinct() const {
  uint64_t n = 0;
  for (const auto& shard : shards_) n += shard->used;
  return n;
}

uint64_t CountTable::bytes() const {
  uint64_t n = 0;
  for (const auto& shard : shards_) n += shard->size * sizeof(Bucket);
  return n;
}

}  // namespace criteo
