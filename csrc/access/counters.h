// Exact counters of one embedding table: how often each row was looked up.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <utility>
#include <vector>

namespace recsys_opt::access {

// Zeroed memory from the kernel, in huge pages where it gives them: counters are touched at random,
// and with pages of 4 KB most touches would also miss the TLB.
class ZeroedWords {
 public:
  explicit ZeroedWords(size_t count);
  ~ZeroedWords();
  ZeroedWords(const ZeroedWords&) = delete;
  ZeroedWords& operator=(const ZeroedWords&) = delete;
  uint32_t* data() const { return data_; }

 private:
  void* mapping_ = nullptr;
  size_t bytes_ = 0;
  uint32_t* data_ = nullptr;
};

// Ids somewhere in memory: element i of type int32 or int64 lies at data + i * stride bytes.
struct Ids {
  const char* data = nullptr;
  int64_t stride = 0;
  int64_t count = 0;
  bool wide = false;  // int64

  int64_t operator[](int64_t i) const {
    const char* at = data + i * stride;
    if (wide) {
      int64_t id;
      std::memcpy(&id, at, sizeof id);
      return id;
    }
    int32_t id;
    std::memcpy(&id, at, sizeof id);
    return id;
  }
};

// Counters of 32 bits; what does not fit into them is carried over into a map, so that the counts
// are exact whatever their size.
class Counters {
 public:
  static constexpr uint64_t kCarryAt = uint64_t{1} << 31;
  static constexpr int64_t kMaxRows = int64_t{1} << 32;

  // carry_at: a counter that has reached it is carried over; tests make it small.
  explicit Counters(int64_t rows, uint64_t carry_at = kCarryAt);

  int64_t rows() const { return rows_; }
  uint64_t lookups() const { return lookups_; }
  // Counts the ids [start, stop); false where one is outside the table, with some counted or none.
  bool add(const Ids& ids, int64_t start, int64_t stop);
  // Adds `count` to a row's counter.
  void add_count(int64_t row, uint64_t count);
  uint64_t count(int64_t row) const {
    const uint64_t low = low_.data()[row];
    if (carried_.empty()) return low;
    const auto found = carried_.find(row);
    return found == carried_.end() ? low : low + found->second;
  }
  // The 32-bit counters without what was carried over, and that.
  uint32_t* low() const { return low_.data(); }
  const std::map<int64_t, uint64_t>& carried() const { return carried_; }
  // Restores what low(), carried() and lookups() gave.
  void restore(const uint32_t* low, std::map<int64_t, uint64_t> carried, uint64_t lookups);

 private:
  template <class Id>
  bool add_block(const char* data, int64_t stride, int count);
  void carry();

  int64_t rows_;
  uint64_t carry_at_;
  uint64_t lookups_ = 0;
  uint64_t since_carry_ = 0;
  ZeroedWords low_;
  std::map<int64_t, uint64_t> carried_;
};

// The first id outside its table.
struct BadId {
  int64_t table = -1;  // -1: none
  int64_t position = 0;
  int64_t id = 0;
};

// Counts ids[t] into *tables[t] for all t, with up to `threads` threads; a table belongs to one
// thread. Where ids are columns of one matrix, its rows are read from memory once a thread. All
// tables must be different. After a bad id the counters are of no use.
BadId count_all(const std::vector<Counters*>& tables, const std::vector<Ids>& ids, int threads);

// The largest id of each of `ids`, -1 of none; a negative id is reported in *bad.
std::vector<int64_t> largest_ids(const std::vector<Ids>& ids, BadId* bad);

}  // namespace recsys_opt::access
