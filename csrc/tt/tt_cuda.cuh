#pragma once
// What the CUDA kernels of tt_embedding_bag share: tables as the device sees them, the batch, and
// the workspace of a call.
//
// A call runs the same launches for any number of tables. Grids follow from the sizes of the
// arguments alone, nothing waits for the device, and all memory comes from torch's allocator on the
// caller's stream, so a call can be captured in a CUDA graph. No sum is atomic: results are the
// same to the bit in every run.
//
// Memory of N lookups: 32 bytes each for the plan and 24 each per order; in the forward pass the
// widest table's row each, in fp32; in the backward pass nodes and sums of units. A table has at
// most min(lookups, prefixes + lookups / 64 + lookups / run) nodes, and min(lookups, slices +
// lookups / run) sums in an order. How many of the N lookups a table has only the device knows, so
// room is for the division of N that needs most (most_elements in tt_dispatch_cuda.cuh), and blocks
// take theirs as they come.
//
//   1. plan    (tt_plan_cuda.cu)    which id each lookup has, checked; lookups sorted in up to four
//                                   orders, each cut into units
//   2. levels  (tt_level_cuda.cuh)  a block takes a unit: lookups that share a slice of one core
//   3. sums    (pool_kernel, tt_sums_cuda.cuh)  bags of several rows; gradients of the slices
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <type_traits>
#include <utility>
#include <vector>

#include "cuda_intrinsics.cuh"
#include "one_device.h"
#include "tt_embedding_bag.h"

namespace recsys_opt::tt {

// The orders in which lookups are sorted, by (table, a digit of the id, what is named in brackets).
// Lookups next to each other share a slice of a core.
enum OrderName : int {
  kTop = 0,    // i_{d-2} (i_{d-3} .. i_0): the product of all cores but the last, the top level
  kLast = 1,   // i_{d-1}
  kFirst = 2,  // i_0; tables of three and four cores
  kInner = 3,  // i_1 (i_0); tables of four cores
  kOrders = 4,
};

// Sums and products: fp32 for half precision.
template <typename T>
using Accumulator = typename std::conditional<std::is_same<T, double>::value, double, float>::type;

// One feature's table. Sizes are of elements.
struct DeviceTable {
  const void* core[kMaxCores];
  void* grad[kMaxCores];      // of the cores; or the cores again, to be updated
  void* state[kMaxCores][2];  // of the optimizer
  int64_t num_embeddings;
  int64_t padding_idx;
  int64_t column;               // of the output
  int64_t key_base[kOrders];    // the table's first key of an order
  int64_t group_base[kOrders];  // ... and first group; a group is a slice of a core
  int64_t first_core;
  int n[kMaxCores];
  int q[kMaxCores];
  int r[kMaxCores + 1];
  int d;
  int mean;
  int dim;
  int owner;        // where gradients of tables with the same cores are added: the first of them
  int next_shared;  // the next of them, or -1
  int aligned;      // bit k: every slice of core k starts at 16 bytes
};

// Tables that travel in the kernels' parameters; more of them lie in a buffer.
constexpr int kTablesByValue = 24;

struct Tables {
  int count;
  const DeviceTable* more;  // all tables, where they do not fit below
  DeviceTable by_value[kTablesByValue];

  __device__ const DeviceTable& operator[](int t) const { return more ? more[t] : by_value[t]; }
};

// int32 or int64 numbers.
struct Numbers {
  const void* data;
  bool narrow;

  __device__ int64_t operator[](int64_t i) const {
    return narrow ? static_cast<const int32_t*>(data)[i] : static_cast<const int64_t*>(data)[i];
  }
};

// indices[i], taken apart. table -1: no bag has it, it is padding, or it is out of range.
struct Lookup {
  int digit[kMaxCores];
  int table;
  int bag;  // of the call: table * batch_size + sample
  int unused[2];
};

// The slice that groups an order's lookups is of this core.
inline __host__ __device__ int core_of(int order, int d) {
  return order == kTop ? d - 2 : order == kLast ? d - 1 : order == kFirst ? 0 : 1;
}
inline __host__ __device__ bool takes_part(int order, int d) {
  return order == kTop || order == kLast || (order == kFirst ? d >= 3 : d == 4);
}

// Lookups in one order. A unit is up to `run` lookups of a group.
struct Order {
  bool used;
  int64_t keys;    // of all tables; lookups that take no part have this key
  int64_t groups;  // slices of all tables
  int64_t max_units;
  int run;
  int64_t* sorted_keys;  // [N]
  int* sorted;           // [N] lookups
  int64_t* spare_keys;   // [N] the sort's other buffers
  int* spare;            // [N]
  int64_t* group_start;  // [groups + 1] into sorted
  int64_t* unit_start;   // [groups + 1]
  int* unit_group;       // [max_units]
  int64_t* unit_sums;    // [max_units] where the unit's sums begin among those of the order
};

// A call's batch and where its parts lie in the workspace.
struct Batch {
  Numbers indices;  // [N]
  Numbers offsets;  // [tables * batch_size + 1]
  int64_t num_indices;
  int64_t batch_size;
  int64_t bags;  // tables * batch_size
  int64_t columns;
  const void* weights;        // [N] or null
  Lookup* lookups;            // [N]
  int* bag_count;             // [bags] lookups that count; where any table averages
  unsigned long long* taken;  // [kRooms] elements taken of the rooms that blocks share
  Order order[kOrders];
};

// Rooms in the workspace out of which blocks take what they need, each node or unit as much as its
// table's shapes ask for. Who lies where depends on the order of blocks, what is computed does not.
inline __host__ __device__ int room_of_nodes(int order) {
  return order;
}
inline __host__ __device__ int room_of_sums(int order) {
  return kOrders + order;
}
constexpr int kRooms = 2 * kOrders;

inline __device__ int64_t take_room(const Batch& batch, int room, int64_t elements) {
  return static_cast<int64_t>(
      atomicAdd(batch.taken + room, static_cast<unsigned long long>(elements)));
}

// The lookups [begin, end) of bag c. None where an offset is outside the indices, or less than the
// one before: so that bad offsets cost no more time than good ones.
struct BagRange {
  int64_t begin, end;
};

inline __device__ BagRange range_of_bag(const Batch& batch, int64_t c) {
  const int64_t begin = batch.offsets[c], end = batch.offsets[c + 1];
  if (begin < 0 || end < begin || end > batch.num_indices) return {0, 0};
  return {begin, end};
}

// The factor of lookup i's row.
template <typename T>
inline __device__ Accumulator<T> factor_of(const Batch& batch, const DeviceTable& table, int i) {
  using Acc = Accumulator<T>;
  if (batch.weights) return static_cast<Acc>(static_cast<const T*>(batch.weights)[i]);
  if (table.mean) return Acc(1) / static_cast<Acc>(batch.bag_count[batch.lookups[i].bag]);
  return Acc(1);
}

template <typename T>
inline __device__ const T* slice_of(const DeviceTable& table, int core, int64_t index) {
  const int64_t size = int64_t{table.q[core]} * table.r[core] * table.r[core + 1];
  return static_cast<const T*>(table.core[core]) + index * size;
}

// The table that a group of an order belongs to.
inline __device__ int table_of_group(const Tables& tables, int o, int64_t group) {
  int low = 0, high = tables.count;  // the last table whose groups begin at or before this one
  while (low + 1 < high) {
    const int middle = (low + high) / 2;
    (tables[middle].group_base[o] <= group ? low : high) = middle;
  }
  return low;
}

inline int64_t element_bytes(ScalarType type) {
  if (type == ScalarType::Half || type == ScalarType::BFloat16) return 2;
  if (type == ScalarType::Byte) return 1;
  return type == ScalarType::Float || type == ScalarType::Int ? 4 : 8;
}

inline int64_t ceil_divide(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// Memory of one call. Parts are taken twice: first to add up their sizes, then, after allocate(),
// for real.
class Workspace {
 public:
  template <typename T>
  T* take(int64_t count) {
    const int64_t bytes = (count > 0 ? count : 1) * static_cast<int64_t>(sizeof(T));
    void* part = nullptr;
#ifdef RECSYS_OPT_SIMT
    if (allocated_) parts_.push_back(part = simt::guarded(bytes));
#else
    if (allocated_) part = static_cast<unsigned char*>(memory_->mutable_data_ptr()) + size_;
#endif
    size_ += ceil_divide(bytes, kAlignment) * kAlignment;
    return static_cast<T*>(part);
  }

  void allocate([[maybe_unused]] const Tensor& like) {
#ifndef RECSYS_OPT_SIMT
    memory_ = torch::stable::new_empty(like, {size_}, ScalarType::Byte);
#else
    simt::note_workspace(size_);
#endif
    allocated_ = true;
    size_ = 0;
  }

  Workspace() = default;
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
#ifdef RECSYS_OPT_SIMT
  ~Workspace() {
    for (void* part : parts_) simt::release(part);
  }
#endif

 private:
  static constexpr int64_t kAlignment = 256;
  bool allocated_ = false;
  int64_t size_ = 0;
#ifdef RECSYS_OPT_SIMT
  std::vector<void*> parts_;
#else
  std::optional<Tensor> memory_;
#endif
};

// --- host functions of tt_call_cuda.cu and tt_plan_cuda.cu ---

// Refuses tensors on several devices; before anything else is done with them.
inline OneDevice check_devices(const char* op, const Tensor& indices, const Tensor& offsets,
                               const std::vector<Tensor>& cores,
                               const std::optional<Tensor>& per_sample_weights) {
  STD_TORCH_CHECK(!cores.empty(), op, ": no cores given");
  return OneDevice(op, "cores[0]", cores[0])
      .with("cores", cores)
      .with("indices", indices)
      .with("offsets", offsets)
      .with("per_sample_weights", per_sample_weights);
}

// The call's arguments as kernels take them; keeps the tensors whose memory it names.
struct Call {
  Arguments args;
  Tensor indices, offsets;
  std::vector<Tensor> cores;
  std::optional<Tensor> weights;
  ScalarType type;
  Tables tables;
  Batch batch;
  cudaStream_t stream;
  int device;
  DeviceLimits limits;
  Workspace workspace;
  std::vector<DeviceTable> all_tables;
  DeviceTable* table_buffer = nullptr;
  int* sort_counts = nullptr;
  int* sort_totals = nullptr;

  Call(const Tensor& indices, const Tensor& offsets, const std::vector<Tensor>& cores,
       const std::vector<int64_t>& cores_per_table, const std::vector<int64_t>& num_embeddings,
       const std::vector<int64_t>& pooling_modes, const std::vector<int64_t>& padding_idx,
       const std::optional<Tensor>& per_sample_weights, const OnDevice& device);

  // Takes the parts of the workspace that `take` names.
  template <typename F>
  void lay_out(const F& take) {
    take(workspace);
    workspace.allocate(cores[0]);
    take(workspace);
  }

  bool any_with(int d) const;
  bool any_mean() const;
};

// Takes the plan's parts of the workspace, for these orders.
void layout_plan(Call& call, Workspace& workspace, const std::vector<int>& orders);
// Launches the checks, and the sort into the orders that were laid out.
void make_plan(Call& call);
// Puts tables that do not travel by value into their buffer.
void store_tables(Call& call);

}  // namespace recsys_opt::tt
