#include "access/ranking.h"

#include <algorithm>
#include <map>
#include <stdexcept>
#include <string>

namespace recsys_opt::access {
namespace {

constexpr uint64_t kDirect = uint64_t{1} << 16;  // counts below are sorted by counting

void put(std::vector<uint8_t>& out, uint64_t value) {
  while (value >= 0x80) {
    out.push_back(static_cast<uint8_t>(value | 0x80));
    value >>= 7;
  }
  out.push_back(static_cast<uint8_t>(value));
}

[[noreturn]] void damaged(const char* how) {
  throw std::invalid_argument(std::string("the packed rows are damaged: ") + how);
}

uint64_t get(const uint8_t*& at, const uint8_t* end) {
  uint64_t value = 0;
  for (int shift = 0; shift < 64; shift += 7) {
    if (at == end) damaged("they end too early");
    const uint8_t byte = *at++;
    value |= static_cast<uint64_t>(byte & 0x7f) << shift;
    if (byte < 0x80) return value;
  }
  damaged("a number is too long");
}

// Calls visit(row) for all rows, but for blocks of rows that nobody looked up.
template <class Visit>
void for_seen_blocks(const Counters& early, const Counters& late, Visit visit) {
  constexpr int64_t kRows = 256;
  const bool plain = early.carried().empty() && late.carried().empty();
  const uint32_t *e = early.low(), *l = late.low();
  for (int64_t start = 0; start < early.rows(); start += kRows) {
    const int64_t stop = std::min(start + kRows, early.rows());
    uint32_t any = plain ? 0 : 1;
    for (int64_t row = start; row < stop; ++row) any |= e[row] | l[row];
    if (any == 0) continue;
    for (int64_t row = start; row < stop; ++row) visit(row);
  }
}

struct Class {
  int64_t rows = 0, late = 0;
};

}  // namespace

Ranked rank_rows(const Counters& early, const Counters& late) {
  if (early.rows() != late.rows())
    throw std::invalid_argument("early has " + std::to_string(early.rows()) + " rows, late " +
                                std::to_string(late.rows()));
  Ranked out;
  // How many rows have each count; and by the earlier part alone.
  std::vector<int64_t> direct(kDirect, 0);
  std::vector<std::pair<uint64_t, uint32_t>> large;  // (count, row)
  std::vector<Class> by_early(kDirect);
  std::map<uint64_t, Class> by_early_large;
  const bool plain = early.carried().empty() && late.carried().empty();
  const auto count_of = [plain](const Counters& c, int64_t row) -> uint64_t {
    return plain ? c.low()[row] : c.count(row);
  };
  for_seen_blocks(early, late, [&](int64_t row) {
    const uint64_t e = count_of(early, row), l = count_of(late, row);
    if (e + l == 0) return;
    if (e + l < kDirect)
      ++direct[e + l];
    else
      large.emplace_back(e + l, static_cast<uint32_t>(row));
    Class& found = e < kDirect ? by_early[e] : by_early_large[e];
    ++found.rows;
    found.late += static_cast<int64_t>(l);
  });
  std::stable_sort(large.begin(), large.end(),
                   [](const auto& a, const auto& b) { return a.first > b.first; });
  for (const auto& [count, row] : large) {
    if (out.counts.empty() || out.counts.back() != static_cast<int64_t>(count)) {
      out.counts.push_back(static_cast<int64_t>(count));
      out.rows.push_back(0);
    }
    ++out.rows.back();
  }
  // Rows in order: the large ones, then by counting.
  int64_t seen = static_cast<int64_t>(large.size());
  std::vector<int64_t> place(kDirect, 0);
  for (uint64_t count = kDirect - 1; count > 0; --count) {
    if (direct[count] == 0) continue;
    out.counts.push_back(static_cast<int64_t>(count));
    out.rows.push_back(direct[count]);
    place[count] = seen;
    seen += direct[count];
  }
  std::vector<uint32_t> order(static_cast<size_t>(seen));
  for (size_t i = 0; i < large.size(); ++i) order[i] = large[i].second;
  for_seen_blocks(early, late, [&](int64_t row) {
    const uint64_t total = count_of(early, row) + count_of(late, row);
    if (total > 0 && total < kDirect) order[place[total]++] = static_cast<uint32_t>(row);
  });
  out.ids.reserve(order.size() + order.size() / 4);
  out.late.reserve(order.size());
  size_t at = 0;
  for (const int64_t rows : out.rows) {
    int64_t before = -1;
    for (int64_t i = 0; i < rows; ++i, ++at) {
      const auto row = static_cast<int64_t>(order[at]);
      put(out.ids, static_cast<uint64_t>(row - before - 1));
      put(out.late, count_of(late, row));
      before = row;
    }
  }
  const auto emit = [&](uint64_t count, const Class& found) {
    out.early_counts.push_back(static_cast<int64_t>(count));
    out.early_rows.push_back(found.rows);
    out.early_late.push_back(found.late);
  };
  for (auto it = by_early_large.rbegin(); it != by_early_large.rend(); ++it)
    emit(it->first, it->second);
  for (uint64_t count = kDirect - 1; count > 0; --count)
    if (by_early[count].rows) emit(count, by_early[count]);
  return out;
}

template <class Id>
void unpack_ids(const uint8_t* data, int64_t size, const int64_t* rows, int64_t runs,
                int64_t num_embeddings, Id* out) {
  const uint8_t* const end = data + size;
  for (int64_t run = 0; run < runs; ++run) {
    int64_t before = -1;
    for (int64_t i = 0; i < rows[run]; ++i) {
      const uint64_t distance = get(data, end);
      if (distance >= static_cast<uint64_t>(num_embeddings - 1 - before))
        damaged("an id is outside the table");
      before += static_cast<int64_t>(distance) + 1;
      *out++ = static_cast<Id>(before);
    }
  }
  if (data != end) damaged("bytes are left over");
}

template void unpack_ids<int32_t>(const uint8_t*, int64_t, const int64_t*, int64_t, int64_t,
                                  int32_t*);
template void unpack_ids<int64_t>(const uint8_t*, int64_t, const int64_t*, int64_t, int64_t,
                                  int64_t*);

std::vector<uint8_t> pack_numbers(const uint64_t* numbers, int64_t count) {
  std::vector<uint8_t> out;
  out.reserve(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) put(out, numbers[i]);
  return out;
}

void unpack_numbers(const uint8_t* data, int64_t size, int64_t count, uint64_t* out) {
  const uint8_t* const end = data + size;
  for (int64_t i = 0; i < count; ++i) out[i] = get(data, end);
  if (data != end) damaged("bytes are left over");
}

}  // namespace recsys_opt::access
