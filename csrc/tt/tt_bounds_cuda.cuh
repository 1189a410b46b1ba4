#pragma once
// Ids and offsets out of range on a CUDA device, where nothing can be thrown: kernels note them in
// host memory that the device sees, and the host looks there without waiting for the device.
//
//   check  a bad id counts for nothing; the next call (or tt_bounds_report) raises the error
//   clamp  a bad id counts for nothing and is counted
//   trust  ids and offsets are not checked: a bad one reads or writes outside the tables
#include "cuda_intrinsics.cuh"

namespace recsys_opt::tt {

enum class BoundsCheck : int { kCheck = 0, kClamp = 1, kTrust = 2 };

enum class BoundsKind : int64_t { kIndex = 0, kOffset = 1, kOffsetOrder = 2 };

struct BoundsError {
  int64_t kind;
  int64_t position;  // in indices or offsets
  int64_t value;
  int64_t limit;  // the table's rows; the number of indices; the offset before
  int64_t table;
};

constexpr int kNotedErrors = 8;

struct BoundsRecord {
  unsigned long long begun;  // errors that have a place
  unsigned long long count;  // errors written
  BoundsError noted[kNotedErrors];
};

inline __device__ void note_error(BoundsRecord* record, const BoundsError& error) {
  const unsigned long long place = atomicAdd_system(&record->begun, 1ull);
  record->noted[place % kNotedErrors] = error;
  __threadfence_system();
  atomicAdd_system(&record->count, 1ull);
}

// --- host functions of tt_bounds_cuda.cu ---

// Values of tt_cuda_setting.
struct CudaSettings {
  int64_t bounds = 0;            // a BoundsCheck
  int64_t tf32 = 0;              // 1: products of fp32 cores on the tensor cores
  int64_t direct_lookups = 512;  // at most so many: forward without a plan
  int64_t run = 256;             // lookups of a unit
};
CudaSettings cuda_settings();

// The device's record.
BoundsRecord* bounds_record(int device);
// In mode check, throws if earlier calls on the device found bad ids that were not reported yet.
void raise_noted_errors(int device);

}  // namespace recsys_opt::tt
