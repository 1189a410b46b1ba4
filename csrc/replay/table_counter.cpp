#include "replay/table_counter.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

namespace recsys_opt::replay {
namespace {

constexpr int64_t kAhead = 24;  // lookups whose rows are on their way from memory
constexpr size_t kHugePage = size_t{2} << 20;

constexpr uint32_t kUnranked = std::numeric_limits<uint32_t>::max();

}  // namespace

template <class Id>
TableCounter::TableCounter(const Id* ranking, int64_t ranked, int64_t rows, int64_t stripes,
                           int64_t parts, const int64_t* hot_rows)
    : rows_(rows), slots_(stripes * (parts + 1)), row_(nullptr, &std::free) {
  const size_t bytes =
      (static_cast<size_t>(rows) * sizeof(Row) + kHugePage - 1) / kHugePage * kHugePage;
  row_.reset(static_cast<Row*>(std::aligned_alloc(kHugePage, bytes)));
  Row* const row = row_.get();
  if (row == nullptr) throw std::bad_alloc();
  // Rows are met at random; few pages are looked up faster.
  madvise(row, bytes, MADV_HUGEPAGE);
  // limits[stripe * parts + i]: the parts' hot_rows in ascending order, so that the slow parts of a
  // row are those whose limit is at most its place in the stripe.
  std::vector<int64_t> limits(static_cast<size_t>(stripes * parts));
  for (int64_t s = 0; s < stripes; ++s) {
    for (int64_t p = 0; p < parts; ++p) limits[s * parts + p] = hot_rows[p * stripes + s];
    std::sort(limits.begin() + s * parts, limits.begin() + (s + 1) * parts);
  }
  // The next rank.
  int64_t stripe = 0, place = 0;
  const auto next_slot = [&] {
    const auto first = limits.begin() + stripe * parts;
    const int64_t slow =
        parts == 1 ? place >= *first : std::upper_bound(first, first + parts, place) - first;
    const auto slot = static_cast<uint32_t>(stripe * (parts + 1) + slow);
    if (++stripe == stripes) {
      stripe = 0;
      ++place;
    }
    return slot;
  };
  for (int64_t i = 0; i < rows; ++i) row[i] = {kUnranked, 0};
  for (int64_t i = 0; i < ranked; ++i) {
    if (i + kAhead < ranked) __builtin_prefetch(row + ranking[i + kAhead], 1);
    const int64_t id = ranking[i];
    if (id < 0 || id >= rows || row[id].slot != kUnranked) {
      throw std::invalid_argument("the ranking names row " + std::to_string(id) +
                                  (id < 0 || id >= rows ? " of " : " twice, of ") +
                                  std::to_string(rows) + " rows");
    }
    row[id].slot = next_slot();
  }
  for (int64_t i = 0; i < rows; ++i) {
    if (row[i].slot == kUnranked) row[i].slot = next_slot();
  }
}

void TableCounter::next_round() {
  if (++round_ != 0) return;
  for (int64_t i = 0; i < rows_; ++i) row_.get()[i].round = 0;
  round_ = 1;
}

template <class Id>
int64_t TableCounter::count(const Id* ids, int64_t count, int64_t* lookups, int64_t* distinct) {
  const auto rows = static_cast<uint64_t>(rows_);
  Row* const table = row_.get();
  for (int64_t i = 0; i < count; ++i) {
    // Whatever the id is: asking for memory that is not there does nothing.
    if (i + kAhead < count) __builtin_prefetch(table + ids[i + kAhead], 1);
    const auto id = static_cast<uint64_t>(static_cast<int64_t>(ids[i]));
    if (id >= rows) return i;
    Row& row = table[id];
    ++lookups[row.slot];
    distinct[row.slot] += row.round != round_;
    row.round = round_;
  }
  return -1;
}

template TableCounter::TableCounter(const int32_t*, int64_t, int64_t, int64_t, int64_t,
                                    const int64_t*);
template TableCounter::TableCounter(const int64_t*, int64_t, int64_t, int64_t, int64_t,
                                    const int64_t*);
template int64_t TableCounter::count(const int32_t*, int64_t, int64_t*, int64_t*);
template int64_t TableCounter::count(const int64_t*, int64_t, int64_t*, int64_t*);

}  // namespace recsys_opt::replay
