// hot_rows_bag and its gradients on the CPU.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>

#include "as_contiguous.h"
#include "dispatch.h"
#include "hot_rows/hot_rows.h"
#include "hot_rows/offsets_cpu.h"
#include "simd.h"

namespace recsys_opt::hot_rows {
namespace {

constexpr int64_t kBagsPerTask = 256;
constexpr int64_t kRowsPerTask = 2048;
constexpr int64_t kAhead = 8;  // rows asked for ahead

// One feature's part of a call.
template <typename T>
struct Feature {
  const T* weight;
  const int32_t* slots;
  const int64_t* offsets;  // of its first bag; null: bag b is lookup first + b
  const T* factors;        // null: all 1
  int64_t first, rows, dim, column, columns;
  bool mean;

  ALWAYS_INLINE int64_t start(int64_t bag) const { return offsets ? offsets[bag] : first + bag; }

  // 1 / the number of ids that count, for a table that averages.
  ALWAYS_INLINE T scale(int64_t bag) const {
    if (!mean) return T(1);
    int64_t counted = 0;
    for (int64_t k = start(bag); k < start(bag + 1); ++k) counted += slots[k] != kPadding;
    return counted > 1 ? T(1) / static_cast<T>(counted) : T(1);
  }
};

template <typename T>
ALWAYS_INLINE void pool_body(const Feature<T>& f, int64_t begin, int64_t end, int64_t last,
                             const T* base, T* out) {
  for (int64_t b = begin; b < end; ++b) {
    T* to = out + b * f.columns + f.column;
    const T* from = base + b * f.columns + f.column;
    for (int64_t d = 0; d < f.dim; ++d) to[d] = from[d];
    for (int64_t k = f.start(b); k < f.start(b + 1); ++k) {
      if (k + kAhead < last && f.slots[k + kAhead] >= 0)
        __builtin_prefetch(f.weight + f.slots[k + kAhead] * f.dim);
      if (f.slots[k] < 0) continue;
      const T* row = f.weight + f.slots[k] * f.dim;
      const T factor = f.factors ? f.factors[k] : T(1);
      for (int64_t d = 0; d < f.dim; ++d) to[d] += factor * row[d];
    }
    if (!f.mean) continue;
    const T scale = f.scale(b);
    for (int64_t d = 0; d < f.dim; ++d) to[d] *= scale;
  }
}
SIMD_CLONES void pool(const Feature<float>& f, int64_t begin, int64_t end, int64_t last,
                      const float* base, float* out) {
  pool_body(f, begin, end, last, base, out);
}
SIMD_CLONES void pool(const Feature<double>& f, int64_t begin, int64_t end, int64_t last,
                      const double* base, double* out) {
  pool_body(f, begin, end, last, base, out);
}

// The gradients of the rows whose number in `order` (by first lookup) is in [low, high), summed in
// the order of the lookups.
template <typename T>
ALWAYS_INLINE void add_gradients_body(const Feature<T>& f, int64_t batch, const int32_t* order,
                                      int64_t low, int64_t high, const T* grad, T* rows) {
  std::fill_n(rows + low * f.dim, (high - low) * f.dim, T(0));
  for (int64_t b = 0; b < batch; ++b) {
    const T* from = grad + b * f.columns + f.column;
    const T scale = f.scale(b);
    for (int64_t k = f.start(b); k < f.start(b + 1); ++k) {
      if (f.slots[k] < 0) continue;
      const int64_t number = order[f.slots[k]];
      if (number < low || number >= high) continue;
      const T factor = f.factors ? f.factors[k] : scale;
      T* to = rows + number * f.dim;
      for (int64_t d = 0; d < f.dim; ++d) to[d] += factor * from[d];
    }
  }
}
SIMD_CLONES void add_gradients(const Feature<float>& f, int64_t batch, const int32_t* order,
                               int64_t low, int64_t high, const float* grad, float* rows) {
  add_gradients_body(f, batch, order, low, high, grad, rows);
}
SIMD_CLONES void add_gradients(const Feature<double>& f, int64_t batch, const int32_t* order,
                               int64_t low, int64_t high, const double* grad, double* rows) {
  add_gradients_body(f, batch, order, low, high, grad, rows);
}

template <typename T>
std::vector<Feature<T>> features(const BagShape& s, const std::vector<Tensor>& weights,
                                 const Tensor& slots, const int64_t* bounds,
                                 const std::optional<Tensor>& factors,
                                 const std::vector<int64_t>& mean) {
  std::vector<Feature<T>> result;
  for (int64_t t = 0; t < s.tables; ++t)
    result.push_back({weights[t].const_data_ptr<T>(), slots.const_data_ptr<int32_t>(),
                      bounds ? bounds + t * s.batch : nullptr,
                      factors ? factors->const_data_ptr<T>() : nullptr, t * s.batch, s.rows[t],
                      s.dims[t], s.first_column[t], s.columns, mean[t] != 0});
  for (int64_t t = 0; t < s.tables; ++t)
    for (int64_t k = result[t].start(0); k < result[t].start(s.batch); ++k)
      STD_TORCH_CHECK(result[t].slots[k] < s.rows[t], "hot_rows_bag: slots[", k,
                      "] = ", result[t].slots[k], " is outside the ", s.rows[t], " slots of table ",
                      t);
  return result;
}

// Contiguous copies where needed, and the offsets' values checked.
const int64_t* prepare(const char* op, const Shape& s, std::optional<Tensor>& offsets,
                       std::optional<Tensor>& factors) {
  if (factors) factors = as_contiguous(*factors);
  if (!offsets) return nullptr;
  offsets = as_contiguous(*offsets);
  const int64_t* bounds = offsets->const_data_ptr<int64_t>();
  check_offsets(op, bounds, s);
  return bounds;
}

Tensor hot_rows_bag_cpu(Tensor base, std::vector<Tensor> weights, Tensor slots,
                        std::optional<Tensor> offsets, std::optional<Tensor> per_sample_weights,
                        std::vector<int64_t> mean) {
  const BagShape s =
      check_bag("hot_rows_bag", base, weights, slots, offsets, per_sample_weights, mean);
  const int64_t* bounds = prepare("hot_rows_bag", s, offsets, per_sample_weights);
  base = as_contiguous(base);
  Tensor out = torch::stable::new_empty(base, {s.batch, s.columns});
  dispatch_floating("hot_rows_bag", base.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const auto all = features<T>(s, weights, slots, bounds, per_sample_weights, mean);
    const T* from = base.const_data_ptr<T>();
    T* to = out.mutable_data_ptr<T>();
    torch::stable::parallel_for(0, s.batch, kBagsPerTask, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; block += kBagsPerTask)
        for (const Feature<T>& f : all) {
          const int64_t stop = std::min(block + kBagsPerTask, end);
          pool(f, block, stop, f.start(stop), from, to);
        }
    });
  });
  return out;
}

// The rows of one table that were looked up, by their first lookup, and their gradients.
template <typename T>
std::pair<Tensor, Tensor> row_gradients(const Feature<T>& f, int64_t batch, const Tensor& grad) {
  std::vector<int32_t> order(f.rows, -1);
  std::vector<int64_t> ids;
  for (int64_t k = f.start(0); k < f.start(batch); ++k) {
    const int32_t slot = f.slots[k];
    if (slot < 0 || order[slot] >= 0) continue;
    order[slot] = static_cast<int32_t>(ids.size());
    ids.push_back(slot);
  }
  const auto count = static_cast<int64_t>(ids.size());
  Tensor found = torch::stable::new_empty(grad, {count}, ScalarType::Long);
  Tensor rows = torch::stable::new_empty(grad, {count, f.dim});
  std::copy(ids.begin(), ids.end(), found.mutable_data_ptr<int64_t>());
  const T* from = grad.const_data_ptr<T>();
  T* to = rows.mutable_data_ptr<T>();
  torch::stable::parallel_for(0, count, kRowsPerTask, [&](int64_t low, int64_t high) {
    add_gradients(f, batch, order.data(), low, high, from, to);
  });
  return {found, rows};
}

// [ids of table 0, their gradients, ids of table 1, ...]; sizes depend on the ids.
std::vector<Tensor> hot_rows_bag_row_gradients_cpu(Tensor grad, std::vector<Tensor> weights,
                                                   Tensor slots, std::optional<Tensor> offsets,
                                                   std::optional<Tensor> per_sample_weights,
                                                   std::vector<int64_t> mean) {
  const char* op = "hot_rows_bag_row_gradients";
  const BagShape s = check_bag(op, grad, weights, slots, offsets, per_sample_weights, mean);
  const int64_t* bounds = prepare(op, s, offsets, per_sample_weights);
  grad = as_contiguous(grad);
  std::vector<Tensor> result;
  dispatch_floating(op, grad.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    for (const auto& f : features<T>(s, weights, slots, bounds, per_sample_weights, mean)) {
      auto [ids, rows] = row_gradients(f, s.batch, grad);
      result.push_back(ids);
      result.push_back(rows);
    }
  });
  return result;
}

// d out / d base: the gradient, divided by the bags' sizes where a table averages.
Tensor hot_rows_bag_base_gradient_cpu(Tensor grad, std::vector<Tensor> weights, Tensor slots,
                                      std::optional<Tensor> offsets, std::vector<int64_t> mean) {
  const char* op = "hot_rows_bag_base_gradient";
  std::optional<Tensor> none;
  const BagShape s = check_bag(op, grad, weights, slots, offsets, none, mean);
  const int64_t* bounds = prepare(op, s, offsets, none);
  grad = as_contiguous(grad);
  Tensor out = torch::stable::new_empty(grad, {s.batch, s.columns});
  dispatch_floating(op, grad.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const T* from = grad.const_data_ptr<T>();
    T* to = out.mutable_data_ptr<T>();
    for (const auto& f : features<T>(s, weights, slots, bounds, none, mean))
      torch::stable::parallel_for(0, s.batch, kBagsPerTask, [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b) {
          const T scale = f.scale(b);
          const int64_t at = b * f.columns + f.column;
          for (int64_t d = 0; d < f.dim; ++d) to[at + d] = from[at + d] * scale;
        }
      });
  });
  return out;
}

// d out / d per_sample_weights[k] = the bag's gradient . the hot row; 0 for a cold id.
Tensor hot_rows_bag_factor_gradients_cpu(Tensor grad, std::vector<Tensor> weights, Tensor slots,
                                         std::optional<Tensor> offsets) {
  const char* op = "hot_rows_bag_factor_gradients";
  const std::vector<int64_t> mean(weights.size(), 0);
  std::optional<Tensor> none;
  const BagShape s = check_bag(op, grad, weights, slots, offsets, none, mean);
  const int64_t* bounds = prepare(op, s, offsets, none);
  grad = as_contiguous(grad);
  Tensor out = torch::stable::new_zeros(grad, {s.ids});
  dispatch_floating(op, grad.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const T* from = grad.const_data_ptr<T>();
    T* to = out.mutable_data_ptr<T>();
    for (const auto& f : features<T>(s, weights, slots, bounds, none, mean))
      torch::stable::parallel_for(0, s.batch, kBagsPerTask, [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b)
          for (int64_t k = f.start(b); k < f.start(b + 1); ++k) {
            if (f.slots[k] < 0) continue;
            T sum = 0;
            for (int64_t d = 0; d < f.dim; ++d)
              sum += from[b * f.columns + f.column + d] * f.weight[f.slots[k] * f.dim + d];
            to[k] = sum;
          }
      });
  });
  return out;
}

}  // namespace
}  // namespace recsys_opt::hot_rows

STABLE_TORCH_LIBRARY_IMPL(recsys_opt, CPU, m) {
  using namespace recsys_opt::hot_rows;
  m.impl("hot_rows_bag", TORCH_BOX(&hot_rows_bag_cpu));
  m.impl("hot_rows_bag_row_gradients", TORCH_BOX(&hot_rows_bag_row_gradients_cpu));
  m.impl("hot_rows_bag_base_gradient", TORCH_BOX(&hot_rows_bag_base_gradient_cpu));
  m.impl("hot_rows_bag_factor_gradients", TORCH_BOX(&hot_rows_bag_factor_gradients_cpu));
}
