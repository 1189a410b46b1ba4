#pragma once
// What the CUDA kernels of hot rows share.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <algorithm>

#include "hot_rows/hot_rows.h"

namespace recsys_opt::hot_rows {

constexpr int kThreads = 256;
constexpr int kTablesPerLaunch = 48;  // their descriptions are a kernel's argument, 4 KB at most

inline cudaStream_t current_stream(const Tensor& t) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

inline unsigned blocks_for(int64_t threads) {
  return static_cast<unsigned>(std::max<int64_t>(1, (threads + kThreads - 1) / kThreads));
}

// int32 or int64 numbers.
struct Numbers {
  const void* data;
  bool narrow;

  __device__ int64_t operator[](int64_t i) const {
    return narrow ? static_cast<const int32_t*>(data)[i] : static_cast<const int64_t*>(data)[i];
  }
};

inline Numbers numbers(const Tensor& tensor) {
  const bool narrow = tensor.scalar_type() == ScalarType::Int;
  if (narrow) return {tensor.const_data_ptr<int32_t>(), narrow};
  return {tensor.const_data_ptr<int64_t>(), narrow};
}

// Where bags begin; without offsets every bag has one id.
struct Bags {
  const int64_t* offsets;

  __device__ int64_t operator[](int64_t bag) const { return offsets ? offsets[bag] : bag; }
};

inline Bags bags(const std::optional<Tensor>& offsets) {
  return {offsets ? offsets->const_data_ptr<int64_t>() : nullptr};
}

}  // namespace recsys_opt::hot_rows
