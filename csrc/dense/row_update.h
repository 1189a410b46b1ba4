#pragma once
// Updates of the looked-up rows of many dense tables. Gradients of one id are summed in the order
// of their positions, then its row is updated once, so the result does not depend on the number of
// threads.
//
//   weights[t]  [rows_t, D_t]   changed in place
//   states[t]   [rows_t]        changed in place (row-wise Adagrad)
//   ids[t]      [n_t] int64
//   grads[t]    [n_t, D_t]      rows may be strided
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

namespace recsys_opt {

// The only place where the row updates' arguments are checked.
inline void check_row_update_args(const std::vector<torch::stable::Tensor>& weights,
                                  const std::vector<torch::stable::Tensor>& ids,
                                  const std::vector<torch::stable::Tensor>& grads,
                                  const std::vector<torch::stable::Tensor>* states) {
  using torch::headeronly::ScalarType;
  STD_TORCH_CHECK(ids.size() == weights.size() && grads.size() == weights.size() &&
                      (!states || states->size() == weights.size()),
                  "row update: ", weights.size(), " weights need as many ids, grads and states");
  for (size_t t = 0; t < weights.size(); ++t) {
    STD_TORCH_CHECK(weights[t].dim() == 2 && weights[t].is_contiguous(), "row update: weights[", t,
                    "] must be [rows, D] and contiguous");
    STD_TORCH_CHECK(
        ids[t].dim() == 1 && ids[t].scalar_type() == ScalarType::Long && ids[t].is_contiguous(),
        "row update: ids[", t, "] must be 1-D int64 and contiguous");
    STD_TORCH_CHECK(grads[t].dim() == 2 && grads[t].size(0) == ids[t].numel() &&
                        grads[t].size(1) == weights[t].size(1),
                    "row update: grads[", t, "] must be [", ids[t].numel(), ", ",
                    weights[t].size(1), "]");
    STD_TORCH_CHECK(weights[t].scalar_type() == weights[0].scalar_type() &&
                        grads[t].scalar_type() == weights[0].scalar_type(),
                    "row update: weights and grads differ in dtype");
    if (states)
      STD_TORCH_CHECK((*states)[t].dim() == 1 && (*states)[t].numel() == weights[t].size(0) &&
                          (*states)[t].is_contiguous() &&
                          (*states)[t].scalar_type() == weights[t].scalar_type(),
                      "row update: states[", t, "] must be [", weights[t].size(0),
                      "] with the weights' dtype");
  }
}

}  // namespace recsys_opt
