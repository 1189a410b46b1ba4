#include <torch/csrc/stable/library.h>

#include <type_traits>

#include "as_contiguous.h"
#include "dense/dense_bag_update.h"
#include "dense/sum_gradients.h"
#include "dispatch.h"
#include "tt/tt_update.h"

namespace recsys_opt {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A table's rows and their states, as a core whose slices they are.
template <typename T>
struct DenseRows {
  tt::CoreUpdate<T> update;

  void prefetch(int64_t id) const { prefetch_row(update, id); }
  void apply(int64_t id, T* grad) const { update.apply(id, grad); }
};

template <typename T, typename Id>
void update_tables(const GradientBatch<T, Id>& batch, const std::vector<Tensor>& weights,
                   const std::vector<Tensor>& states, const DenseUpdateArgs& args,
                   const Tensor& hyperparameters) {
  check_update_ids("dense_bag_backward_update", batch);
  const auto rule = tt::make_rule<T>(args.algorithm, hyperparameters.const_data_ptr<double>());
  std::vector<DenseRows<T>> tables(weights.size());
  for (size_t t = 0; t < weights.size(); ++t) {
    tt::CoreUpdate<T>& update = tables[t].update;
    update = {&rule, weights[t].mutable_data_ptr<T>(), {}, batch.shape.dims[t]};
    for (int64_t k = 0; k < args.states_per_table; ++k)
      update.states[k] = states[t * args.states_per_table + k].mutable_data_ptr<T>();
  }
  update_rows(batch, args.owner, tables);
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
  check_factors_grad("dense_bag_backward_update", factors_grad, per_sample_weights);
  make_contiguous(grad, indices, offsets, per_sample_weights);
  const int64_t* bounds = offsets_of(offsets, s);
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
      const GradientBatch<scalar_t, Id> batch{s,       ids,  bounds,
                                              factors, mean, grad.const_data_ptr<scalar_t>()};
      update_tables(batch, weights, states, args, hyperparameters);
    };
    with_integers(indices, run);
  });
  return result;
}

}  // namespace
}  // namespace recsys_opt

STABLE_TORCH_LIBRARY_IMPL(recsys_opt, CPU, m) {
  m.impl("dense_bag_backward_update", TORCH_BOX(&recsys_opt::dense_bag_backward_update_cpu));
}
