#pragma once
// Adagrad on dense parameters, all tensors in one pass over memory.
//
//   parameters[k], states[k]   equal shapes, contiguous; changed in place
//   grads[k]                   the same shape
//
//   state += grad^2;  parameter -= lr * grad / (sqrt(state) + eps)
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

namespace recsys_opt {

// The only place where adagrad_'s arguments are checked.
inline void check_adagrad_args(const std::vector<torch::stable::Tensor>& parameters,
                               const std::vector<torch::stable::Tensor>& states,
                               const std::vector<torch::stable::Tensor>& grads) {
  STD_TORCH_CHECK(states.size() == parameters.size() && grads.size() == parameters.size(),
                  "adagrad_: ", parameters.size(), " parameters need as many states and grads");
  for (size_t k = 0; k < parameters.size(); ++k) {
    STD_TORCH_CHECK(parameters[k].is_contiguous() && states[k].is_contiguous(),
                    "adagrad_: parameters[", k, "] and states[", k, "] must be contiguous");
    for (const auto* other : {&states[k], &grads[k]}) {
      STD_TORCH_CHECK(other->numel() == parameters[k].numel(), "adagrad_: parameters[", k, "] has ",
                      parameters[k].numel(), " numbers, but its state or grad has ",
                      other->numel());
      STD_TORCH_CHECK(other->scalar_type() == parameters[0].scalar_type(),
                      "adagrad_: parameters, states and grads differ in dtype");
    }
  }
}

}  // namespace recsys_opt
