#pragma once
// Gradients of slices: sums over the units of an order, then over the partial sums of a slice's
// units, always in the order of the plan.
#include "tt_level_forward_cuda.cuh"

namespace recsys_opt::tt {

constexpr int kSumThreads = 128;

inline int64_t sum_shared_bytes(int64_t element_bytes) {
  return 16 + kSumThreads * element_bytes;
}

// What the sums of units read: the nodes of the top level, and of the inner one of four cores.
template <typename Acc>
struct UnitSums {
  int order;                // kLast or kFirst
  const int64_t* top_slot;  // [N]
  const Acc* top_nodes;
  const void* grad;  // [B, columns]
  const int64_t* inner_slot;
  const Acc* inner_nodes;
  Acc* sums;  // of the units
};

// Element (j, p) of the last core's slice from lookup i: factor . sum over m of g[m, j] C[m, p]
template <typename T, typename Acc>
inline __device__ Acc last_gradient(const Batch& batch, const DeviceTable& table,
                                    const UnitSums<Acc>& sums, int i, int j, int p, int rows) {
  const int top = table.d - 1, q = table.q[top], r = table.r[top];
  const T* grad = static_cast<const T*>(sums.grad) +
                  batch.lookups[i].bag % batch.batch_size * batch.columns + table.column + j;
  const Acc* product = sums.top_nodes + slot_of(sums.top_slot, i) + p;
  Acc sum = 0;
  for (int m = 0; m < rows; ++m) sum += static_cast<Acc>(grad[m * q]) * product[m * r];
  return factor_of<T>(batch, table, i) * sum;
}

// Element e of core 0's slice from lookup i, if i begins a node.
template <typename Acc>
inline __device__ Acc first_gradient(const DeviceTable& table, const UnitSums<Acc>& sums, int i,
                                     int e) {
  const bool inner = table.d == 4;
  const int64_t slot = (inner ? sums.inner_slot : sums.top_slot)[i];
  if (slot < 0) return Acc(0);
  const int64_t product = node_room(table, inner ? kInner : kTop).product;
  return (inner ? sums.inner_nodes : sums.top_nodes)[slot + product + e];
}

// Block: units of the order. Where a slice has fewer elements than the block has threads, several
// threads share an element, each with every so many-th lookup, and their sums are added at the end.
template <typename T, bool kLastCore>
__global__ __launch_bounds__(kSumThreads) void unit_sums_kernel(
    const __grid_constant__ Tables tables, const __grid_constant__ Batch batch,
    const __grid_constant__ UnitSums<Accumulator<T>> sums) {
  using Acc = Accumulator<T>;
  int64_t* const begin = reinterpret_cast<int64_t*>(dynamic_shared());  // of the unit's sums
  Acc* const shared = reinterpret_cast<Acc*>(dynamic_shared() + 16);    // [kSumThreads]
  const Order& order = batch.order[sums.order];
  const int64_t units = order.unit_start[order.groups];
  for (int64_t u = blockIdx.x; u < units; u += gridDim.x) {
    const Unit unit = unit_at(tables, batch, sums.order, u);
    const DeviceTable& table = tables[unit.table];
    const int core = kLastCore ? table.d - 1 : 0;
    const int size = table.q[core] * table.r[core] * table.r[core + 1];
    int rows = 1;
    for (int k = 0; k < table.d - 1; ++k) rows *= table.q[k];
    const int sharers = size < kSumThreads ? kSumThreads / size : 1;
    __syncthreads();  // the unit before is done with what follows
    if (threadIdx.x == 0) {
      *begin = take_room(batch, room_of_sums(sums.order), size);
      order.unit_sums[u] = *begin;
    }
    __syncthreads();
    Acc* const to = sums.sums + *begin;
    for (int first = 0; first < size; first += kSumThreads) {
      const int e = sharers > 1 ? threadIdx.x % size : first + threadIdx.x;
      const int sharer = sharers > 1 ? threadIdx.x / size : 0;
      Acc sum = 0;
      if (e < size && sharer < sharers) {
        for (int64_t at = unit.begin + sharer; at < unit.end; at += sharers) {
          const int i = order.sorted[at];
          if constexpr (kLastCore) {
            sum +=
                last_gradient<T>(batch, table, sums, i, e / table.r[core], e % table.r[core], rows);
          } else {
            sum += first_gradient(table, sums, i, e);
          }
        }
      }
      if (sharers == 1) {
        if (e < size) to[e] = sum;
        continue;
      }
      shared[threadIdx.x] = sum;
      __syncthreads();
      if (threadIdx.x < size) {
        for (int s = 1; s < sharers; ++s) sum += shared[s * size + threadIdx.x];
        to[threadIdx.x] = sum;
      }
      __syncthreads();
    }
  }
}

// Finished gradients of slices are handed to a rule: rule(slice, touched, sum, shared), where
// sum(e) is element e's gradient, 0 in slices that no lookup used.
struct SliceSums {
  int order;
  const void* sums;  // accumulators
};

// A slice of a core, as a rule sees it. begin: its first element in the core.
struct Slice {
  const DeviceTable* table;
  int core;
  int64_t index, begin;
  int size;
};

// The rule of the plain backward pass: writes the gradient, zeros included.
template <typename T>
struct WriteGradient {
  struct Ready {};
  __device__ Ready prepare() const { return {}; }

  template <typename Sum, typename Acc>
  __device__ void operator()(const Ready&, const Slice& slice, bool, const Sum& sum, Acc*) const {
    T* const to = static_cast<T*>(slice.table->grad[slice.core]) + slice.begin;
    for (int e = threadIdx.x; e < slice.size; e += blockDim.x) to[e] = static_cast<T>(sum(e));
  }
};

// Block: groups of the order, each a slice: its gradient is the sum of its units' partial sums, and
// of those of the tables that share the core.
template <typename T, typename Rule>
__global__ __launch_bounds__(kSumThreads) void slices_kernel(const __grid_constant__ Tables tables,
                                                             const __grid_constant__ Batch batch,
                                                             const __grid_constant__ SliceSums sums,
                                                             const __grid_constant__ Rule rule) {
  using Acc = Accumulator<T>;
  const Order& order = batch.order[sums.order];
  const Acc* const partial = static_cast<const Acc*>(sums.sums);
  const auto ready = rule.prepare();
  for (int64_t g = blockIdx.x; g < order.groups; g += gridDim.x) {
    const int first = table_of_group(tables, sums.order, g);
    const DeviceTable& table = tables[first];
    if (table.owner != first) continue;
    Slice slice;
    slice.table = &table;
    slice.core = core_of(sums.order, table.d);
    slice.index = g - table.group_base[sums.order];
    slice.size = table.q[slice.core] * table.r[slice.core] * table.r[slice.core + 1];
    slice.begin = slice.index * slice.size;
    bool touched = false;
    for (int t = first; t >= 0; t = tables[t].next_shared) {
      const int64_t group = tables[t].group_base[sums.order] + slice.index;
      touched = touched || order.unit_start[group + 1] > order.unit_start[group];
    }
    const auto sum = [&](int e) {
      Acc total = 0;
      for (int t = first; t >= 0; t = tables[t].next_shared) {
        const int64_t group = tables[t].group_base[sums.order] + slice.index;
        for (int64_t u = order.unit_start[group]; u < order.unit_start[group + 1]; ++u) {
          total += partial[order.unit_sums[u] + e];
        }
      }
      return total;
    };
    rule(ready, slice, touched, sum, reinterpret_cast<Acc*>(dynamic_shared()));
  }
}

}  // namespace recsys_opt::tt
