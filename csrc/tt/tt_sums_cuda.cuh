#pragma once
// Gradients of slices: sums over the units of an order, then over the partial sums of a slice's
// units, always in the order of the plan.
#include "tt_level_forward_cuda.cuh"

namespace recsys_opt::tt {

constexpr int kSumThreads = 128;

// What the sums of units read. Nodes lie in the slots of a level.
template <typename Acc>
struct UnitSums {
  int order;            // kLast or kFirst
  const int* top_slot;  // [N]
  const int* top_sorted;
  const Acc* products;  // [N, width] of the top level's nodes
  int64_t width;
  const void* grad;          // [B, columns]
  const Acc* top_grad_left;  // [N, top_grad_left_width] of three cores: gradients of core 0
  int64_t top_grad_left_width;
  const int* inner_slot;  // [N] of four cores likewise, from the inner level
  const int* inner_sorted;
  const Acc* inner_grad_left;
  int64_t inner_grad_left_width;
  Acc* partial;  // [max_units, partial_width]
  int64_t partial_width;
};

// Element (j, p) of the last core's slice from lookup i: factor . sum over m of g[m, j] C[m, p]
template <typename T, typename Acc>
inline __device__ Acc last_gradient(const Batch& batch, const DeviceTable& table,
                                    const UnitSums<Acc>& sums, int i, int j, int p, int rows) {
  const int top = table.d - 1, q = table.q[top], r = table.r[top];
  const T* grad = static_cast<const T*>(sums.grad) +
                  batch.lookups[i].bag % batch.batch_size * batch.columns + table.column + j;
  const Acc* product = sums.products + sums.top_slot[i] * sums.width + p;
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
  if ((inner ? sums.inner_sorted : sums.top_sorted)[slot] != i) return Acc(0);
  return inner ? sums.inner_grad_left[slot * sums.inner_grad_left_width + e]
               : sums.top_grad_left[slot * sums.top_grad_left_width + e];
}

// Block: units of the order. Where a slice has fewer elements than the block has threads, several
// threads share an element, each with every so many-th lookup, and their sums are added at the end.
template <typename T, bool kLastCore>
__global__ __launch_bounds__(kSumThreads) void unit_sums_kernel(
    const __grid_constant__ Tables tables, const __grid_constant__ Batch batch,
    const __grid_constant__ UnitSums<Accumulator<T>> sums) {
  using Acc = Accumulator<T>;
  Acc* const shared = reinterpret_cast<Acc*>(dynamic_shared());  // [kSumThreads]
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
      Acc* const to = sums.partial + u * sums.partial_width;
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
  const void* partial;  // [max_units, partial_width] accumulators
  int64_t partial_width;
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
  const Acc* const partial = static_cast<const Acc*>(sums.partial);
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
          total += partial[u * sums.partial_width + e];
        }
      }
      return total;
    };
    rule(ready, slice, touched, sum, reinterpret_cast<Acc*>(dynamic_shared()));
  }
}

}  // namespace recsys_opt::tt
