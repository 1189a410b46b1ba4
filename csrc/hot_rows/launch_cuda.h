#pragma once
// What the CUDA kernels of hot rows share.
#include <algorithm>

#include "as_contiguous.h"
#include "hot_rows/hot_rows.h"
#include "one_device.h"
#include "tt/tt_bounds_cuda.cuh"

namespace recsys_opt::hot_rows {

constexpr int kThreads = 256;
constexpr int kTablesPerLaunch = 48;  // their descriptions are a kernel's argument, 4 KB at most

using tt::BoundsKind;
using tt::Grid;
using tt::launch;
using tt::OnDevice;

inline int64_t blocks_for(int64_t threads) {
  return std::max<int64_t>(1, (threads + kThreads - 1) / kThreads);
}

// How kernels treat ids, offsets and slots out of range: as those of tensor trains do, by the same
// setting and into the same record (tt/tt_bounds_cuda.cuh).
struct Bounds {
  tt::BoundsCheck mode;
  tt::BoundsRecord* record;

  // Begins an op: raises what earlier ones on the device noted.
  static Bounds begin(int device) {
    tt::raise_noted_errors(device);
    return {static_cast<tt::BoundsCheck>(tt::cuda_settings().bounds), tt::bounds_record(device)};
  }

  // Whether value is in [0, limit), as far as that is looked at; notes it otherwise.
  __device__ bool holds(BoundsKind kind, int64_t position, int64_t value, int64_t limit,
                        int64_t table) const {
    if (mode == tt::BoundsCheck::kTrust || (value >= 0 && value < limit)) return true;
    tt::note_error(record, {static_cast<int64_t>(kind), position, value, limit, table});
    return false;
  }
};

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

inline __device__ void lower_to(int32_t* address, int32_t value) {
#ifdef RECSYS_OPT_SIMT
  *address = std::min(*address, value);
#else
  if (value < *address) atomicMin(address, value);
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

// Which lookups bags have; without offsets every bag has one id.
struct Bags {
  const int64_t* offsets;
  int64_t ids;

  struct Range {
    int64_t begin, end;
  };
  // None where an offset is outside the ids, or less than the one before.
  __device__ Range operator[](int64_t bag) const {
    if (offsets == nullptr) return {bag, bag + 1};
    const int64_t begin = offsets[bag], end = offsets[bag + 1];
    if (begin < 0 || end < begin || end > ids) return {0, 0};
    return {begin, end};
  }
  // Where a bag begins, held to the ids there are.
  __device__ int64_t begin(int64_t bag) const {
    if (offsets == nullptr) return bag;
    const int64_t offset = offsets[bag];
    return offset < 0 ? 0 : offset < ids ? offset : ids;
  }
};

inline Bags bags(const std::optional<Tensor>& offsets, int64_t ids) {
  return {offsets ? offsets->const_data_ptr<int64_t>() : nullptr, ids};
}

}  // namespace recsys_opt::hot_rows
