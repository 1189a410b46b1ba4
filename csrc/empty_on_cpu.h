#pragma once
// A contiguous CPU tensor whose numbers are not set. torch::stable::new_empty goes through the
// dispatcher with boxed arguments, by the operator's name: here that is most of a small call's
// time.
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cstdint>

namespace recsys_opt {

inline torch::stable::Tensor empty_on_cpu(torch::headeronly::IntHeaderOnlyArrayRef sizes,
                                          torch::headeronly::ScalarType type) {
  constexpr int64_t kMostDims = 4;
  const auto dims = static_cast<int64_t>(sizes.size());
  STD_TORCH_CHECK(dims <= kMostDims, "empty_on_cpu: ", dims, " dimensions; at most ", kMostDims);
  std::array<int64_t, kMostDims> strides{};
  int64_t stride = 1;
  for (int64_t d = dims - 1; d >= 0; --d) {
    strides[d] = stride;
    stride *= std::max<int64_t>(sizes[d], 1);
  }
  const auto code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      dims, sizes.data(), strides.data(), code, aoti_torch_device_type_cpu(), -1, &handle));
  return torch::stable::Tensor(handle);
}

}  // namespace recsys_opt
