// hot_rows_count_ on CUDA. Integer additions and maxima only, so the counts do not depend on the
// order of threads.
#include <torch/csrc/stable/library.h>

#include "hot_rows/launch_cuda.h"

namespace recsys_opt::hot_rows {
namespace {

constexpr int64_t kMostBlocks = 512;  // a table; threads take several lookups where there are more

struct Table {
  int32_t* hot_counts;
  int32_t* counts;
  int64_t* candidates;
  int64_t width, cells;
};

struct Tables {
  Table table[kTablesPerLaunch];
  int64_t first;  // of the launch, among all
};

// blockIdx.y a table; its threads take every so manieth of the lookups that are counted.
template <typename Each>
__device__ void for_each_lookup(Bags bounds, int64_t table, int64_t batch, int64_t stride,
                                int64_t phase, const Each& each) {
  const int64_t begin = bounds[table * batch] + phase, end = bounds[(table + 1) * batch];
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (int64_t k = begin + thread * stride; k < end; k += stride * gridDim.x * blockDim.x) each(k);
}

__global__ void count(Tables tables, Numbers indices, const int32_t* __restrict__ slots,
                      Bags bounds, int64_t batch, int64_t stride, int64_t phase) {
  const Table t = tables.table[blockIdx.y];
  for_each_lookup(bounds, tables.first + blockIdx.y, batch, stride, phase, [&](int64_t k) {
    const int32_t slot = slots[k];
    if (slot >= 0) {
      atomicAdd(t.hot_counts + slot, 1);
    } else if (slot == kCold && t.cells == 0) {
      atomicAdd(t.counts + indices[k], 1);
    } else if (slot == kCold) {
      const Places p = places(indices[k], t.width, t.cells);
      atomicAdd(t.counts + p.counter[0], 1);
      atomicAdd(t.counts + p.counter[1], 1);
    }
  });
}

__global__ void propose(Tables tables, Numbers indices, const int32_t* __restrict__ slots,
                        Bags bounds, int64_t batch, int64_t stride, int64_t phase) {
  const Table t = tables.table[blockIdx.y];
  if (t.cells == 0) return;
  for_each_lookup(bounds, tables.first + blockIdx.y, batch, stride, phase, [&](int64_t k) {
    if (slots[k] != kCold) return;
    const int64_t id = indices[k];
    const Places p = places(id, t.width, t.cells);
    const int32_t one = t.counts[p.counter[0]], other = t.counts[p.counter[1]];
    const int64_t value = candidate(id, one < other ? one : other);
    raise_to(t.candidates + p.cell[0], value);
    raise_to(t.candidates + p.cell[1], value);
  });
}

void hot_rows_count_cuda(std::vector<Tensor> hot_counts, std::vector<Tensor> counts,
                         std::vector<Tensor> candidates, Tensor indices, Tensor slots,
                         std::optional<Tensor> offsets, std::vector<int64_t> num_embeddings,
                         int64_t stride, int64_t phase) {
  const Shape s = check_count(hot_counts, counts, candidates, indices, slots, offsets,
                              num_embeddings, stride, phase);
  if (s.ids == 0) return;
  const OnDevice device(indices);
  indices = torch::stable::contiguous(indices);
  if (offsets) offsets = torch::stable::contiguous(*offsets);
  const int64_t blocks = std::min(kMostBlocks, blocks_for((s.ids + stride - 1) / stride));
  // All are counted before any is proposed: features may share a table.
  for (const bool proposing : {false, true})
    for (int64_t first = 0; first < s.tables; first += kTablesPerLaunch) {
      Tables tables{};
      tables.first = first;
      const int64_t size = std::min<int64_t>(kTablesPerLaunch, s.tables - first);
      for (int64_t i = 0; i < size; ++i) {
        const int64_t t = first + i;
        tables.table[i] = {
            hot_counts[t].mutable_data_ptr<int32_t>(), counts[t].mutable_data_ptr<int32_t>(),
            candidates[t].mutable_data_ptr<int64_t>(), counts[t].size(1), candidates[t].numel()};
      }
      const Grid grid{blocks, size};
      const auto* slot = slots.const_data_ptr<int32_t>();
      if (proposing)
        launch(propose, grid, kThreads, 0, device.stream(), tables, numbers(indices), slot,
               bags(offsets), s.batch, stride, phase);
      else
        launch(count, grid, kThreads, 0, device.stream(), tables, numbers(indices), slot,
               bags(offsets), s.batch, stride, phase);
    }
}

}  // namespace
}  // namespace recsys_opt::hot_rows

STABLE_TORCH_LIBRARY_IMPL(TT_OPS_LIBRARY, TT_OPS_DEVICE, m) {
  m.impl("hot_rows_count_", TORCH_BOX(&recsys_opt::hot_rows::hot_rows_count_cuda));
}
