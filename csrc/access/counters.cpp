#include "access/counters.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <mutex>
#include <new>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>

namespace recsys_opt::access {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
// Ids that are read, checked and converted before they are counted.
constexpr int kBlock = 1024;
// Positions of all tables that are counted before the next ones: 26 columns of 4 bytes and as many
// rows stay in the L2 cache while each column reads them.
constexpr int64_t kRowsInCache = 4096;
// Counters of a table that stays in the L2 cache are not worth asking for ahead.
constexpr int64_t kCachedRows = int64_t{1} << 17;
constexpr int kAhead = 48;

template <class Id>
Id load(const char* at) {
  Id id;
  std::memcpy(&id, at, sizeof id);
  return id;
}

}  // namespace

ZeroedWords::ZeroedWords(size_t count) {
  const size_t wanted = std::max<size_t>(count * sizeof(uint32_t), 1);
  const size_t align = wanted >= kHugePage ? kHugePage : 0;
  bytes_ = wanted + align;
  mapping_ = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping_ == MAP_FAILED) throw std::bad_alloc();
  auto address = reinterpret_cast<uintptr_t>(mapping_);
  if (align) {
    address = (address + align - 1) / align * align;
    // Without huge pages the counters are slower, not wrong.
    (void)::madvise(reinterpret_cast<void*>(address), wanted, MADV_HUGEPAGE);
  }
  data_ = reinterpret_cast<uint32_t*>(address);
}

ZeroedWords::~ZeroedWords() {
  ::munmap(mapping_, bytes_);
}

Counters::Counters(int64_t rows, uint64_t carry_at)
    : rows_(rows), carry_at_(carry_at), low_(rows > 0 && rows <= kMaxRows ? rows : 1) {
  if (rows < 1 || rows > kMaxRows)
    throw std::invalid_argument("rows = " + std::to_string(rows) + "; it must be 1 to " +
                                std::to_string(kMaxRows));
  if (carry_at < 1 || carry_at > kCarryAt)
    throw std::invalid_argument("carry_at = " + std::to_string(carry_at) + "; it must be 1 to " +
                                std::to_string(kCarryAt));
}

template <class Id>
bool Counters::add_block(const char* data, int64_t stride, int count) {
  uint32_t rows[kBlock];
  uint64_t outside = 0;
  const auto limit = static_cast<uint64_t>(rows_);
  if (stride == sizeof(Id)) {
    for (int i = 0; i < count; ++i) {
      const int64_t id = load<Id>(data + i * static_cast<int64_t>(sizeof(Id)));
      outside |= static_cast<uint64_t>(static_cast<uint64_t>(id) >= limit);
      rows[i] = static_cast<uint32_t>(id);
    }
  } else {
    for (int i = 0; i < count; ++i) {
      const int64_t id = load<Id>(data + i * stride);
      outside |= static_cast<uint64_t>(static_cast<uint64_t>(id) >= limit);
      rows[i] = static_cast<uint32_t>(id);
    }
  }
  if (outside) return false;
  uint32_t* counts = low_.data();
  int i = 0;
  if (rows_ > kCachedRows) {
    for (int j = 0; j < std::min(kAhead, count); ++j) __builtin_prefetch(counts + rows[j], 1, 3);
    for (; i + kAhead < count; ++i) {
      __builtin_prefetch(counts + rows[i + kAhead], 1, 3);
      ++counts[rows[i]];
    }
  }
  for (; i < count; ++i) ++counts[rows[i]];
  return true;
}

bool Counters::add(const Ids& ids, int64_t start, int64_t stop) {
  while (start < stop) {
    const auto left = static_cast<uint64_t>(stop - start);
    if (since_carry_ >= carry_at_) carry();
    const int n = static_cast<int>(std::min({left, uint64_t{kBlock}, carry_at_ - since_carry_}));
    const char* at = ids.data + start * ids.stride;
    if (!(ids.wide ? add_block<int64_t>(at, ids.stride, n) : add_block<int32_t>(at, ids.stride, n)))
      return false;
    since_carry_ += static_cast<uint64_t>(n);
    lookups_ += static_cast<uint64_t>(n);
    start += n;
  }
  return true;
}

void Counters::add_count(int64_t row, uint64_t count) {
  if (row < 0 || row >= rows_)
    throw std::invalid_argument("row " + std::to_string(row) + " is outside the table's " +
                                std::to_string(rows_) + " rows");
  uint32_t& low = low_.data()[row];
  lookups_ += count;
  count += low;
  low = static_cast<uint32_t>(count % carry_at_);
  if (count >= carry_at_) carried_[row] += count - low;
  since_carry_ = carry_at_;  // the counters may be just below it
}

void Counters::carry() {
  uint32_t* counts = low_.data();
  for (int64_t row = 0; row < rows_; ++row) {
    if (counts[row] < carry_at_) continue;
    const auto left = static_cast<uint32_t>(counts[row] % carry_at_);
    carried_[row] += counts[row] - left;
    counts[row] = left;
  }
  since_carry_ = 0;
}

void Counters::restore(const uint32_t* low, std::map<int64_t, uint64_t> carried, uint64_t lookups) {
  std::memcpy(low_.data(), low, static_cast<size_t>(rows_) * sizeof *low);
  carried_ = std::move(carried);
  lookups_ = lookups;
  since_carry_ = carry_at_;
}

BadId count_all(const std::vector<Counters*>& tables, const std::vector<Ids>& ids, int threads) {
  // Longest first, each to the thread that has least. A lookup of a large table waits for memory.
  std::vector<size_t> order(tables.size());
  std::iota(order.begin(), order.end(), size_t{0});
  const auto work = [&](size_t t) {
    return ids[t].count * (tables[t]->rows() > kCachedRows ? 3 : 1);
  };
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return work(a) > work(b); });
  const auto used =
      static_cast<size_t>(std::clamp<int64_t>(threads, 1, std::max<int64_t>(1, tables.size())));
  std::vector<std::vector<size_t>> mine(used);
  std::vector<int64_t> load(used, 0);
  for (const size_t t : order) {
    const auto least = std::min_element(load.begin(), load.end()) - load.begin();
    mine[least].push_back(t);
    load[least] += work(t);
  }
  std::vector<char> failed(used, 0);
  std::exception_ptr failure;
  std::mutex mutex;
  const auto run = [&](size_t thread) {
    try {
      int64_t longest = 0;
      for (const size_t t : mine[thread]) longest = std::max(longest, ids[t].count);
      for (int64_t at = 0; at < longest; at += kRowsInCache)
        for (const size_t t : mine[thread])
          if (!tables[t]->add(ids[t], at, std::min(at + kRowsInCache, ids[t].count))) {
            failed[thread] = 1;
            return;
          }
    } catch (...) {
      const std::lock_guard lock(mutex);
      failure = std::current_exception();
    }
  };
  std::vector<std::thread> others;
  for (size_t i = 1; i < used; ++i) others.emplace_back(run, i);
  run(0);
  for (std::thread& t : others) t.join();
  if (failure) std::rethrow_exception(failure);
  BadId bad;
  if (std::none_of(failed.begin(), failed.end(), [](char f) { return f != 0; })) return bad;
  // The same one however many threads there are: the first table with one, its first.
  for (size_t t = 0; t < tables.size(); ++t)
    for (int64_t i = 0; i < ids[t].count; ++i) {
      const int64_t id = ids[t][i];
      if (id < 0 || id >= tables[t]->rows()) return {static_cast<int64_t>(t), i, id};
    }
  throw std::logic_error("an id was outside its table, and is not any more");
}

std::vector<int64_t> largest_ids(const std::vector<Ids>& ids, BadId* bad) {
  std::vector<int64_t> largest(ids.size(), -1);
  for (size_t t = 0; t < ids.size(); ++t)
    for (int64_t i = 0; i < ids[t].count; ++i) {
      const int64_t id = ids[t][i];
      if (id < 0) {
        *bad = {static_cast<int64_t>(t), i, id};
        return largest;
      }
      largest[t] = std::max(largest[t], id);
    }
  return largest;
}

}  // namespace recsys_opt::access
