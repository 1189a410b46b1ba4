#pragma once
// The backward pass of dense_bag that updates the looked-up rows itself: no gradient is stored.
//
//   grad                [B, sum D_t]  of dense_bag's output
//   weights[t]          [rows_t, D_t]  changed in place; features may share a table
//   states[t * S + s]   S = 0 (SGD), 1 (Adagrad, row-wise Adagrad) or 2 (Adam) of each table:
//                       [rows_t, D_t]; row-wise [rows_t]. Those of a shared table are shared
//   hyperparameters     [6] float64: lr, eps, beta1, beta2, weight_decay, step
//
// A row is what tt/tt_update.h calls a slice: its rules and their numbers hold here. The gradients
// of one id are summed in the order of their positions, then its row is updated once, so that the
// result does not depend on the number of threads. Rows that no id names stay.
#include "dense/dense_bag.h"
#include "tt/tt_embedding_bag.h"

namespace recsys_opt {

inline void check_factors_grad(const char* op, bool wanted,
                               const std::optional<torch::stable::Tensor>& per_sample_weights) {
  STD_TORCH_CHECK(!wanted || per_sample_weights.has_value(), op,
                  ": there are no per_sample_weights to have a gradient");
}

struct DenseUpdateArgs {
  tt::Algorithm algorithm;
  int64_t states_per_table;
  std::vector<int64_t> owner;  // [tables] the first feature with the same table
};

// The only place where the arguments of the update are checked, after check_dense_bag_args.
inline DenseUpdateArgs check_dense_update_args(const torch::stable::Tensor& grad,
                                               const std::vector<torch::stable::Tensor>& weights,
                                               const std::vector<torch::stable::Tensor>& states,
                                               int64_t algorithm,
                                               const torch::stable::Tensor& hyperparameters,
                                               const DenseBagShape& s) {
  const char* op = "dense_bag_backward_update";
  const auto rule = tt::check_rule(op, algorithm, hyperparameters);
  DenseUpdateArgs u{rule.algorithm, rule.states, {}};
  check_upstream(op, grad, weights[0], s);
  const int64_t per_table = u.states_per_table;
  STD_TORCH_CHECK(static_cast<int64_t>(states.size()) == s.tables * per_table, op, ": ", s.tables,
                  " tables need ", s.tables * per_table, " states, got ", states.size());
  for (int64_t t = 0; t < s.tables; ++t) {
    int64_t owner = 0;
    while (owner < t && (weights[t].numel() == 0 ||
                         weights[owner].const_data_ptr() != weights[t].const_data_ptr()))
      ++owner;
    STD_TORCH_CHECK(s.rows[owner] == s.rows[t] && s.dims[owner] == s.dims[t], op, ": weights[",
                    owner, "] and weights[", t,
                    "] begin at the same number, but are not the same table");
    u.owner.push_back(owner);
    const bool rowwise = u.algorithm == tt::Algorithm::kRowwiseAdagrad;
    const int64_t numel = rowwise ? s.rows[t] : weights[t].numel();
    for (int64_t k = 0; k < per_table; ++k) {
      const torch::stable::Tensor& state = states[t * per_table + k];
      STD_TORCH_CHECK(state.is_contiguous() && state.numel() == numel &&
                          state.scalar_type() == weights[0].scalar_type(),
                      op, ": state ", k, " of table ", t, " must be ", numel,
                      " contiguous numbers of the weights' dtype, got ", state.numel());
      STD_TORCH_CHECK(
          state.const_data_ptr() == states[owner * per_table + k].const_data_ptr() || owner == t,
          op, ": weights[", owner, "] and weights[", t,
          "] are one table, but have not the same states");
    }
  }
  return u;
}

}  // namespace recsys_opt
