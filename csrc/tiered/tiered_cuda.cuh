#pragma once
// What the CUDA kernels of tables in two tiers share. Hot rows are in the GPU's memory, cold ones
// in pinned host memory that the kernels read and write in place. A call runs the same launches for
// any number of tables. Ids, offsets and positions out of range are treated as those of tensor
// trains are, by the same setting (tt/tt_bounds_cuda.cuh).
#include <algorithm>
#include <vector>

#include "hot_rows/launch_cuda.h"
#include "tiered/tiered_bag.h"
#include "tt/tt_cuda.cuh"

namespace recsys_opt::tiered {

using hot_rows::blocks_for;
using hot_rows::Bounds;
using hot_rows::kThreads;
using hot_rows::Numbers;
using hot_rows::numbers;
using tt::BoundsKind;
using tt::Grid;
using tt::launch;
using tt::OnDevice;

// One feature's table.
struct DeviceTable {
  void* hot;
  void* cold;
  void* hot_state[2];
  void* cold_state[2];
  Numbers remap;  // no data: ids are positions
  int64_t hot_rows, rows;
  int64_t key_base;  // in an update: the first key of the table's rows
  int dim, column;
  int owner;  // in an update: the first feature with the same table
  bool mean;
  bool vectors;  // rows and their places in the output begin at 16 bytes

  template <typename T>
  __device__ T* row(int64_t position) const {
    return position < hot_rows ? static_cast<T*>(hot) + position * dim
                               : static_cast<T*>(cold) + (position - hot_rows) * dim;
  }
  // The numbers of state s that belong to a row, `columns` each.
  template <typename T>
  __device__ T* state(int s, int64_t position, int columns) const {
    return position < hot_rows ? static_cast<T*>(hot_state[s]) + position * columns
                               : static_cast<T*>(cold_state[s]) + (position - hot_rows) * columns;
  }
};

// Tables that travel in the kernels' parameters; more of them lie in a buffer.
constexpr int kTablesByValue = 24;

struct Tables {
  const DeviceTable* more;  // all tables, where they do not fit below
  DeviceTable by_value[kTablesByValue];

  __device__ const DeviceTable& operator[](int64_t t) const { return more ? more[t] : by_value[t]; }
};

struct Batch {
  Numbers ids;  // indices in a forward pass, positions in a backward pass
  hot_rows::Bags bags;
  const void* factors;  // [N] or null
  int64_t count;        // N
  int64_t tables, batch, columns;
};

// ids: indices or positions; all contiguous.
inline Batch batch_of(const Tensor& ids, const std::optional<Tensor>& offsets,
                      const std::optional<Tensor>& factors, const TieredShape& s) {
  return {numbers(ids),
          hot_rows::bags(offsets, s.ids),
          factors ? factors->const_data_ptr() : nullptr,
          s.ids,
          s.tables,
          s.batch,
          s.columns};
}

// --- host functions of tiered_bag_cuda.cu ---

// The tables of a call; where there are many, in a tensor that must live as long as the launches.
struct TableList {
  std::vector<DeviceTable> all;
  std::optional<Tensor> buffer;

  Tables on_device(const Tensor& like, const OnDevice& device);
};

TableList tables_of(const std::vector<Tensor>& hot, const std::vector<Tensor>& cold,
                    const std::vector<int64_t>& mean, const TieredShape& s, bool vectors);

// d out / d per_sample_weights, [N]; grad is that of out.
Tensor tiered_bag_factor_gradients_cuda(Tensor grad, std::vector<Tensor> hot,
                                        std::vector<Tensor> cold, Tensor positions,
                                        std::optional<Tensor> offsets, Tensor per_sample_weights);

// Refuses cold rows that the GPU cannot read in place.
void check_pinned(const char* op, const char* name, const std::vector<Tensor>& tensors);

}  // namespace recsys_opt::tiered
