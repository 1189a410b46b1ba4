#pragma once
// Calls with the C++ type of a tensor's numbers.
#include <torch/csrc/stable/tensor.h>

namespace recsys_opt {

// Calls f(T{}) for float32 or float64.
template <typename F>
void dispatch_floating(const char* op, torch::headeronly::ScalarType type, F&& f) {
  using torch::headeronly::ScalarType;
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double, op,
                  ": needs float32 or float64");
  if (type == ScalarType::Float)
    f(float{});
  else
    f(double{});
}

// Calls f(const T*) with the numbers of an int32 or int64 tensor, e.g. ids; returns what it does.
template <typename F>
decltype(auto) with_integers(const torch::stable::Tensor& tensor, F&& f) {
  if (tensor.scalar_type() == torch::headeronly::ScalarType::Int)
    return f(tensor.const_data_ptr<int32_t>());
  return f(tensor.const_data_ptr<int64_t>());
}

}  // namespace recsys_opt
