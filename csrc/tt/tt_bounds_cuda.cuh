#pragma once
// Ids and offsets out of range on a CUDA device, where nothing can be thrown: kernels note them in
// host memory that the device sees, and the host looks there without waiting for the device.
//
//   check  a bad id counts for nothing; the next call (or tt_bounds_report) raises the error
//   clamp  a bad id counts for nothing and is counted
//   trust  ids and offsets are not checked: a bad one reads or writes outside the tables
//
// Bad offsets: a bag that ends before it begins, or that begins or ends outside the indices, is
// empty; ids before the first bag are of no bag.
#include "cuda_intrinsics.cuh"

namespace recsys_opt::tt {

enum class BoundsCheck : int { kCheck = 0, kClamp = 1, kTrust = 2 };

// What is wrong, and the error's limit.
enum class BoundsKind : int64_t {
  kIndex = 0,        // outside the table's rows
  kOffset = 1,       // outside the indices
  kOffsetOrder = 2,  // less than the offset before
  kFirstOffset = 3,  // not 0
  kSlot = 4,         // of a held row: outside the slots
  kKey = 5,          // held twice: the other slot
  kPosition = 6,     // of an id, in a table of two tiers: outside its rows
};

struct BoundsError {
  int64_t kind;
  int64_t position;  // in indices, offsets, slots, keys or positions
  int64_t value;
  int64_t limit;
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

// offsets[c] of a call with `count` indices; `table` is that of bag c.
template <typename Offsets>
inline __device__ void check_offset(const Offsets& offsets, int64_t c, int64_t count, int64_t table,
                                    BoundsRecord* record) {
  const int64_t value = offsets[c];
  if (value < 0 || value > count) {
    note_error(record, {static_cast<int64_t>(BoundsKind::kOffset), c, value, count, table});
  } else if (c == 0 && value != 0) {
    note_error(record, {static_cast<int64_t>(BoundsKind::kFirstOffset), c, value, 0, table});
  } else if (c > 0 && value < offsets[c - 1]) {
    note_error(record,
               {static_cast<int64_t>(BoundsKind::kOffsetOrder), c, value, offsets[c - 1], table});
  }
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
