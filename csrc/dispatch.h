#pragma once
// Calls f(T{}) with the C++ type of a float32 or float64 tensor.
#include <torch/csrc/stable/tensor.h>

namespace recsys_opt {

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

}  // namespace recsys_opt
