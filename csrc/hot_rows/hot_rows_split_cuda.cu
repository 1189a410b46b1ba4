// hot_rows_split and hot_rows_directory_ on CUDA. The sizes of all results follow from those of the
// arguments, so nothing waits for the device; results do not depend on the order of threads.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "hot_rows/launch_cuda.h"

namespace recsys_opt::hot_rows {
namespace {

struct Table {
  const int64_t* keys;
  const int32_t* directory;
  int64_t mask, num_embeddings, padding_idx;
};

struct Tables {
  Table table[kTablesPerLaunch];
  int64_t first;  // of the launch, among all
};

// One thread a lookup: a slot for those that no bag has.
__global__ void clear_slots(int32_t* slots, int64_t ids) {
  const int64_t k = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (k < ids) slots[k] = kPadding;
}

// One thread a bag, blockIdx.y a table: slots of the bag's lookups, and in cold_offsets[bag + 1]
// how many are cold. An id out of range counts for nothing.
__global__ void look_up(Tables tables, Numbers indices, Bags bags, int64_t batch, Bounds bounds,
                        int32_t* __restrict__ slots, int64_t* __restrict__ cold_offsets) {
  const int64_t b = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (b >= batch) return;
  const Table t = tables.table[blockIdx.y];
  const int64_t number = tables.first + blockIdx.y, bag = number * batch + b;
  if (bags.offsets && bounds.mode != tt::BoundsCheck::kTrust) {
    if (bag == 0) tt::check_offset(bags.offsets, 0, bags.ids, number, bounds.record);
    tt::check_offset(bags.offsets, bag + 1, bags.ids, number, bounds.record);
  }
  int64_t cold = 0;
  const auto [begin, end] = bags[bag];
  for (int64_t k = begin; k < end; ++k) {
    const int64_t id = indices[k];
    int32_t slot = kPadding;
    if (bounds.holds(BoundsKind::kIndex, k, id, t.num_embeddings, number) && id != t.padding_idx) {
      slot = find(id, t.keys, t.directory, t.mask);
    }
    slots[k] = slot;
    cold += slot == kCold;
  }
  cold_offsets[bag + 1] = cold;
}

constexpr int64_t kSumBytes = (kThreads + 1) * sizeof(int64_t);  // of shared memory

// Inclusive sums of kThreads values, one a thread; every thread's own is returned.
__device__ int64_t block_sums(int64_t value) {
  auto* sums = reinterpret_cast<int64_t*>(tt::dynamic_shared());
  sums[threadIdx.x] = value;
  __syncthreads();
  for (int distance = 1; distance < kThreads; distance *= 2) {
    const int64_t before =
        static_cast<int>(threadIdx.x) >= distance ? sums[threadIdx.x - distance] : 0;
    __syncthreads();
    sums[threadIdx.x] += before;
    __syncthreads();
  }
  return sums[threadIdx.x];
}

// One block a part of kThreads values: their inclusive sums, in place, and the part's total.
__global__ void sum_parts(int64_t* values, int64_t count, int64_t* totals) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t sum = block_sums(i < count ? values[i] : 0);
  if (i < count) values[i] = sum;
  if (threadIdx.x == kThreads - 1) totals[blockIdx.x] = sum;
}

// One block: the totals of the parts become the sums of the parts before.
__global__ void sum_totals(int64_t* totals, int64_t parts) {
  int64_t& before = reinterpret_cast<int64_t*>(tt::dynamic_shared())[kThreads];
  if (threadIdx.x == 0) before = 0;
  __syncthreads();
  for (int64_t first = 0; first < parts; first += kThreads) {
    const int64_t i = first + threadIdx.x;
    const int64_t value = i < parts ? totals[i] : 0;
    const int64_t sum = block_sums(value);
    if (i < parts) totals[i] = before + sum - value;
    __syncthreads();
    if (threadIdx.x == kThreads - 1) before += sum;
    __syncthreads();
  }
}

// One thread a value: cold_offsets become sums over all parts. Bags that overlap, by bad offsets,
// do not make more cold lookups than there are lookups.
__global__ void add_totals(int64_t* cold_offsets, int64_t count, const int64_t* totals,
                           int64_t ids) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) {
    const int64_t sum = cold_offsets[i + 1] + totals[blockIdx.x];
    cold_offsets[i + 1] = sum < ids ? sum : ids;
  }
  if (i == 0) cold_offsets[0] = 0;
}

// One thread a bag: its cold lookups go to their place, which is filled whatever the slots say now:
// bags that overlap, by bad offsets, write each other's.
template <typename Index>
__global__ void place_cold(const Index* __restrict__ indices, Bags bags, int64_t bag_count,
                           const int32_t* __restrict__ slots,
                           const int64_t* __restrict__ cold_offsets,
                           Index* __restrict__ cold_indices, int64_t* __restrict__ cold_positions) {
  const int64_t bag = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (bag >= bag_count) return;
  int64_t to = cold_offsets[bag];
  const int64_t last = cold_offsets[bag + 1];
  const auto [begin, end] = bags[bag];
  for (int64_t k = begin; k < end && to < last; ++k) {
    if (slots[k] != kCold) continue;
    cold_indices[to] = indices[k];
    cold_positions[to++] = k;
  }
  for (; to < last; ++to) cold_indices[to] = cold_positions[to] = 0;
}

// One thread a lookup: what lies behind the cold ones.
template <typename Index>
__global__ void fill_up(int64_t bag_count, int64_t ids, const int64_t* __restrict__ cold_offsets,
                        Index* __restrict__ cold_indices, int64_t* __restrict__ cold_positions) {
  const int64_t k = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (k >= ids || k < cold_offsets[bag_count]) return;
  cold_indices[k] = 0;
  cold_positions[k] = 0;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> hot_rows_split_cuda(Tensor indices,
                                                               std::optional<Tensor> offsets,
                                                               std::vector<Tensor> keys,
                                                               std::vector<Tensor> directories,
                                                               std::vector<int64_t> num_embeddings,
                                                               std::vector<int64_t> padding_idx) {
  const Shape s = check_split(indices, offsets, keys, directories, num_embeddings, padding_idx);
  OneDevice("hot_rows_split", "indices", indices)
      .with("offsets", offsets)
      .with("keys", keys)
      .with("directories", directories);
  const OnDevice device(indices);
  const Bounds bounds = Bounds::begin(device.index());
  make_contiguous(indices, offsets);
  Tensor slots = torch::stable::new_empty(indices, {s.ids}, ScalarType::Int);
  Tensor cold_indices = torch::stable::new_empty(indices, {s.ids});
  Tensor cold_offsets = torch::stable::new_zeros(indices, {s.bags() + 1}, ScalarType::Long);
  Tensor cold_positions = torch::stable::new_empty(indices, {s.ids}, ScalarType::Long);
  auto* starts = cold_offsets.mutable_data_ptr<int64_t>();
  auto* slot = slots.mutable_data_ptr<int32_t>();
  const Bags each = bags(offsets, s.ids);
  if (offsets && s.ids > 0) {
    launch(clear_slots, Grid{blocks_for(s.ids)}, kThreads, 0, device.stream(), slot, s.ids);
  }
  for (int64_t first = 0; first < s.tables && s.batch > 0; first += kTablesPerLaunch) {
    Tables tables{};
    tables.first = first;
    const int64_t count = std::min<int64_t>(kTablesPerLaunch, s.tables - first);
    for (int64_t i = 0; i < count; ++i)
      tables.table[i] = {keys[first + i].const_data_ptr<int64_t>(),
                         directories[first + i].const_data_ptr<int32_t>(),
                         directories[first + i].numel() - 1, num_embeddings[first + i],
                         padding_idx[first + i]};
    launch(look_up, Grid{blocks_for(s.batch), count}, kThreads, 0, device.stream(), tables,
           numbers(indices), each, s.batch, bounds, slot, starts);
  }
  if (s.bags() > 0) {
    const int64_t parts = blocks_for(s.bags());
    Tensor totals = torch::stable::new_empty(indices, {parts}, ScalarType::Long);
    auto* total = totals.mutable_data_ptr<int64_t>();
    launch(sum_parts, Grid{parts}, kThreads, kSumBytes, device.stream(), starts + 1, s.bags(),
           total);
    launch(sum_totals, Grid{1}, kThreads, kSumBytes, device.stream(), total, parts);
    launch(add_totals, Grid{parts}, kThreads, 0, device.stream(), starts, s.bags(), total, s.ids);
  }
  if (s.ids == 0) return {slots, cold_indices, cold_offsets, cold_positions};
  const auto finish = [&](auto zero) {
    using Index = decltype(zero);
    auto* cold = cold_indices.mutable_data_ptr<Index>();
    auto* position = cold_positions.mutable_data_ptr<int64_t>();
    launch(place_cold<Index>, Grid{blocks_for(s.bags())}, kThreads, 0, device.stream(),
           indices.const_data_ptr<Index>(), each, s.bags(), slot, starts, cold, position);
    launch(fill_up<Index>, Grid{blocks_for(s.ids)}, kThreads, 0, device.stream(), s.bags(), s.ids,
           starts, cold, position);
  };
  if (indices.scalar_type() == ScalarType::Int)
    finish(int32_t{});
  else
    finish(int64_t{});
  return {slots, cold_indices, cold_offsets, cold_positions};
}

__global__ void clear_directory(int32_t* directory, int64_t capacity) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < capacity) directory[i] = -1;
}

// One thread a slot. The order of threads decides who sits where, not what is found; of two slots
// with the same key one is not entered, and noted.
__global__ void enter_keys(int32_t* directory, int64_t mask, const int64_t* __restrict__ keys,
                           int64_t count, Bounds bounds) {
  const int64_t slot = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (slot >= count || keys[slot] < 0) return;
  for (uint64_t at = mix(keys[slot]) & mask;; at = (at + 1) & mask) {
    const int32_t there = exchange_if(directory + at, -1, static_cast<int32_t>(slot));
    if (there < 0) return;
    if (keys[there] == keys[slot]) {
      tt::note_error(bounds.record,
                     {static_cast<int64_t>(BoundsKind::kKey), slot, keys[slot], there, 0});
      return;
    }
  }
}

void hot_rows_directory_cuda(Tensor directory, Tensor keys) {
  check_directory("hot_rows_directory_", 0, keys, directory);
  OneDevice("hot_rows_directory_", "keys", keys).with("directory", directory);
  const OnDevice device(keys);
  const Bounds bounds = Bounds::begin(device.index());
  auto* entries = directory.mutable_data_ptr<int32_t>();
  launch(clear_directory, Grid{blocks_for(directory.numel())}, kThreads, 0, device.stream(),
         entries, directory.numel());
  launch(enter_keys, Grid{blocks_for(keys.numel())}, kThreads, 0, device.stream(), entries,
         directory.numel() - 1, keys.const_data_ptr<int64_t>(), keys.numel(), bounds);
}

}  // namespace
}  // namespace recsys_opt::hot_rows

STABLE_TORCH_LIBRARY_IMPL(TT_OPS_LIBRARY, TT_OPS_DEVICE, m) {
  m.impl("hot_rows_split", TORCH_BOX(&recsys_opt::hot_rows::hot_rows_split_cuda));
  m.impl("hot_rows_directory_", TORCH_BOX(&recsys_opt::hot_rows::hot_rows_directory_cuda));
}
