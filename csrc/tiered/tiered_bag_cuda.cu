// tiered_bag and the gradients of its per-sample weights on CUDA. A few lanes of a warp take a bag,
// each some columns of its rows, so that a row is read in one piece from either memory.
#include <torch/csrc/stable/library.h>

#include "dispatch.h"
#include "tiered/tiered_cuda.cuh"

namespace recsys_opt::tiered {
namespace {

// Copies tables that came by value to their place among all. One block.
__global__ void store_tables(const __grid_constant__ Tables tables, int count, DeviceTable* to) {
  for (int t = threadIdx.x; t < count; t += blockDim.x) to[t] = tables.by_value[t];
}

// Positions of the ids, where any table has a remap.
struct Positions {
  void* data;
  bool narrow;

  __device__ void set(int64_t k, int64_t position) const {
    if (data == nullptr) return;
    if (narrow)
      static_cast<int32_t*>(data)[k] = static_cast<int32_t>(position);
    else
      static_cast<int64_t*>(data)[k] = position;
  }
};

template <typename T, int kWidth>
struct alignas(kWidth * sizeof(T)) Columns {
  T at[kWidth];
};

// The position of lookup k; -1 where its id is not the table's.
__device__ int64_t position_of(const Batch& batch, const DeviceTable& table, const Bounds& bounds,
                               int64_t k, int64_t t) {
  const int64_t id = batch.ids[k];
  if (!bounds.holds(BoundsKind::kIndex, k, id, table.rows, t)) return -1;
  if (table.remap.data == nullptr) return id;
  const int64_t position = table.remap[id];
  return bounds.holds(BoundsKind::kPosition, k, position, table.rows, t) ? position : -1;
}

// The columns that one lane takes of a bag, kWidth at a time. The first lane notes positions.
template <typename T, int kWidth>
__device__ void pool_bag(const Batch& batch, const DeviceTable& table, const Bounds& bounds,
                         const Positions& positions, int64_t t, int64_t b, int lane, int lanes,
                         T* out) {
  const auto [begin, end] = batch.bags[t * batch.batch + b];
  const T* const factors = static_cast<const T*>(batch.factors);
  T* const to = out + b * batch.columns + table.column;
  for (int d = lane * kWidth; d < table.dim || d == 0; d += lanes * kWidth) {
    Columns<T, kWidth> sum{};
    for (int64_t k = begin; k < end; ++k) {
      const int64_t position = position_of(batch, table, bounds, k, t);
      if (d == 0) positions.set(k, position);
      if (position < 0 || d >= table.dim) continue;
      const auto row =
          *reinterpret_cast<const Columns<T, kWidth>*>(table.template row<T>(position) + d);
      const T factor = factors ? factors[k] : T(1);
      for (int c = 0; c < kWidth; ++c) sum.at[c] += factor * row.at[c];
    }
    if (d >= table.dim) break;
    if (table.mean && end - begin > 1)
      for (int c = 0; c < kWidth; ++c) sum.at[c] /= static_cast<T>(end - begin);
    *reinterpret_cast<Columns<T, kWidth>*>(to + d) = sum;
  }
}

// Block: some bags of the table blockIdx.y, `lanes` threads each.
template <typename T>
__global__ __launch_bounds__(kThreads) void pool(const __grid_constant__ Tables tables,
                                                 const __grid_constant__ Batch batch, int lanes,
                                                 Bounds bounds, Positions positions, T* out) {
  constexpr int kWidth = 16 / sizeof(T);
  const int64_t t = blockIdx.y;
  const int64_t b = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / lanes;
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  if (b > batch.batch) return;
  const int64_t bag = t * batch.batch + b;
  if (lane == 0 && batch.bags.offsets && bounds.mode != tt::BoundsCheck::kTrust &&
      (b < batch.batch || t + 1 == batch.tables))
    tt::check_offset(batch.bags.offsets, bag, batch.count, t, bounds.record);
  if (b == batch.batch) return;
  const DeviceTable& table = tables[t];
  if (table.vectors)
    pool_bag<T, kWidth>(batch, table, bounds, positions, t, b, lane, lanes, out);
  else
    pool_bag<T, 1>(batch, table, bounds, positions, t, b, lane, lanes, out);
}

// One thread a bag of the table blockIdx.y: the gradient of each lookup's factor.
template <typename T>
__global__ void factor_gradients(const __grid_constant__ Tables tables,
                                 const __grid_constant__ Batch batch, const T* __restrict__ grad,
                                 T* __restrict__ out) {
  const int64_t b = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (b >= batch.batch) return;
  const DeviceTable& table = tables[blockIdx.y];
  const T* const from = grad + b * batch.columns + table.column;
  const auto [begin, end] = batch.bags[int64_t{blockIdx.y} * batch.batch + b];
  for (int64_t k = begin; k < end; ++k) {
    const int64_t position = batch.ids[k];
    if (position < 0 || position >= table.rows) continue;
    const T* const row = table.template row<T>(position);
    T sum = 0;
    for (int d = 0; d < table.dim; ++d) sum += from[d] * row[d];
    out[k] = sum;
  }
}

std::tuple<Tensor, Tensor> tiered_bag_cuda(std::vector<Tensor> hot, std::vector<Tensor> cold,
                                           std::vector<Tensor> remaps, Tensor indices,
                                           std::optional<Tensor> offsets,
                                           std::optional<Tensor> per_sample_weights,
                                           std::vector<int64_t> mean) {
  const char* op = "tiered_bag";
  const TieredShape s =
      check_tiered_args(op, hot, cold, indices, offsets, per_sample_weights, mean);
  const bool remapped = check_remaps(op, remaps, s);
  OneDevice(op, "hot[0]", hot[0])
      .with("hot", hot)
      .with("remaps", remaps)
      .with("indices", indices)
      .with("offsets", offsets)
      .with("per_sample_weights", per_sample_weights);
  check_pinned(op, "cold", cold);
  const OnDevice device(hot[0]);
  const Bounds bounds = Bounds::begin(device.index());
  make_contiguous(indices, offsets, per_sample_weights);
  Tensor out = torch::stable::new_empty(hot[0], {s.batch, s.columns});
  Tensor positions = torch::stable::new_empty(hot[0], {remapped ? s.ids : 0}, s.positions());
  if (s.batch == 0) return {out, positions};
  const int64_t widest = std::max<int64_t>(1, *std::max_element(s.dims.begin(), s.dims.end()));
  dispatch_floating(op, hot[0].scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    TableList list = tables_of(hot, cold, mean, s, true);
    for (int64_t t = 0; t < s.tables; ++t)
      if (remaps[t].numel() > 0) list.all[t].remap = numbers(remaps[t]);
    const Tables tables = list.on_device(hot[0], device);
    const Batch batch = batch_of(indices, offsets, per_sample_weights, s);
    constexpr int64_t kWidth = 16 / sizeof(T);
    int lanes = 1;
    while (lanes < tt::kWarp && lanes * kWidth < widest) lanes *= 2;
    const Positions noted{remapped ? positions.mutable_data_ptr() : nullptr,
                          s.positions() == ScalarType::Int};
    // One bag more: the last offset.
    launch(pool<T>, Grid{blocks_for((s.batch + 1) * lanes), s.tables}, kThreads, 0, device.stream(),
           tables, batch, lanes, bounds, noted, out.mutable_data_ptr<T>());
  });
  return {out, positions};
}

bool begins_at_16_bytes(const void* address) {
  return reinterpret_cast<uintptr_t>(address) % 16 == 0;
}

}  // namespace

Tensor tiered_bag_factor_gradients_cuda(Tensor grad, std::vector<Tensor> hot,
                                        std::vector<Tensor> cold, Tensor positions,
                                        std::optional<Tensor> offsets, Tensor per_sample_weights) {
  const char* op = "tiered_bag_factor_gradients";
  const std::vector<int64_t> mean(hot.size(), 0);
  const TieredShape s =
      check_tiered_factor_args(op, grad, hot, cold, positions, offsets, per_sample_weights);
  OneDevice(op, "grad", grad)
      .with("hot", hot)
      .with("positions", positions)
      .with("offsets", offsets)
      .with("per_sample_weights", per_sample_weights);
  check_pinned(op, "cold", cold);
  const OnDevice device(grad);
  tt::raise_noted_errors(device.index());
  make_contiguous(grad, positions, offsets);
  Tensor out = torch::stable::new_zeros(grad, {s.ids});
  if (s.batch == 0) return out;
  dispatch_floating(op, grad.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    TableList list = tables_of(hot, cold, mean, s, false);
    const Tables tables = list.on_device(grad, device);
    const Batch batch = batch_of(positions, offsets, std::nullopt, s);
    launch(factor_gradients<T>, Grid{blocks_for(s.batch), s.tables}, kThreads, 0, device.stream(),
           tables, batch, grad.const_data_ptr<T>(), out.mutable_data_ptr<T>());
  });
  return out;
}

Tables TableList::on_device(const Tensor& like, const OnDevice& device) {
  Tables tables{};
  const auto count = static_cast<int64_t>(all.size());
  if (count <= kTablesByValue) {
    std::copy(all.begin(), all.end(), tables.by_value);
    return tables;
  }
  buffer = torch::stable::new_empty(like, {count * static_cast<int64_t>(sizeof(DeviceTable))},
                                    ScalarType::Byte);
  auto* const to = static_cast<DeviceTable*>(buffer->mutable_data_ptr());
  for (int64_t first = 0; first < count; first += kTablesByValue) {
    const int64_t part = std::min<int64_t>(kTablesByValue, count - first);
    std::copy_n(all.begin() + first, part, tables.by_value);
    launch(store_tables, Grid{1}, tt::kWarp, 0, device.stream(), tables, static_cast<int>(part),
           to + first);
  }
  tables.more = to;
  return tables;
}

TableList tables_of(const std::vector<Tensor>& hot, const std::vector<Tensor>& cold,
                    const std::vector<int64_t>& mean, const TieredShape& s, bool vectors) {
  TableList list;
  const int64_t width = 16 / tt::element_bytes(hot[0].scalar_type());
  for (int64_t t = 0; t < s.tables; ++t) {
    DeviceTable table{};
    table.hot = const_cast<void*>(hot[t].const_data_ptr());
    table.cold = const_cast<void*>(cold[t].const_data_ptr());
    table.hot_rows = s.hot_rows[t];
    table.rows = s.rows[t];
    table.dim = static_cast<int>(s.dims[t]);
    table.column = static_cast<int>(s.first_column[t]);
    table.mean = mean[t] != 0;
    table.vectors = vectors && s.dims[t] % width == 0 && s.columns % width == 0 &&
                    s.first_column[t] % width == 0 && begins_at_16_bytes(table.hot) &&
                    begins_at_16_bytes(table.cold);
    list.all.push_back(table);
  }
  return list;
}

void check_pinned([[maybe_unused]] const char* op, [[maybe_unused]] const char* name,
                  [[maybe_unused]] const std::vector<Tensor>& tensors) {
#ifndef RECSYS_OPT_SIMT
  for (size_t t = 0; t < tensors.size(); ++t) {
    if (tensors[t].numel() == 0) continue;
    const void* const address = tensors[t].const_data_ptr();
    cudaPointerAttributes found{};
    STD_CUDA_CHECK(cudaPointerGetAttributes(&found, address));
    STD_TORCH_CHECK(found.devicePointer == address, op, ": ", name, "[", t,
                    "] is in memory that the GPU cannot read; it must be pinned: .pin_memory()");
  }
#endif
}

}  // namespace recsys_opt::tiered

STABLE_TORCH_LIBRARY_IMPL(TT_OPS_LIBRARY, TT_OPS_DEVICE, m) {
  using namespace recsys_opt::tiered;
  m.impl("tiered_bag", TORCH_BOX(&tiered_bag_cuda));
  m.impl("tiered_bag_factor_gradients", TORCH_BOX(&tiered_bag_factor_gradients_cuda));
}
