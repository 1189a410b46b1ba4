#pragma once
// bf16 and fp16 on the CPU. The kernels compute in fp32: the slices that a batch uses are widened
// once per call, and every result is rounded once, to the nearest.
#include <cstdint>

#include "as_contiguous.h"
#include "tt_embedding_bag.h"

namespace recsys_opt::tt {

inline bool is_reduced(ScalarType type) {
  return type == ScalarType::BFloat16 || type == ScalarType::Half;
}
inline ScalarType compute_type(ScalarType type) {
  return is_reduced(type) ? ScalarType::Float : type;
}

// The tensor itself where it is contiguous and of that type.
inline Tensor contiguous_as(const Tensor& tensor, ScalarType type) {
  return as_contiguous(tensor.scalar_type() == type ? tensor : torch::stable::to(tensor, type));
}

// to[n] = from[n], n numbers of a reduced type.
void widen(const void* from, ScalarType type, int64_t n, float* to);
// to[n] = from[n], rounded to the nearest number of a reduced type, ties to even.
void narrow(const float* from, int64_t n, ScalarType type, void* to);

// Slice `index` of `size` numbers of a core.
inline void widen_slice(const Tensor& core, int64_t index, int64_t size, float* wide) {
  const auto* data = static_cast<const char*>(core.const_data_ptr());
  widen(data + 2 * index * size, core.scalar_type(), size, wide + index * size);
}
inline void narrow_slice(const float* wide, int64_t index, int64_t size, Tensor& core) {
  auto* data = static_cast<char*>(core.mutable_data_ptr());
  narrow(wide + index * size, size, core.scalar_type(), data + 2 * index * size);
}

}  // namespace recsys_opt::tt
