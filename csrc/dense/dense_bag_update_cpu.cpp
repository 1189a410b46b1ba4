#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <type_traits>

#include "as_contiguous.h"
#include "dense/dense_bag_update.h"
#include "dense/id_slots.h"
#include "dispatch.h"
#include "simd.h"
#include "tt/tt_array.h"
#include "tt/tt_update.h"

namespace recsys_opt {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using tt::Array;

constexpr int64_t kPrefetch = 16;       // rows asked for ahead
constexpr int64_t kPartLookups = 4096;  // fewer are no work to share
constexpr int64_t kPartsPerThread = 4;  // of one table's ids, where it is larger than the others

// The features of one table, and the share of its ids that a task takes.
struct Part {
  int64_t table;  // the first of its features
  std::vector<int64_t> features;
  int64_t lookups, index, count;
};

template <typename T, typename Id>
struct Batch {
  const DenseBagShape& shape;
  const Id* ids;
  const int64_t* offsets;  // null: one id per bag
  const T* factors;        // null: all 1
  const std::vector<int64_t>& mean;
  const T* grad;  // [B, columns]

  int64_t start(int64_t bag) const { return offsets ? offsets[bag] : bag; }
};

template <typename T>
ALWAYS_INLINE void copy_body(const T* __restrict from, T factor, int64_t dim, T* __restrict to) {
  for (int64_t d = 0; d < dim; ++d) to[d] = factor * from[d];
}
template <typename T>
ALWAYS_INLINE void add_body(const T* __restrict from, T factor, int64_t dim, T* __restrict to) {
  for (int64_t d = 0; d < dim; ++d) to[d] += factor * from[d];
}

// Sums the gradients of each id of a part, in the order of positions, into row `slot` of `sums`.
template <typename T, typename Id>
ALWAYS_INLINE void sum_gradients_body(const Batch<T, Id>& batch, const Part& part, int64_t dim,
                                      IdSlots& slots, T* sums) {
  const DenseBagShape& s = batch.shape;
  for (const int64_t f : part.features) {
    const T* grad = batch.grad + s.first_column[f];
    for (int64_t b = 0; b < s.batch; ++b, grad += s.columns) {
      const int64_t bag = f * s.batch + b, first = batch.start(bag), last = batch.start(bag + 1);
      if (b + kPrefetch < s.batch) __builtin_prefetch(grad + kPrefetch * s.columns);
      const T scale =
          batch.mean[f] && last > first + 1 ? T(1) / static_cast<T>(last - first) : T(1);
      for (int64_t k = first; k < last; ++k) {
        const int64_t id = batch.ids[k];
        if (!slots.owns(id)) continue;
        const auto [slot, fresh] = slots.find(id);
        const T factor = batch.factors ? batch.factors[k] : scale;
        if (fresh)
          copy_body(grad, factor, dim, sums + slot * dim);
        else
          add_body(grad, factor, dim, sums + slot * dim);
      }
    }
  }
}
// The usual widths as constants: their rows are a few registers.
template <typename T, typename Id>
ALWAYS_INLINE void sum_gradients_of_width(const Batch<T, Id>& batch, const Part& part,
                                          IdSlots& slots, T* sums) {
  const int64_t dim = batch.shape.dims[part.table];
  switch (dim) {
    case 16:
      return sum_gradients_body(batch, part, 16, slots, sums);
    case 64:
      return sum_gradients_body(batch, part, 64, slots, sums);
    default:
      return sum_gradients_body(batch, part, dim, slots, sums);
  }
}
SIMD_CLONES void sum_gradients(const Batch<float, int32_t>& batch, const Part& part, IdSlots& slots,
                               float* sums) {
  sum_gradients_of_width(batch, part, slots, sums);
}
SIMD_CLONES void sum_gradients(const Batch<float, int64_t>& batch, const Part& part, IdSlots& slots,
                               float* sums) {
  sum_gradients_of_width(batch, part, slots, sums);
}
SIMD_CLONES void sum_gradients(const Batch<double, int32_t>& batch, const Part& part,
                               IdSlots& slots, double* sums) {
  sum_gradients_of_width(batch, part, slots, sums);
}
SIMD_CLONES void sum_gradients(const Batch<double, int64_t>& batch, const Part& part,
                               IdSlots& slots, double* sums) {
  sum_gradients_of_width(batch, part, slots, sums);
}

template <typename T>
void prefetch_row(const tt::CoreUpdate<T>& update, int64_t id) {
  const int64_t dim = update.slice_size;
  const auto touch = [](const T* numbers, int64_t count) {
    for (int64_t k = 0; k < count; k += 64 / sizeof(T)) __builtin_prefetch(numbers + k, 1);
  };
  const bool rowwise = update.rule->algorithm == tt::Algorithm::kRowwiseAdagrad;
  touch(update.core + id * dim, dim);
  for (const T* state : update.states)
    if (state) touch(state + (rowwise ? id : id * dim), rowwise ? 1 : dim);
}

template <typename T, typename Id>
void update_part(const Batch<T, Id>& batch, const Part& part, const tt::CoreUpdate<T>& update) {
  const int64_t rows = batch.shape.rows[part.table], dim = update.slice_size;
  IdSlots slots(rows, part.lookups, part.index, part.count);
  Array<T> sums(std::min(rows, part.lookups) * dim);
  sum_gradients(batch, part, slots, sums.data());
  for (int64_t slot = 0; slot < slots.size(); ++slot) {
    if (slot + kPrefetch < slots.size()) prefetch_row(update, slots.id(slot + kPrefetch));
    update.apply(slots.id(slot), sums.data() + slot * dim);
  }
}

// How the work is shared changes with the number of threads, the order of a row's sum does not.
template <typename T, typename Id>
std::vector<Part> make_parts(const Batch<T, Id>& batch, const DenseUpdateArgs& update) {
  const DenseBagShape& s = batch.shape;
  std::vector<Part> tables(s.tables);
  for (int64_t f = 0; f < s.tables; ++f) {
    Part& part = tables[update.owner[f]];
    part.table = update.owner[f];
    part.features.push_back(f);
    part.lookups += batch.start((f + 1) * s.batch) - batch.start(f * s.batch);
  }
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t share = std::max(kPartLookups, s.ids / (kPartsPerThread * threads));
  std::vector<Part> parts;
  for (Part& part : tables) {
    if (part.lookups == 0) continue;
    part.count = threads == 1 ? 1 : std::min(threads, (part.lookups + share - 1) / share);
    for (part.index = 0; part.index < part.count; ++part.index) parts.push_back(part);
  }
  return parts;
}

template <typename T, typename Id>
void check_ids(const Batch<T, Id>& batch) {
  const DenseBagShape& s = batch.shape;
  for (int64_t t = 0; t < s.tables; ++t) {
    const int64_t first = batch.start(t * s.batch), last = batch.start((t + 1) * s.batch);
    const auto rows = static_cast<uint64_t>(s.rows[t]);
    bool fits = true;
    for (int64_t k = first; k < last; ++k)
      fits &= static_cast<uint64_t>(static_cast<int64_t>(batch.ids[k])) < rows;
    for (int64_t k = first; k < last && !fits; ++k)
      STD_TORCH_CHECK(static_cast<uint64_t>(static_cast<int64_t>(batch.ids[k])) < rows,
                      "dense_bag_backward_update: indices[", k, "] = ", batch.ids[k],
                      " is outside the ", s.rows[t], " rows of table ", t);
  }
}

template <typename T, typename Id>
void update_tables(const Batch<T, Id>& batch, const std::vector<Tensor>& weights,
                   const std::vector<Tensor>& states, const DenseUpdateArgs& args,
                   const Tensor& hyperparameters) {
  check_ids(batch);
  const auto rule = tt::make_rule<T>(args.algorithm, hyperparameters.const_data_ptr<double>());
  std::vector<tt::CoreUpdate<T>> updates(weights.size());
  for (size_t t = 0; t < weights.size(); ++t) {
    updates[t] = {&rule, weights[t].mutable_data_ptr<T>(), {}, batch.shape.dims[t]};
    for (int64_t k = 0; k < args.states_per_table; ++k)
      updates[t].states[k] = states[t * args.states_per_table + k].mutable_data_ptr<T>();
  }
  const std::vector<Part> parts = make_parts(batch, args);
  const auto count = static_cast<int64_t>(parts.size());
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, count, 1, [&](int64_t, int64_t) {
    for (int64_t i = next++; i < count; i = next++)
      update_part(batch, parts[i], updates[parts[i].table]);
  });
}

Tensor dense_bag_backward_update_cpu(Tensor grad, std::vector<Tensor> weights,
                                     std::vector<Tensor> states, Tensor indices,
                                     std::optional<Tensor> offsets,
                                     std::optional<Tensor> per_sample_weights,
                                     std::vector<int64_t> mean, bool factors_grad,
                                     int64_t algorithm, Tensor hyperparameters) {
  const DenseBagShape s = check_dense_bag_args(weights, indices, offsets, per_sample_weights, mean);
  const DenseUpdateArgs args =
      check_dense_update_args(grad, weights, states, algorithm, hyperparameters, s);
  STD_TORCH_CHECK(!factors_grad || per_sample_weights.has_value(),
                  "dense_bag_backward_update: there are no per_sample_weights to have a gradient");
  grad = as_contiguous(grad);
  indices = as_contiguous(indices);
  if (offsets) offsets = as_contiguous(*offsets);
  if (per_sample_weights) per_sample_weights = as_contiguous(*per_sample_weights);
  const int64_t* bounds = offsets ? offsets->const_data_ptr<int64_t>() : nullptr;
  if (bounds) check_dense_bag_offsets(bounds, s.tables * s.batch, s.ids);
  // The factors' gradients are about the rows as they were.
  Tensor result = factors_grad ? dense_bag_factor_gradients_cpu(grad, weights, indices, offsets,
                                                                *per_sample_weights)
                               : torch::stable::new_empty(grad, {0});
  dispatch_floating("dense_bag_backward_update_cpu", grad.scalar_type(), [&](auto zero) {
    using scalar_t = decltype(zero);
    const auto run = [&](auto* ids) {
      using Id = std::remove_const_t<std::remove_pointer_t<decltype(ids)>>;
      const scalar_t* factors =
          per_sample_weights ? per_sample_weights->const_data_ptr<scalar_t>() : nullptr;
      const Batch<scalar_t, Id> batch{s,       ids,  bounds,
                                      factors, mean, grad.const_data_ptr<scalar_t>()};
      update_tables(batch, weights, states, args, hyperparameters);
    };
    if (indices.scalar_type() == ScalarType::Int)
      run(indices.const_data_ptr<int32_t>());
    else
      run(indices.const_data_ptr<int64_t>());
  });
  return result;
}

}  // namespace
}  // namespace recsys_opt

STABLE_TORCH_LIBRARY_IMPL(recsys_opt, CPU, m) {
  m.impl("dense_bag_backward_update", TORCH_BOX(&recsys_opt::dense_bag_backward_update_cpu));
}
