// hot_rows_count_ on the CPU.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <limits>
#include <map>

#include "as_contiguous.h"
#include "dispatch.h"
#include "hot_rows/hot_rows.h"
#include "hot_rows/offsets_cpu.h"

namespace recsys_opt::hot_rows {
namespace {

struct Table {
  int32_t* hot_counts;
  int32_t* counts;
  int64_t* candidates;
  int64_t width, cells, stride;
};

// Adds 1, up to the largest number that the counter holds.
void count_one(int32_t& counter) {
  counter += counter < std::numeric_limits<int32_t>::max();
}

template <typename Index>
void count(const Table& t, const Index* indices, const int32_t* slots, int64_t begin, int64_t end) {
  for (int64_t k = begin; k < end; k += t.stride) {
    const int32_t slot = slots[k];
    if (slot >= 0)
      count_one(t.hot_counts[slot]);
    else if (slot == kCold && t.cells == 0)
      count_one(t.counts[indices[k]]);
    else if (slot == kCold)
      for (const int64_t at : places(indices[k], t.width, t.cells).counter) count_one(t.counts[at]);
  }
}

// Lets ids stand as candidates once all lookups are counted, so that their order does not matter.
template <typename Index>
void propose(const Table& t, const Index* indices, const int32_t* slots, int64_t begin,
             int64_t end) {
  if (t.cells == 0) return;
  for (int64_t k = begin; k < end; k += t.stride) {
    if (slots[k] != kCold) continue;
    const Places p = places(indices[k], t.width, t.cells);
    const int64_t value =
        candidate(indices[k], std::min(t.counts[p.counter[0]], t.counts[p.counter[1]]));
    for (const int64_t at : p.cell) t.candidates[at] = std::max(t.candidates[at], value);
  }
}

void hot_rows_count_cpu(std::vector<Tensor> hot_counts, std::vector<Tensor> counts,
                        std::vector<Tensor> candidates, Tensor indices, Tensor slots,
                        std::optional<Tensor> offsets, std::vector<int64_t> num_embeddings,
                        int64_t stride, int64_t phase) {
  const Shape s = check_count(hot_counts, counts, candidates, indices, slots, offsets,
                              num_embeddings, stride, phase);
  make_contiguous(indices, offsets);
  const int64_t* bounds = offsets ? offsets->const_data_ptr<int64_t>() : nullptr;
  if (bounds) check_offsets("hot_rows_count_", bounds, s);
  const int32_t* slot = slots.const_data_ptr<int32_t>();
  for (int64_t t = 0; t < s.tables; ++t) {  // slots come from hot_rows_split, ids are in range
    const int64_t begin = bounds ? bounds[t * s.batch] : t * s.batch;
    const int64_t end = bounds ? bounds[(t + 1) * s.batch] : (t + 1) * s.batch;
    const bool wide = indices.scalar_type() == ScalarType::Long;
    for (int64_t k = begin + phase; k < end; k += stride) {
      const int64_t id =
          wide ? indices.const_data_ptr<int64_t>()[k] : indices.const_data_ptr<int32_t>()[k];
      STD_TORCH_CHECK(slot[k] < hot_counts[t].numel() && id >= 0 && id < num_embeddings[t],
                      "hot_rows_count_: indices[", k, "] = ", id, " with slot ", slot[k],
                      " is outside the table's ", num_embeddings[t], " rows or its ",
                      hot_counts[t].numel(), " slots (table ", t, ")");
    }
  }
  // Features that share a table are counted by one thread, one after the other.
  std::map<int32_t*, std::vector<int64_t>> features;
  std::vector<Table> tables;
  for (int64_t t = 0; t < s.tables; ++t) {
    tables.push_back({hot_counts[t].mutable_data_ptr<int32_t>(),
                      counts[t].mutable_data_ptr<int32_t>(),
                      candidates[t].mutable_data_ptr<int64_t>(), counts[t].size(1),
                      candidates[t].numel(), stride});
    features[tables[t].counts].push_back(t);
  }
  std::vector<const std::vector<int64_t>*> groups;
  for (const auto& [key, group] : features) groups.push_back(&group);
  const auto each = [&](const std::vector<int64_t>& group, auto&& call) {
    for (const int64_t t : group) {
      const int64_t begin = phase + (bounds ? bounds[t * s.batch] : t * s.batch);
      const int64_t end = bounds ? bounds[(t + 1) * s.batch] : (t + 1) * s.batch;
      with_integers(indices, [&](const auto* ids) { call(tables[t], ids, begin, end); });
    }
  };
  torch::stable::parallel_for(
      0, static_cast<int64_t>(groups.size()), 1, [&](int64_t first, int64_t last) {
        for (int64_t g = first; g < last; ++g) {
          each(*groups[g], [&](const Table& t, const auto* ids, int64_t begin, int64_t end) {
            count(t, ids, slot, begin, end);
          });
          each(*groups[g], [&](const Table& t, const auto* ids, int64_t begin, int64_t end) {
            propose(t, ids, slot, begin, end);
          });
        }
      });
}

}  // namespace
}  // namespace recsys_opt::hot_rows

STABLE_TORCH_LIBRARY_IMPL(recsys_opt, CPU, m) {
  m.impl("hot_rows_count_", TORCH_BOX(&recsys_opt::hot_rows::hot_rows_count_cpu));
}
