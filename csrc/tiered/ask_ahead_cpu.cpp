// tiered_ask_ahead: asks the system for the pages of cold rows in memory-mapped files before they
// are looked up, all at once and in order, so that a disk works on many of them at a time. Without
// it a lookup waits for its page, then the next one for its own.
#include <sys/mman.h>
#include <torch/csrc/stable/library.h>
#include <unistd.h>

#include <algorithm>

#include "as_contiguous.h"
#include "dispatch.h"
#include "tiered/tiered_bag.h"

namespace recsys_opt::tiered {
namespace {

// The cold rows of a table that lookups [begin, end) name; bad ids are the lookup's to refuse.
template <typename Id>
std::vector<int64_t> cold_rows(const Id* ids, const Tensor& remap, int64_t rows, int64_t hot_rows,
                               int64_t begin, int64_t end) {
  std::vector<int64_t> found;
  for (int64_t k = begin; k < end; ++k) {
    int64_t position = ids[k];
    if (position < 0 || position >= rows) continue;
    if (remap.numel() > 0)
      position = with_integers(remap, [&](const auto* map) { return int64_t{map[position]}; });
    if (position >= hot_rows && position < rows) found.push_back(position - hot_rows);
  }
  std::sort(found.begin(), found.end());
  found.erase(std::unique(found.begin(), found.end()), found.end());
  return found;
}

// Asks for the rows, in ascending order, of a tensor with `bytes` a row.
void ask_for(const void* first, int64_t bytes, const std::vector<int64_t>& rows) {
  static const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto base = reinterpret_cast<uintptr_t>(first);
  uintptr_t begin = 0, end = 0;  // pages to ask for
  const auto ask = [&] {
    if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_WILLNEED);
  };
  for (const int64_t row : rows) {
    const uintptr_t from = (base + row * bytes) / page * page;
    const uintptr_t to = (base + (row + 1) * bytes + page - 1) / page * page;
    if (from > end) {
      ask();
      begin = from;
    }
    end = std::max(end, to);
  }
  ask();
}

void tiered_ask_ahead_cpu(std::vector<Tensor> hot, std::vector<Tensor> cold,
                          std::vector<Tensor> remaps, std::vector<Tensor> cold_states,
                          Tensor indices, std::optional<Tensor> offsets,
                          std::vector<int64_t> mapped) {
  const char* op = "tiered_ask_ahead";
  const TieredShape s = check_tiered_args(op, hot, cold, indices, offsets, std::nullopt, mapped);
  check_remaps(op, remaps, s);
  STD_TORCH_CHECK(cold_states.size() % s.tables == 0, op, ": ", cold_states.size(),
                  " cold states for ", s.tables, " tables");
  const auto per_table = static_cast<int64_t>(cold_states.size()) / s.tables;
  make_contiguous(indices, offsets);
  const int64_t* bounds = offsets_of(offsets, s, op);
  for (int64_t t = 0; t < s.tables; ++t) {
    const int64_t count = s.rows[t] - s.hot_rows[t];
    if (!mapped[t] || count == 0) continue;
    const int64_t first = t * s.batch, last = first + s.batch;
    const int64_t begin = bounds ? bounds[first] : first, end = bounds ? bounds[last] : last;
    const auto find = [&](const auto* ids) {
      return cold_rows(ids, remaps[t], s.rows[t], s.hot_rows[t], begin, end);
    };
    const std::vector<int64_t> rows = with_integers(indices, find);
    const auto ask = [&](const Tensor& tensor) {
      const int64_t element = tensor.scalar_type() == ScalarType::Double ? 8 : 4;
      if (tensor.numel() > 0)
        ask_for(tensor.const_data_ptr(), tensor.numel() / count * element, rows);
    };
    ask(cold[t]);
    for (int64_t k = 0; k < per_table; ++k) ask(cold_states[t * per_table + k]);
  }
}

}  // namespace
}  // namespace recsys_opt::tiered

STABLE_TORCH_LIBRARY_IMPL(recsys_opt, CPU, m) {
  m.impl("tiered_ask_ahead", TORCH_BOX(&recsys_opt::tiered::tiered_ask_ahead_cpu));
}
