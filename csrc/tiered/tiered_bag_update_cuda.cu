// The backward pass of tiered_bag on CUDA that updates the looked-up rows in place of returning
// their gradients. Lookups are sorted by (table, position); a tile of the sorted ones sums the
// gradients of each row that it has whole, in order, and updates it. Of a row that goes over tiles
// each tile leaves its part, and one block adds them in order and updates it. So every row is
// updated once, by one block, and results are the same to the bit in every run.
#include <torch/csrc/stable/library.h>

#include <bit>

#include "dispatch.h"
#include "tiered/tiered_cuda.cuh"
#include "tt/tt_rule_cuda.cuh"
#include "tt/tt_sort_cuda.cuh"

namespace recsys_opt::tiered {
namespace {

constexpr int64_t kMostTile = 128;           // sorted lookups of a block
constexpr int64_t kTileBytes = 32 << 10;     // of shared memory for a tile's sums
constexpr int kFromBefore = 0, kGoesOn = 1;  // a tile's parts of rows that go over tiles

// What the kernels of an update share.
struct Update {
  const int64_t* keys;  // [N] sorted; of lookups that count for nothing: `none`
  const int* lookups;   // [N] in that order
  const int* bag;       // [N] of each lookup
  int64_t count, none;
  int tile, width;  // lookups of a tile; numbers that it has room for in each row's sum
  const void* grad;
  void* parts;  // [tiles, 2, width]
  tt::Algorithm algorithm;
  const double* numbers;
};

// The bag that lookup k is in, or -1.
__device__ int64_t bag_of(const Batch& batch, int64_t k) {
  const int64_t bags = batch.tables * batch.batch;
  if (batch.bags.offsets == nullptr) return k < bags ? k : -1;
  int64_t low = 0, high = bags;  // offsets[low] <= k < offsets[high], where they are sorted
  while (low + 1 < high) {
    const int64_t middle = (low + high) / 2;
    (batch.bags.offsets[middle] <= k ? low : high) = middle;
  }
  const auto [begin, end] = batch.bags[low];
  return begin <= k && k < end ? low : -1;
}

// Thread k: the key and the bag of lookup k. Bad ids were noted in the forward pass.
__global__ void make_keys(const __grid_constant__ Tables tables,
                          const __grid_constant__ Batch batch, int64_t none, int64_t* keys,
                          int* lookups, int* bags) {
  const int64_t k = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (k >= batch.count) return;
  const int64_t bag = bag_of(batch, k);
  int64_t key = none;
  if (bag >= 0) {
    const DeviceTable& table = tables[bag / batch.batch];
    const int64_t position = batch.ids[k];
    if (position >= 0 && position < table.rows) key = tables[table.owner].key_base + position;
  }
  keys[k] = key;
  lookups[k] = static_cast<int>(k);
  bags[k] = static_cast<int>(bag);
}

__global__ void count_kernel(const __grid_constant__ tt::Batch batch,
                             const __grid_constant__ tt::Sort sort, int pass) {
  tt::count_digits(batch, sort, 0, 0, pass, blockIdx.x,
                   reinterpret_cast<int*>(tt::dynamic_shared()));
}
__global__ void add_up_kernel(const __grid_constant__ tt::Sort sort) {
  tt::add_up_blocks(sort, 0, blockIdx.x, reinterpret_cast<int*>(tt::dynamic_shared()));
}
__global__ void scatter_kernel(const __grid_constant__ tt::Batch batch,
                               const __grid_constant__ tt::Sort sort, int pass) {
  tt::scatter_tile(batch, sort, 0, 0, pass, blockIdx.x,
                   reinterpret_cast<int*>(tt::dynamic_shared()));
}

// The first feature of the table that the sorted lookup i is in.
__device__ const DeviceTable& table_at(const Tables& tables, const Batch& batch, const Update& u,
                                       int64_t i) {
  return tables[tables[u.bag[u.lookups[i]] / batch.batch].owner];
}

// Column d of the gradient that the sorted lookup i gives its row.
template <typename T>
__device__ T gradient_at(const Tables& tables, const Batch& batch, const Update& u, int64_t i,
                         int d) {
  const int k = u.lookups[i];
  const int64_t bag = u.bag[k];
  const DeviceTable& table = tables[bag / batch.batch];
  T factor = 1;
  if (batch.factors) {
    factor = static_cast<const T*>(batch.factors)[k];
  } else if (table.mean) {
    const auto [begin, end] = batch.bags[bag];
    if (end - begin > 1) factor = T(1) / static_cast<T>(end - begin);
  }
  const T* const grad = static_cast<const T*>(u.grad);
  return factor * grad[bag % batch.batch * batch.columns + table.column + d];
}

// Row-wise Adagrad's rate of a row, whose state moves.
template <typename T>
__device__ T move_row_state(const tt::DeviceRule<T>& rule, const DeviceTable& table,
                            int64_t position, const T* sums) {
  const T* const row = table.template row<T>(position);
  T squares = 0;
  for (int d = 0; d < table.dim; ++d) {
    const T g = sums[d] + rule.weight_decay * row[d];
    squares += g * g;
  }
  T* const state = table.template state<T>(0, position, 1);
  *state += squares / static_cast<T>(table.dim);
  return rule.lr / (sqrt(*state) + rule.eps);
}

template <typename T>
__device__ void move_column(const Update& u, const tt::DeviceRule<T>& rule,
                            const DeviceTable& table, int64_t position, int d, T sum, T rate) {
  T* const weight = table.template row<T>(position) + d;
  const bool elementwise =
      u.algorithm == tt::Algorithm::kAdagrad || u.algorithm == tt::Algorithm::kAdam;
  T* const first = elementwise ? table.template state<T>(0, position, table.dim) + d : nullptr;
  T* const second = u.algorithm == tt::Algorithm::kAdam
                        ? table.template state<T>(1, position, table.dim) + d
                        : nullptr;
  const T g = sum + rule.weight_decay * *weight;
  *weight -= rule.change(u.algorithm, g, first, second, rate);
}

// A row's lookups in a tile begin at i. Whether there are any before the tile, and behind it.
struct Reach {
  bool before, on;
  __device__ bool whole() const { return !before && !on; }
};
__device__ Reach reach_at(const Update& u, int64_t i, int64_t begin, int64_t end) {
  const int64_t key = u.keys[i];
  return {i == begin && begin > 0 && u.keys[begin - 1] == key, end < u.count && u.keys[end] == key};
}
__device__ bool begins_row(const Update& u, int64_t i, int64_t begin) {
  return u.keys[i] != u.none && (i == begin || u.keys[i - 1] != u.keys[i]);
}

// Block: a tile. Shared: the rates of row-wise Adagrad, then a row of sums for each lookup at which
// a row's lookups begin; one number more each, so that threads of different rows use all banks.
template <typename T>
__global__ __launch_bounds__(kThreads) void update_tiles(const __grid_constant__ Tables tables,
                                                         const __grid_constant__ Batch batch,
                                                         const __grid_constant__ Update u) {
  T* const rates = reinterpret_cast<T*>(tt::dynamic_shared());
  T* const sums = rates + u.tile;
  const int stride = u.width + 1;
  const int64_t begin = int64_t{blockIdx.x} * u.tile;
  const int64_t end = begin + u.tile < u.count ? begin + u.tile : u.count;
  const auto rule = tt::DeviceRule<T>::of(u.algorithm, u.numbers);
  for (int x = threadIdx.x; x < u.tile * u.width; x += blockDim.x) {
    const int64_t i = begin + x / u.width;
    const int d = x % u.width;
    if (i >= end || !begins_row(u, i, begin)) continue;
    if (d >= table_at(tables, batch, u, i).dim) continue;
    T sum = 0;
    for (int64_t j = i; j < end && u.keys[j] == u.keys[i]; ++j)
      sum += gradient_at<T>(tables, batch, u, j, d);
    const Reach reach = reach_at(u, i, begin, end);
    if (reach.whole()) {
      sums[(i - begin) * stride + d] = sum;
    } else {
      const int64_t part = 2 * int64_t{blockIdx.x} + (reach.before ? kFromBefore : kGoesOn);
      static_cast<T*>(u.parts)[part * u.width + d] = sum;
    }
  }
  __syncthreads();
  const auto is_mine = [&](int64_t i) {
    return i < end && begins_row(u, i, begin) && reach_at(u, i, begin, end).whole();
  };
  if (u.algorithm == tt::Algorithm::kRowwiseAdagrad) {
    for (int x = threadIdx.x; x < u.tile; x += blockDim.x) {
      if (!is_mine(begin + x)) continue;
      const DeviceTable& table = table_at(tables, batch, u, begin + x);
      rates[x] = move_row_state(rule, table, u.keys[begin + x] - table.key_base, sums + x * stride);
    }
    __syncthreads();
  }
  for (int x = threadIdx.x; x < u.tile * u.width; x += blockDim.x) {
    const int row = x / u.width, d = x % u.width;
    if (!is_mine(begin + row)) continue;
    const DeviceTable& table = table_at(tables, batch, u, begin + row);
    if (d >= table.dim) continue;
    move_column(u, rule, table, u.keys[begin + row] - table.key_base, d, sums[row * stride + d],
                u.algorithm == tt::Algorithm::kRowwiseAdagrad ? rates[row] : T(0));
  }
}

// Block: the row whose lookups begin in a tile and go on behind it, if there is one.
template <typename T>
__global__ __launch_bounds__(kThreads) void update_over_tiles(const __grid_constant__ Tables tables,
                                                              const __grid_constant__ Batch batch,
                                                              const __grid_constant__ Update u) {
  T* const rate = reinterpret_cast<T*>(tt::dynamic_shared());
  T* const sums = rate + 1;
  const int64_t begin = int64_t{blockIdx.x} * u.tile, end = begin + u.tile;
  if (end >= u.count) return;
  const int64_t key = u.keys[end - 1];
  if (key == u.none || u.keys[end] != key) return;
  if (begin > 0 && u.keys[begin - 1] == key) return;  // it begins in an earlier tile
  const DeviceTable& table = table_at(tables, batch, u, end - 1);
  const T* const parts = static_cast<const T*>(u.parts);
  for (int d = threadIdx.x; d < table.dim; d += blockDim.x) {
    T sum = parts[(2 * int64_t{blockIdx.x} + kGoesOn) * u.width + d];
    int64_t tile = int64_t{blockIdx.x} + 1;
    for (bool on = true; on; ++tile) {
      sum += parts[(2 * tile + kFromBefore) * u.width + d];
      const int64_t behind = (tile + 1) * u.tile;
      on = behind < u.count && u.keys[behind] == key;
    }
    sums[d] = sum;
  }
  __syncthreads();
  const auto rule = tt::DeviceRule<T>::of(u.algorithm, u.numbers);
  const int64_t position = key - table.key_base;
  if (u.algorithm == tt::Algorithm::kRowwiseAdagrad && threadIdx.x == 0)
    *rate = move_row_state(rule, table, position, sums);
  __syncthreads();
  for (int d = threadIdx.x; d < table.dim; d += blockDim.x)
    move_column(u, rule, table, position, d, sums[d],
                u.algorithm == tt::Algorithm::kRowwiseAdagrad ? *rate : T(0));
}

// Sorts the lookups by their keys, which are at most `none`.
struct SortMemory {
  tt::Workspace memory;
  tt::Batch batch{};
  tt::Sort sort{};
  int* bags = nullptr;
  void* parts = nullptr;

  void lay_out(int64_t count, int64_t parts_bytes, const Tensor& like) {
    const int64_t blocks = (count + tt::kTile - 1) / tt::kTile;
    const auto take = [&] {
      tt::Order& order = batch.order[0];
      order.sorted_keys = memory.take<int64_t>(count);
      order.spare_keys = memory.take<int64_t>(count);
      order.sorted = memory.take<int>(count);
      order.spare = memory.take<int>(count);
      bags = memory.take<int>(count);
      parts = memory.take<unsigned char>(parts_bytes);
      sort.counts = memory.take<int>(tt::kDigits * blocks);
      sort.totals = memory.take<int>(tt::kDigits);
    };
    take();
    memory.allocate(like);
    take();
    sort.count = count;
    sort.blocks = blocks;
    batch.order[0].used = true;
  }
};

template <typename T>
void update_tables(const Tables& tables, const Batch& batch, SortMemory& sorted, Update& u,
                   const OnDevice& device) {
  const tt::Order& order = sorted.batch.order[0];
  const int passes =
      (std::bit_width(static_cast<uint64_t>(u.none)) + tt::kRadixBits - 1) / tt::kRadixBits;
  sorted.sort.passes[0] = passes;
  const bool swapped = passes % 2;  // so that the last pass ends in `sorted`
  launch(make_keys, Grid{blocks_for(batch.count)}, kThreads, 0, device.stream(), tables, batch,
         u.none, swapped ? order.spare_keys : order.sorted_keys,
         swapped ? order.spare : order.sorted, sorted.bags);
  const int64_t bytes = tt::sort_shared_bytes(tt::kSortThreads);
  for (int pass = 0; pass < passes; ++pass) {
    launch(count_kernel, Grid{sorted.sort.blocks}, tt::kSortThreads, bytes, device.stream(),
           sorted.batch, sorted.sort, pass);
    launch(add_up_kernel, Grid{tt::kDigits}, tt::kSortThreads, bytes, device.stream(), sorted.sort);
    launch(scatter_kernel, Grid{sorted.sort.blocks}, tt::kSortThreads, bytes, device.stream(),
           sorted.batch, sorted.sort, pass);
  }
  u.keys = order.sorted_keys;
  u.lookups = order.sorted;
  u.bag = sorted.bags;
  u.parts = sorted.parts;
  const int64_t tiles = (u.count + u.tile - 1) / u.tile;
  const auto element = static_cast<int64_t>(sizeof(T));
  launch(update_tiles<T>, Grid{tiles}, kThreads,
         (int64_t{u.tile} + int64_t{u.tile} * (u.width + 1)) * element, device.stream(), tables,
         batch, u);
  launch(update_over_tiles<T>, Grid{tiles - 1}, kThreads, (1 + int64_t{u.width}) * element,
         device.stream(), tables, batch, u);
}

Tensor tiered_bag_backward_update_cuda(Tensor grad, std::vector<Tensor> hot,
                                       std::vector<Tensor> cold, std::vector<Tensor> hot_states,
                                       std::vector<Tensor> cold_states, Tensor positions,
                                       std::optional<Tensor> offsets,
                                       std::optional<Tensor> per_sample_weights,
                                       std::vector<int64_t> mean, bool factors_grad,
                                       int64_t algorithm, Tensor hyperparameters) {
  const char* op = "tiered_bag_backward_update";
  const TieredUpdateArgs args =
      check_tiered_update_args(op, grad, hot, cold, hot_states, cold_states, positions, offsets,
                               per_sample_weights, mean, factors_grad, algorithm, hyperparameters);
  const TieredShape& s = args.shape;
  STD_TORCH_CHECK(s.ids <= std::numeric_limits<int32_t>::max() &&
                      s.tables * s.batch <= std::numeric_limits<int32_t>::max(),
                  op, ": ", s.ids, " ids in ", s.tables * s.batch,
                  " bags; a call has less than 2^31 of either: use smaller batches");
  OneDevice(op, "grad", grad)
      .with("hot", hot)
      .with("hot_states", hot_states)
      .with("positions", positions)
      .with("offsets", offsets)
      .with("per_sample_weights", per_sample_weights)
      .with("hyperparameters", hyperparameters);
  check_pinned(op, "cold", cold);
  check_pinned(op, "cold_states", cold_states);
  const OnDevice device(grad);
  tt::raise_noted_errors(device.index());
  make_contiguous(grad, positions, offsets, per_sample_weights);
  // The factors' gradients are about the rows as they were.
  Tensor result = factors_grad ? tiered_bag_factor_gradients_cuda(grad, hot, cold, positions,
                                                                  offsets, *per_sample_weights)
                               : torch::stable::new_empty(grad, {0});
  if (s.batch == 0 || s.ids == 0) return result;
  TableList list = tables_of(hot, cold, mean, s, false);
  int64_t keys = 0;
  for (int64_t t = 0; t < s.tables; ++t) {
    DeviceTable& table = list.all[t];
    table.owner = static_cast<int>(args.owner[t]);
    table.key_base = keys;
    if (args.owner[t] == t) keys += s.rows[t];
    for (int64_t k = 0; k < args.states_per_table; ++k) {
      const int64_t at = t * args.states_per_table + k;
      table.hot_state[k] = hot_states[at].mutable_data_ptr();
      table.cold_state[k] = cold_states[at].mutable_data_ptr();
    }
  }
  const Tables tables = list.on_device(grad, device);
  const Batch batch = batch_of(positions, offsets, per_sample_weights, s);
  dispatch_floating(op, grad.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const int64_t width = std::max<int64_t>(1, *std::max_element(s.dims.begin(), s.dims.end()));
    int64_t tile = kMostTile;
    while (tile > 1 && tile * (width + 2) * static_cast<int64_t>(sizeof(T)) > kTileBytes) tile /= 2;
    Update u{};
    u.count = s.ids;
    u.none = keys;
    u.tile = static_cast<int>(tile);
    u.width = static_cast<int>(width);
    u.grad = grad.const_data_ptr();
    u.algorithm = args.algorithm;
    u.numbers = hyperparameters.const_data_ptr<double>();
    SortMemory sorted;
    const int64_t tiles = (s.ids + tile - 1) / tile;
    sorted.lay_out(s.ids, 2 * tiles * width * static_cast<int64_t>(sizeof(T)), grad);
    update_tables<T>(tables, batch, sorted, u, device);
  });
  return result;
}

}  // namespace
}  // namespace recsys_opt::tiered

STABLE_TORCH_LIBRARY_IMPL(TT_OPS_LIBRARY, TT_OPS_DEVICE, m) {
  m.impl("tiered_bag_backward_update",
         TORCH_BOX(&recsys_opt::tiered::tiered_bag_backward_update_cuda));
}
