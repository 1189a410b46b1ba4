#pragma once
// A contiguous tensor with the same numbers: the tensor itself where it is one. Asking first costs
// nothing beside a call of torch's own operator, which goes through its dispatcher either way: in a
// training step over dozens of tables these are tens of microseconds.
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

namespace recsys_opt {

inline torch::stable::Tensor as_contiguous(const torch::stable::Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

}  // namespace recsys_opt
