// Counts how often each 32-bit value of a column occurs, in 8 bytes a slot.
#pragma once
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "criteo/bucket.h"

namespace criteo {

// Extendible hashing: the table is cut into shards by the hash's top bits, and a shard that is full
// splits in two. So growing copies a few MiB at a time, and memory never doubles.
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
  struct Shard {
    Shard(uint32_t depth, uint64_t buckets);
    // Where the probe for a hash begins: the bits below the top `depth` ones choose.
    Bucket* home(uint32_t hash) const { return &buckets[reduce(hash << depth, size)]; }
    Bucket* next(Bucket* bucket) const {
      return bucket + 1 == &buckets[size] ? &buckets[0] : bucket + 1;
    }
    void insert(uint32_t value, uint32_t count);  // a value that is not there
    bool crowded() const { return used * 20 > size * Bucket::kSlots * 17; }  // over 0.85

    uint32_t depth;  // values whose hashes share their top `depth` bits are here
    uint64_t used = 0;
    uint64_t size;  // buckets
    Buckets buckets;
  };

  Shard& shard_of(uint32_t hash) const {
    return *directory_[static_cast<uint64_t>(hash) >> (32 - depth_)];
  }
  void count(Shard& shard, Bucket* bucket, uint32_t value);
  void make_room(Shard& shard);
  void split(Shard& shard);
  void empty();
  template <class Visit>
  static void for_each(const Shard& shard, Visit visit);
  std::vector<uint64_t> take_packed(uint64_t min_count);

  uint32_t depth_;                 // the directory has 2^depth_ entries
  std::vector<Shard*> directory_;  // by the hash's top depth_ bits
  std::vector<std::unique_ptr<Shard>> shards_;
  std::unordered_map<uint32_t, uint64_t> overflow_;  // what a 32-bit count could not hold
};

}  // namespace criteo
