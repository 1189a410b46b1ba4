#pragma once
// What the CUDA kernels of hot rows share.
#include <algorithm>
#include <stdexcept>

#include "hot_rows/hot_rows.h"
#include "tt/cuda_intrinsics.cuh"

namespace recsys_opt::hot_rows {

constexpr int kThreads = 256;
constexpr int kTablesPerLaunch = 48;  // their descriptions are a kernel's argument, 4 KB at most

using tt::Grid;
using tt::launch;
using tt::OnDevice;

inline int64_t blocks_for(int64_t threads) {
  return std::max<int64_t>(1, (threads + kThreads - 1) / kThreads);
}

// Ends the program on the device, after a message.
inline __device__ void stop() {
#ifdef RECSYS_OPT_SIMT
  throw std::runtime_error("a kernel has stopped the device");
#else
  __trap();
#endif
}

// Writes `value` where `expected` is, at once; returns what was there.
inline __device__ int32_t exchange_if(int32_t* address, int32_t expected, int32_t value) {
#ifdef RECSYS_OPT_SIMT
  const int32_t there = *address;
  if (there == expected) *address = value;
  return there;
#else
  return atomicCAS(address, expected, value);
#endif
}

inline __device__ void raise_to(int64_t* address, int64_t value) {
#ifdef RECSYS_OPT_SIMT
  *address = std::max(*address, value);
#else
  atomicMax(reinterpret_cast<long long*>(address), static_cast<long long>(value));
#endif
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
