#pragma once
// A contiguous tensor with the same numbers: the tensor itself where it is one. Asking first costs
// nothing beside a call of torch's own operator, which goes through its dispatcher either way: in a
// training step over dozens of tables these are tens of microseconds.
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

namespace recsys_opt {

inline torch::stable::Tensor as_contiguous(const torch::stable::Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// Each of these tensors, or optional tensors.
inline void make_contiguous(torch::stable::Tensor& tensor) {
  tensor = as_contiguous(tensor);
}
inline void make_contiguous(std::optional<torch::stable::Tensor>& tensor) {
  if (tensor) tensor = as_contiguous(*tensor);
}
template <typename... Tensors>
  requires(sizeof...(Tensors) > 1)
void make_contiguous(Tensors&... tensors) {
  (make_contiguous(tensors), ...);
}

}  // namespace recsys_opt
