// hot_rows_bag and its gradients on CUDA. Row gradients are added by atomics: rows that several
// lookups share may differ in the last bits from run to run; everything else does not.
#include <torch/csrc/stable/library.h>

#include "dispatch.h"
#include "hot_rows/launch_cuda.h"

namespace recsys_opt::hot_rows {
namespace {

template <typename T>
struct Feature {
  const T* weight;
  T* grad_weight;
  int64_t* grad_ids;
  int64_t rows, dim, column;
  bool mean;
};

template <typename T>
struct Call {
  Feature<T> feature[kTablesPerLaunch];
  int64_t first;  // of the launch, among all
  const int32_t* slots;
  Bags bags;
  const T* factors;
  int64_t batch, columns;
  Bounds bounds;

  // The slot of lookup k in this table, below 0 where it has none or one that is not the table's.
  __device__ int64_t slot(const Feature<T>& f, int64_t k) const {
    const int32_t slot = slots[k];
    return slot < 0 || bounds.holds(BoundsKind::kSlot, k, slot, f.rows, first + blockIdx.y)
               ? slot
               : kPadding;
  }
};

// 1 / the number of ids that count, for a table that averages.
template <typename T>
__device__ T bag_scale(const Call<T>& c, bool mean, int64_t begin, int64_t end) {
  if (!mean) return T(1);
  int64_t counted = 0;
  for (int64_t k = begin; k < end; ++k) counted += c.slots[k] != kPadding;
  return counted > 1 ? T(1) / static_cast<T>(counted) : T(1);
}

// Threads over [B, D] of the table blockIdx.y. Returns false beyond.
template <typename T>
__device__ bool locate(const Call<T>& c, int64_t& b, int64_t& d, int64_t& begin, int64_t& end) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t dim = c.feature[blockIdx.y].dim;
  if (i >= c.batch * dim) return false;
  b = i / dim;
  d = i % dim;
  const int64_t bag = (c.first + blockIdx.y) * c.batch + b;
  const Bags::Range range = c.bags[bag];
  begin = range.begin;
  end = range.end;
  return true;
}

// out = scale (base + sum of factor * row over the bag's hot lookups)
template <typename T>
__global__ void pool(Call<T> c, const T* __restrict__ base, T* __restrict__ out) {
  int64_t b, d, begin, end;
  if (!locate(c, b, d, begin, end)) return;
  const Feature<T>& f = c.feature[blockIdx.y];
  const int64_t at = b * c.columns + f.column + d;
  T sum = base[at];
  for (int64_t k = begin; k < end; ++k) {
    const int64_t slot = c.slot(f, k);
    if (slot >= 0) sum += (c.factors ? c.factors[k] : T(1)) * f.weight[slot * f.dim + d];
  }
  out[at] = sum * bag_scale(c, f.mean, begin, end);
}

// The ids of a table's row gradients, one a slot since no size may depend on the lookups: the slot
// where a lookup has it, else the least such slot, so that the ids name no row that was not looked
// up (0 where none was). What optimizers of sparse gradients move is then the same as on the CPU.
// First -1 everywhere, and in least[table] a number above all slots.
template <typename T>
__global__ void clear_ids(Call<T> c, int32_t* least) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const Feature<T>& f = c.feature[blockIdx.y];
  constexpr int32_t kNone = INT32_MAX;
  if (i == 0) least[c.first + blockIdx.y] = kNone;
  if (i < f.rows) f.grad_ids[i] = -1;
}

template <typename T>
__global__ void add_row_gradients(Call<T> c, const T* __restrict__ grad, int32_t* least) {
  int64_t b, d, begin, end;
  if (!locate(c, b, d, begin, end)) return;
  const Feature<T>& f = c.feature[blockIdx.y];
  const T upstream = grad[b * c.columns + f.column + d] * bag_scale(c, f.mean, begin, end);
  for (int64_t k = begin; k < end; ++k) {
    const int64_t slot = c.slot(f, k);
    if (slot < 0) continue;
    atomicAdd(f.grad_weight + slot * f.dim + d, (c.factors ? c.factors[k] : T(1)) * upstream);
    if (d > 0) continue;
    f.grad_ids[slot] = slot;
    lower_to(least + c.first + blockIdx.y, static_cast<int32_t>(slot));
  }
}

template <typename T>
__global__ void fill_ids(Call<T> c, const int32_t* __restrict__ least) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const Feature<T>& f = c.feature[blockIdx.y];
  if (i >= f.rows || f.grad_ids[i] >= 0) return;
  const int32_t slot = least[c.first + blockIdx.y];
  f.grad_ids[i] = slot < f.rows ? slot : 0;
}

template <typename T>
__global__ void scale_gradient(Call<T> c, const T* __restrict__ grad, T* __restrict__ out) {
  int64_t b, d, begin, end;
  if (!locate(c, b, d, begin, end)) return;
  const Feature<T>& f = c.feature[blockIdx.y];
  const int64_t at = b * c.columns + f.column + d;
  out[at] = grad[at] * bag_scale(c, f.mean, begin, end);
}

// One thread a bag of the table blockIdx.y: the gradient of each hot lookup's factor.
template <typename T>
__global__ void factor_gradients(Call<T> c, const T* __restrict__ grad, T* __restrict__ out) {
  const int64_t b = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (b >= c.batch) return;
  const Feature<T>& f = c.feature[blockIdx.y];
  const int64_t bag = (c.first + blockIdx.y) * c.batch + b;
  const T* from = grad + b * c.columns + f.column;
  const auto [begin, end] = c.bags[bag];
  for (int64_t k = begin; k < end; ++k) {
    const int64_t slot = c.slot(f, k);
    if (slot < 0) continue;
    T sum = 0;
    for (int64_t d = 0; d < f.dim; ++d) sum += from[d] * f.weight[slot * f.dim + d];
    out[k] = sum;
  }
}

// Calls launch(call, tables, largest dimension) for every kTablesPerLaunch tables.
template <typename T, typename Launch>
void for_each_launch(const Bounds& bounds, const BagShape& s, const std::vector<Tensor>& weights,
                     const std::vector<Tensor>* grads, const Tensor& slots,
                     const std::optional<Tensor>& offsets, const std::optional<Tensor>& factors,
                     const std::vector<int64_t>& mean, const Launch& launch) {
  for (int64_t first = 0; first < s.tables && s.batch > 0; first += kTablesPerLaunch) {
    Call<T> call{};
    call.first = first;
    call.slots = slots.const_data_ptr<int32_t>();
    call.bags = bags(offsets, s.ids);
    call.bounds = bounds;
    call.factors = factors ? factors->const_data_ptr<T>() : nullptr;
    call.batch = s.batch;
    call.columns = s.columns;
    const int64_t count = std::min<int64_t>(kTablesPerLaunch, s.tables - first);
    int64_t widest = 1;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t t = first + i;
      call.feature[i] = {weights[t].const_data_ptr<T>(),
                         grads ? (*grads)[2 * t + 1].mutable_data_ptr<T>() : nullptr,
                         grads ? (*grads)[2 * t].mutable_data_ptr<int64_t>() : nullptr,
                         s.rows[t],
                         s.dims[t],
                         s.first_column[t],
                         mean[t] != 0};
      widest = std::max(widest, s.dims[t]);
    }
    launch(call, count, widest);
  }
}

void make_contiguous(std::optional<Tensor>& tensor) {
  if (tensor) tensor = torch::stable::contiguous(*tensor);
}

Tensor hot_rows_bag_cuda(Tensor base, std::vector<Tensor> weights, Tensor slots,
                         std::optional<Tensor> offsets, std::optional<Tensor> per_sample_weights,
                         std::vector<int64_t> mean) {
  const char* op = "hot_rows_bag";
  const BagShape s = check_bag(op, base, weights, slots, offsets, per_sample_weights, mean);
  OneDevice(op, "base", base)
      .with("weights", weights)
      .with("slots", slots)
      .with("offsets", offsets)
      .with("per_sample_weights", per_sample_weights);
  const OnDevice device(base);
  const Bounds bounds = Bounds::begin(device.index());
  base = torch::stable::contiguous(base);
  make_contiguous(offsets);
  make_contiguous(per_sample_weights);
  Tensor out = torch::stable::new_empty(base, {s.batch, s.columns});
  dispatch_floating(op, base.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    for_each_launch<T>(bounds, s, weights, nullptr, slots, offsets, per_sample_weights, mean,
                       [&](const Call<T>& call, int64_t tables, int64_t widest) {
                         launch(pool<T>, Grid{blocks_for(s.batch * widest), tables}, kThreads, 0,
                                device.stream(), call, base.const_data_ptr<T>(),
                                out.mutable_data_ptr<T>());
                       });
  });
  return out;
}

// [ids of table 0, their gradients, ids of table 1, ...]
std::vector<Tensor> hot_rows_bag_row_gradients_cuda(Tensor grad, std::vector<Tensor> weights,
                                                    Tensor slots, std::optional<Tensor> offsets,
                                                    std::optional<Tensor> per_sample_weights,
                                                    std::vector<int64_t> mean) {
  const char* op = "hot_rows_bag_row_gradients";
  const BagShape s = check_bag(op, grad, weights, slots, offsets, per_sample_weights, mean);
  OneDevice(op, "grad", grad)
      .with("weights", weights)
      .with("slots", slots)
      .with("offsets", offsets)
      .with("per_sample_weights", per_sample_weights);
  const OnDevice device(grad);
  const Bounds bounds = Bounds::begin(device.index());
  grad = torch::stable::contiguous(grad);
  make_contiguous(offsets);
  make_contiguous(per_sample_weights);
  std::vector<Tensor> result;
  int64_t most_rows = 1;
  for (int64_t t = 0; t < s.tables; ++t) {
    result.push_back(torch::stable::new_empty(grad, {s.rows[t]}, ScalarType::Long));
    result.push_back(torch::stable::new_zeros(grad, {s.rows[t], s.dims[t]}));
    most_rows = std::max(most_rows, s.rows[t]);
  }
  if (s.batch == 0) {
    for (int64_t t = 0; t < s.tables; ++t) torch::stable::zero_(result[2 * t]);
    return result;
  }
  Tensor least = torch::stable::new_empty(grad, {s.tables}, ScalarType::Int);
  auto* lowest = least.mutable_data_ptr<int32_t>();
  dispatch_floating(op, grad.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    for_each_launch<T>(bounds, s, weights, &result, slots, offsets, per_sample_weights, mean,
                       [&](const Call<T>& call, int64_t tables, int64_t widest) {
                         const Grid of_slots{blocks_for(most_rows), tables};
                         launch(clear_ids<T>, of_slots, kThreads, 0, device.stream(), call, lowest);
                         launch(add_row_gradients<T>, Grid{blocks_for(s.batch * widest), tables},
                                kThreads, 0, device.stream(), call, grad.const_data_ptr<T>(),
                                lowest);
                         launch(fill_ids<T>, of_slots, kThreads, 0, device.stream(), call, lowest);
                       });
  });
  return result;
}

Tensor hot_rows_bag_base_gradient_cuda(Tensor grad, std::vector<Tensor> weights, Tensor slots,
                                       std::optional<Tensor> offsets, std::vector<int64_t> mean) {
  const char* op = "hot_rows_bag_base_gradient";
  const BagShape s = check_bag(op, grad, weights, slots, offsets, std::nullopt, mean);
  OneDevice(op, "grad", grad)
      .with("weights", weights)
      .with("slots", slots)
      .with("offsets", offsets);
  const OnDevice device(grad);
  const Bounds bounds = Bounds::begin(device.index());
  grad = torch::stable::contiguous(grad);
  make_contiguous(offsets);
  Tensor out = torch::stable::new_empty(grad, {s.batch, s.columns});
  dispatch_floating(op, grad.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    for_each_launch<T>(bounds, s, weights, nullptr, slots, offsets, std::nullopt, mean,
                       [&](const Call<T>& call, int64_t tables, int64_t widest) {
                         launch(scale_gradient<T>, Grid{blocks_for(s.batch * widest), tables},
                                kThreads, 0, device.stream(), call, grad.const_data_ptr<T>(),
                                out.mutable_data_ptr<T>());
                       });
  });
  return out;
}

Tensor hot_rows_bag_factor_gradients_cuda(Tensor grad, std::vector<Tensor> weights, Tensor slots,
                                          std::optional<Tensor> offsets) {
  const char* op = "hot_rows_bag_factor_gradients";
  const std::vector<int64_t> mean(weights.size(), 0);
  const BagShape s = check_bag(op, grad, weights, slots, offsets, std::nullopt, mean);
  OneDevice(op, "grad", grad)
      .with("weights", weights)
      .with("slots", slots)
      .with("offsets", offsets);
  const OnDevice device(grad);
  const Bounds bounds = Bounds::begin(device.index());
  grad = torch::stable::contiguous(grad);
  make_contiguous(offsets);
  Tensor out = torch::stable::new_zeros(grad, {s.ids});
  dispatch_floating(op, grad.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    for_each_launch<T>(bounds, s, weights, nullptr, slots, offsets, std::nullopt, mean,
                       [&](const Call<T>& call, int64_t tables, int64_t) {
                         launch(factor_gradients<T>, Grid{blocks_for(s.batch), tables}, kThreads, 0,
                                device.stream(), call, grad.const_data_ptr<T>(),
                                out.mutable_data_ptr<T>());
                       });
  });
  return out;
}

}  // namespace
}  // namespace recsys_opt::hot_rows

STABLE_TORCH_LIBRARY_IMPL(TT_OPS_LIBRARY, TT_OPS_DEVICE, m) {
  using namespace recsys_opt::hot_rows;
  m.impl("hot_rows_bag", TORCH_BOX(&hot_rows_bag_cuda));
  m.impl("hot_rows_bag_row_gradients", TORCH_BOX(&hot_rows_bag_row_gradients_cuda));
  m.impl("hot_rows_bag_base_gradient", TORCH_BOX(&hot_rows_bag_base_gradient_cuda));
  m.impl("hot_rows_bag_factor_gradients", TORCH_BOX(&hot_rows_bag_factor_gradients_cuda));
}
