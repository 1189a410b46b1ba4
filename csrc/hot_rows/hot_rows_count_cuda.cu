// hot_rows_count_ on CUDA. Integer additions, held to the largest number, and maxima only, so the
// counts do not depend on the order of threads.
#include <torch/csrc/stable/library.h>

#include "hot_rows/launch_cuda.h"

namespace recsys_opt::hot_rows {
namespace {

constexpr int64_t kMostBlocks = 512;  // a table; threads take several lookups where there are more

struct Table {
  int32_t* hot_counts;
  int32_t* counts;
  int64_t* candidates;
  int64_t width, cells, slots, num_embeddings;
};

struct Tables {
  Table table[kTablesPerLaunch];
  int64_t first;  // of the launch, among all
};

// blockIdx.y a table; its threads take every so manieth of the lookups that are counted.
template <typename Each>
__device__ void for_each_lookup(Bags bags, int64_t table, int64_t batch, int64_t stride,
                                int64_t phase, const Each& each) {
  const int64_t begin = bags.begin(table * batch) + phase, end = bags.begin((table + 1) * batch);
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (int64_t k = begin + thread * stride; k < end; k += stride * gridDim.x * blockDim.x) each(k);
}

// Adds 1, up to the largest number that the counter holds.
__device__ void count_one(int32_t* counter) {
  constexpr unsigned kMost = INT32_MAX;
  auto* const as_unsigned = reinterpret_cast<unsigned*>(counter);
  // Who goes past the most brings the counter back; nobody can wrap it before that.
  if (atomicAdd(as_unsigned, 1u) >= kMost) atomicMin(as_unsigned, kMost);
}

__global__ void count(Tables tables, Numbers indices, const int32_t* __restrict__ slots, Bags bags,
                      int64_t batch, int64_t stride, int64_t phase, Bounds bounds) {
  const Table t = tables.table[blockIdx.y];
  const int64_t number = tables.first + blockIdx.y;
  for_each_lookup(bags, number, batch, stride, phase, [&](int64_t k) {
    const int32_t slot = slots[k];
    const int64_t id = indices[k];
    if (slot >= 0) {
      if (bounds.holds(BoundsKind::kSlot, k, slot, t.slots, number)) count_one(t.hot_counts + slot);
    } else if (slot == kCold && bounds.holds(BoundsKind::kIndex, k, id, t.num_embeddings, number)) {
      if (t.cells == 0) {
        count_one(t.counts + id);
        return;
      }
      const Places p = places(id, t.width, t.cells);
      count_one(t.counts + p.counter[0]);
      count_one(t.counts + p.counter[1]);
    }
  });
}

__global__ void propose(Tables tables, Numbers indices, const int32_t* __restrict__ slots,
                        Bags bags, int64_t batch, int64_t stride, int64_t phase) {
  const Table t = tables.table[blockIdx.y];
  if (t.cells == 0) return;
  for_each_lookup(bags, tables.first + blockIdx.y, batch, stride, phase, [&](int64_t k) {
    const int64_t id = indices[k];
    if (slots[k] != kCold || id < 0 || id >= t.num_embeddings) return;
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
  OneDevice("hot_rows_count_", "indices", indices)
      .with("hot_counts", hot_counts)
      .with("counts", counts)
      .with("candidates", candidates)
      .with("slots", slots)
      .with("offsets", offsets);
  if (s.ids == 0) return;
  const OnDevice device(indices);
  const Bounds bounds = Bounds::begin(device.index());
  make_contiguous(indices, offsets);
  const int64_t blocks = std::min(kMostBlocks, blocks_for((s.ids + stride - 1) / stride));
  // All are counted before any is proposed: features may share a table.
  for (const bool proposing : {false, true})
    for (int64_t first = 0; first < s.tables; first += kTablesPerLaunch) {
      Tables tables{};
      tables.first = first;
      const int64_t size = std::min<int64_t>(kTablesPerLaunch, s.tables - first);
      for (int64_t i = 0; i < size; ++i) {
        const int64_t t = first + i;
        tables.table[i] = {hot_counts[t].mutable_data_ptr<int32_t>(),
                           counts[t].mutable_data_ptr<int32_t>(),
                           candidates[t].mutable_data_ptr<int64_t>(),
                           counts[t].size(1),
                           candidates[t].numel(),
                           hot_counts[t].numel(),
                           num_embeddings[t]};
      }
      const Grid grid{blocks, size};
      const auto* slot = slots.const_data_ptr<int32_t>();
      if (proposing)
        launch(propose, grid, kThreads, 0, device.stream(), tables, numbers(indices), slot,
               bags(offsets, s.ids), s.batch, stride, phase);
      else
        launch(count, grid, kThreads, 0, device.stream(), tables, numbers(indices), slot,
               bags(offsets, s.ids), s.batch, stride, phase, bounds);
    }
}

}  // namespace
}  // namespace recsys_opt::hot_rows

STABLE_TORCH_LIBRARY_IMPL(TT_OPS_LIBRARY, TT_OPS_DEVICE, m) {
  m.impl("hot_rows_count_", TORCH_BOX(&recsys_opt::hot_rows::hot_rows_count_cuda));
}
