#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>

#include "as_contiguous.h"
#include "dense/dense_bag.h"
#include "dense/pool_rows.h"
#include "dispatch.h"

namespace recsys_opt {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

[[noreturn]] void refuse(int64_t k, int64_t id, const DenseBagShape& s, int64_t table) {
  STD_TORCH_CHECK(false, "dense_bag: indices[", k, "] = ", id, " is outside the ", s.rows[table],
                  " rows of table ", table);
  __builtin_unreachable();
}

template <typename T, typename Id>
void forward(const std::vector<Tensor>& weights, const Id* ids, const int64_t* offsets,
             const T* factors, const std::vector<int64_t>& mean, const DenseBagShape& s, T* out) {
  std::vector<PooledRows<T>> tables;
  for (int64_t t = 0; t < s.tables; ++t)
    tables.push_back(PooledRows<T>::stored(weights[t].const_data_ptr<T>(), s.rows[t], s.dims[t]));
  std::atomic<int64_t> bad{kNoLookup};
  torch::stable::parallel_for(0, s.batch, kPoolBlock, [&](int64_t begin, int64_t end) {
    // Block by block, so that the rows of the output that the tables share stay in the cache.
    for (int64_t block = begin; block < end; block += kPoolBlock)
      for (int64_t t = 0; t < s.tables; ++t) {
        const int64_t first = t * s.batch;
        const PoolBags<T> bags{offsets,
                               factors,
                               mean[t] != 0,
                               first,
                               block,
                               std::min(block + kPoolBlock, end),
                               offsets ? offsets[first + end] : first + end};
        keep_smallest(bad, pool_rows(tables[t], bags, ids, out + s.first_column[t], s.columns));
      }
  });
  const int64_t k = bad.load();
  if (k == kNoLookup) return;
  int64_t table = 0;
  while (k >= (offsets ? offsets[(table + 1) * s.batch] : (table + 1) * s.batch)) ++table;
  refuse(k, ids[k], s, table);
}

Tensor dense_bag_cpu(std::vector<Tensor> weights, Tensor indices, std::optional<Tensor> offsets,
                     std::optional<Tensor> per_sample_weights, std::vector<int64_t> mean) {
  const DenseBagShape s = check_dense_bag_args(weights, indices, offsets, per_sample_weights, mean);
  make_contiguous(indices, offsets, per_sample_weights);
  const int64_t* bounds = offsets_of(offsets, s);
  Tensor out = torch::stable::new_empty(weights[0], {s.batch, s.columns});
  dispatch_floating("dense_bag_cpu", weights[0].scalar_type(), [&](auto zero) {
    using scalar_t = decltype(zero);
    const scalar_t* factors =
        per_sample_weights ? per_sample_weights->const_data_ptr<scalar_t>() : nullptr;
    with_integers(indices, [&](const auto* ids) {
      forward(weights, ids, bounds, factors, mean, s, out.mutable_data_ptr<scalar_t>());
    });
  });
  return out;
}

// The gradient of every looked-up row, feature-major: D_t numbers for each id of table t. Of the
// weights it reads their widths alone.
Tensor dense_bag_row_gradients_cpu(Tensor grad, std::vector<Tensor> weights, Tensor indices,
                                   std::optional<Tensor> offsets,
                                   std::optional<Tensor> per_sample_weights,
                                   std::vector<int64_t> mean) {
  const DenseBagShape s = check_dense_bag_args(weights, indices, offsets, per_sample_weights, mean);
  check_upstream("dense_bag_row_gradients", grad, weights[0], s);
  make_contiguous(grad, offsets, per_sample_weights);
  const int64_t* bounds = offsets_of(offsets, s);
  const auto start = [&](int64_t bag) { return bounds ? bounds[bag] : bag; };
  // first[t] is where table t's rows begin in the output.
  std::vector<int64_t> first(s.tables + 1, 0);
  for (int64_t t = 0; t < s.tables; ++t)
    first[t + 1] = first[t] + (start((t + 1) * s.batch) - start(t * s.batch)) * s.dims[t];
  Tensor out = torch::stable::new_empty(grad, {first[s.tables]});
  dispatch_floating("dense_bag_row_gradients_cpu", grad.scalar_type(), [&](auto zero) {
    using scalar_t = decltype(zero);
    const scalar_t* from = grad.const_data_ptr<scalar_t>();
    const scalar_t* factors =
        per_sample_weights ? per_sample_weights->const_data_ptr<scalar_t>() : nullptr;
    scalar_t* to = out.mutable_data_ptr<scalar_t>();
    torch::stable::parallel_for(0, s.batch, kPoolBlock, [&](int64_t begin, int64_t end) {
      for (int64_t t = 0; t < s.tables; ++t)
        for (int64_t b = begin; b < end; ++b) {
          const int64_t bag = t * s.batch + b, lo = start(bag), hi = start(bag + 1);
          const scalar_t* row = from + b * s.columns + s.first_column[t];
          const scalar_t scale =
              mean[t] && hi > lo ? scalar_t(1) / static_cast<scalar_t>(hi - lo) : scalar_t(1);
          for (int64_t k = lo; k < hi; ++k) {
            scalar_t* target = to + first[t] + (k - start(t * s.batch)) * s.dims[t];
            const scalar_t factor = factors ? factors[k] : scale;
            for (int64_t d = 0; d < s.dims[t]; ++d) target[d] = factor * row[d];
          }
        }
    });
  });
  return out;
}

}  // namespace

// d out / d per_sample_weights[k] = grad of the bag . row.
Tensor dense_bag_factor_gradients_cpu(Tensor grad, std::vector<Tensor> weights, Tensor indices,
                                      std::optional<Tensor> offsets, Tensor per_sample_weights) {
  const std::vector<int64_t> mean(weights.size(), 0);
  const DenseBagShape s = check_dense_bag_args(weights, indices, offsets, per_sample_weights, mean);
  check_upstream("dense_bag_factor_gradients", grad, weights[0], s);
  indices = torch::stable::to(indices, ScalarType::Long);
  make_contiguous(grad, indices, offsets);
  const int64_t* bounds = offsets_of(offsets, s);
  const int64_t* ids = indices.const_data_ptr<int64_t>();
  for (int64_t t = 0; t < s.tables; ++t) {
    const int64_t first = t * s.batch, last = first + s.batch;
    for (int64_t k = bounds ? bounds[first] : first; k < (bounds ? bounds[last] : last); ++k)
      if (ids[k] < 0 || ids[k] >= s.rows[t]) refuse(k, ids[k], s, t);
  }
  Tensor out = torch::stable::new_zeros(grad, {s.ids});
  dispatch_floating("dense_bag_factor_gradients_cpu", grad.scalar_type(), [&](auto zero) {
    using scalar_t = decltype(zero);
    const scalar_t* from = grad.const_data_ptr<scalar_t>();
    scalar_t* to = out.mutable_data_ptr<scalar_t>();
    torch::stable::parallel_for(0, s.batch, kPoolBlock, [&](int64_t begin, int64_t end) {
      for (int64_t t = 0; t < s.tables; ++t) {
        const scalar_t* weight = weights[t].template const_data_ptr<scalar_t>();
        for (int64_t b = begin; b < end; ++b) {
          const int64_t bag = t * s.batch + b;
          const scalar_t* g = from + b * s.columns + s.first_column[t];
          for (int64_t k = bounds ? bounds[bag] : bag; k < (bounds ? bounds[bag + 1] : bag + 1);
               ++k) {
            scalar_t sum = 0;
            for (int64_t d = 0; d < s.dims[t]; ++d) sum += g[d] * weight[ids[k] * s.dims[t] + d];
            to[k] = sum;
          }
        }
      }
    });
  });
  return out;
}

}  // namespace recsys_opt

STABLE_TORCH_LIBRARY_IMPL(recsys_opt, CPU, m) {
  m.impl("dense_bag", TORCH_BOX(&recsys_opt::dense_bag_cpu));
  m.impl("dense_bag_row_gradients", TORCH_BOX(&recsys_opt::dense_bag_row_gradients_cpu));
  m.impl("dense_bag_factor_gradients", TORCH_BOX(&recsys_opt::dense_bag_factor_gradients_cpu));
}
