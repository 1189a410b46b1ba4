#pragma once
// The forward pass of a level: products of nodes, kept for the next level, or, at the top, rows.
#include "tt_level_cuda.cuh"

namespace recsys_opt::tt {

// The shared memory of a block, cut up.
template <typename Acc>
struct Parts {
  Chunk* chunk;
  Acc *left, *products, *slice, *grad_products, *grad_slice;

  __device__ explicit Parts(const Tile& tile) {
    unsigned char* memory = dynamic_shared();
    chunk = reinterpret_cast<Chunk*>(memory);
    Acc* rest = reinterpret_cast<Acc*>(memory + sizeof(Chunk));
    left = rest + tile.left;
    products = rest + tile.products;
    slice = rest + tile.slice;
    grad_products = rest + tile.grad_products;
    grad_slice = rest + tile.grad_slice;
  }
};

// A unit of an order: which lookups, of which slice of which table.
struct Unit {
  int64_t begin, end;  // in the order
  int table;
  int64_t index;  // of the slice
};

inline __device__ Unit unit_at(const Tables& tables, const Batch& batch, int o, int64_t u) {
  const Order& order = batch.order[o];
  const int64_t group = order.unit_group[u];
  Unit unit;
  unit.begin = order.group_start[group] + (u - order.unit_start[group]) * order.run;
  unit.end = order.group_start[group + 1];
  if (unit.end > unit.begin + order.run) unit.end = unit.begin + order.run;
  const Lookup& lookup = batch.lookups[order.sorted[unit.begin]];
  unit.table = lookup.table;
  unit.index = lookup.digit[core_of(o, tables[lookup.table].d)];
  return unit;
}

// Whether no other lookup shares the bag, so that the row is the output.
inline __device__ bool alone_in_bag(const Batch& batch, int bag) {
  return batch.offsets[bag + 1] - batch.offsets[bag] == 1;
}

// Rows of the lookups [begin, end) of the chunk, whose nodes' products begin at node `first`:
//   row[m, j] = factor . sum over p of C_u[m, p] last[i_last][j, p]
// A thread takes one column j of four rows m at a time.
template <typename T, typename Acc>
inline __device__ void write_rows(const Batch& batch, const DeviceTable& table, const Tile& tile,
                                  const Level<Acc>& level, const Chunk& chunk, int begin, int end,
                                  int first, const Acc* products) {
  constexpr int kRows = 4;
  const int top = table.d - 1, q = table.q[top], r = tile.r, stride = tile.product_stride;
  const int blocks = (tile.rows + kRows - 1) / kRows;
  for (int x = threadIdx.x; x < (end - begin) * blocks * q; x += blockDim.x) {
    const int j = x % q, m0 = x / q % blocks * kRows, i = begin + x / (q * blocks);
    const Lookup& lookup = chunk.lookup[i];
    const T* last = slice_of<T>(table, top, lookup.digit[top]) + j * r;
    const Acc* product = products + ((chunk.node[i] - first) * tile.rows + m0) * stride;
    const int rows = tile.rows - m0 < kRows ? tile.rows - m0 : kRows;
    Acc sum[kRows] = {};
    for (int p = 0; p < r; ++p) {
      const Acc right = static_cast<Acc>(last[p]);
#pragma unroll
      for (int m = 0; m < kRows; ++m) {
        if (m < rows) sum[m] += product[m * stride + p] * right;
      }
    }
    const Acc factor = static_cast<Acc>(chunk.factor[i]);
    const bool alone = alone_in_bag(batch, lookup.bag);
    T* out =
        static_cast<T*>(level.out) + (lookup.bag % batch.batch_size) * batch.columns + table.column;
    Acc* row = level.rows + chunk.index[i] * level.row_width;
#pragma unroll
    for (int m = 0; m < kRows; ++m) {
      if (m >= rows) continue;
      const int e = (m0 + m) * q + j;
      if (alone)
        out[e] = static_cast<T>(factor * sum[m]);
      else
        row[e] = factor * sum[m];
    }
  }
}

// Products of the chunk's nodes [begin, end) to their slots.
template <typename Acc>
inline __device__ void write_products(const Tile& tile, const Level<Acc>& level, const Chunk& chunk,
                                      int64_t room, int begin, int end, const Acc* products) {
  const int size = tile.rows * tile.r;
  for (int x = threadIdx.x; x < (end - begin) * size; x += blockDim.x) {
    const int node = x / size, e = x % size;
    level.nodes[chunk.slot + (begin + node) * room + e] =
        products[(node * tile.rows + e / tile.r) * tile.product_stride + e % tile.r];
  }
}

// Block: units u = blockIdx.x, + gridDim.x, ...  kTopLevel: writes rows; else products.
template <typename T, bool kTensor, bool kTopLevel>
__global__ __launch_bounds__(kLevelThreads, kLevelBlocks) void level_forward_kernel(
    const __grid_constant__ Tables tables, const __grid_constant__ Batch batch,
    const __grid_constant__ Level<Accumulator<T>> level) {
  using Acc = Accumulator<T>;
  const Order& order = batch.order[level.order];
  const int64_t units = order.unit_start[order.groups];
  for (int64_t u = blockIdx.x; u < units; u += gridDim.x) {
    const Unit unit = unit_at(tables, batch, level.order, u);
    const DeviceTable& table = tables[unit.table];
    const Tile tile = tile_of(table, level.order, false, sizeof(Acc));
    const Parts<Acc> parts(tile);
    const T* slice = slice_of<T>(table, tile.core, unit.index);
    const int64_t room = level.room(table);
    if (tile.whole) {
      stage(parts.slice, tile.product_stride, slice, tile.q * tile.r_left, tile.r,
            (table.aligned >> tile.core & 1) != 0);
    }
    for (int64_t first = unit.begin; first < unit.end; first += kChunk) {
      const int nodes = load_chunk<T>(batch, order, table, first, unit.end, *parts.chunk);
      if (!kTopLevel && threadIdx.x == 0) {
        parts.chunk->slot = take_room(batch, room_of_nodes(level.order), nodes * room);
      }
      for (int begin = 0; begin < nodes; begin += tile.nodes) {
        const int end = begin + tile.nodes < nodes ? begin + tile.nodes : nodes;
        gather_left<T>(table, tile, level, *parts.chunk, begin, end, parts.left);
        copies_wait();
        __syncthreads();
        multiply_level<T, kTensor>(table, tile, slice, end - begin, parts.left, parts.slice,
                                   parts.products);
        if constexpr (kTopLevel) {
          write_rows<T>(batch, table, tile, level, *parts.chunk, parts.chunk->node_begin[begin],
                        parts.chunk->node_begin[end], begin, parts.products);
        } else {
          write_products(tile, level, *parts.chunk, room, begin, end, parts.products);
        }
        __syncthreads();
      }
      if constexpr (!kTopLevel) write_slots(*parts.chunk, nodes, room, level.slot);
    }
  }
}

// Bags that the top level did not write: sums of several rows, in the order of the lookups, and
// zeros of bags that hold nothing. A thread takes an element of a bag.
template <typename T>
__global__ void pool_kernel(const __grid_constant__ Tables tables,
                            const __grid_constant__ Batch batch,
                            const Accumulator<T>* __restrict__ rows, int64_t row_width, T* out) {
  using Acc = Accumulator<T>;
  // Thread (x, y) of the block: element x of bag y.
  const int width = 16, lane = threadIdx.x % width;
  for (int64_t c = int64_t{blockIdx.x} * (blockDim.x / width) + threadIdx.x / width; c < batch.bags;
       c += int64_t{gridDim.x} * (blockDim.x / width)) {
    const auto [begin, end] = range_of_bag(batch, c);
    const auto in_bag = [&](int64_t i) {
      return batch.lookups[i].table >= 0 && batch.lookups[i].bag == c;
    };
    if (end - begin == 1 && in_bag(begin)) continue;
    const DeviceTable& table = tables[static_cast<int>(c / batch.batch_size)];
    for (int e = lane; e < table.dim; e += width) {
      Acc sum = 0;
      for (int64_t i = begin; i < end; ++i) {
        if (in_bag(i)) sum += rows[i * row_width + e];
      }
      out[c % batch.batch_size * batch.columns + table.column + e] = static_cast<T>(sum);
    }
  }
}

// The lookup without a plan, for small batches: block c computes bag c, each lookup's chain of
// products on its own, from the left. Two buffers of `buffer` elements hold a product and the next;
// the third, the sum.
constexpr int kDirectThreads = 128;

template <typename T>
__global__ __launch_bounds__(kDirectThreads) void direct_kernel(
    const __grid_constant__ Tables tables, const __grid_constant__ Batch batch, int buffer,
    T* out) {
  using Acc = Accumulator<T>;
  Acc* const shared = reinterpret_cast<Acc*>(dynamic_shared());
  const int64_t c = blockIdx.x;
  const DeviceTable& table = tables[static_cast<int>(c / batch.batch_size)];
  Acc* const sum = shared + 2 * buffer;
  for (int e = threadIdx.x; e < table.dim; e += blockDim.x) sum[e] = 0;
  const auto [begin, end] = range_of_bag(batch, c);
  for (int64_t i = begin; i < end; ++i) {
    const Lookup& lookup = batch.lookups[i];
    if (lookup.table < 0 || lookup.bag != c) continue;
    const T* first = slice_of<T>(table, 0, lookup.digit[0]);
    Acc* product = shared;
    Acc* next = shared + buffer;
    int rows = table.q[0];
    for (int e = threadIdx.x; e < rows * table.r[1]; e += blockDim.x) {
      product[e] = static_cast<Acc>(first[e]);
    }
    __syncthreads();
    for (int k = 1; k < table.d; ++k) {
      const int q = table.q[k], r_left = table.r[k], r = table.r[k + 1];
      const T* slice = slice_of<T>(table, k, lookup.digit[k]);
      for (int e = threadIdx.x; e < rows * q * r; e += blockDim.x) {
        const int column = e % r, j = e / r % q, m = e / (r * q);
        Acc value = 0;
        for (int p = 0; p < r_left; ++p) {
          value += product[m * r_left + p] * static_cast<Acc>(slice[(j * r_left + p) * r + column]);
        }
        next[e] = value;
      }
      __syncthreads();
      Acc* const previous = product;
      product = next;
      next = previous;
      rows *= q;
    }
    const Acc factor = factor_of<T>(batch, table, static_cast<int>(i));
    for (int e = threadIdx.x; e < table.dim; e += blockDim.x) sum[e] += factor * product[e];
    __syncthreads();
  }
  T* const to = out + c % batch.batch_size * batch.columns + table.column;
  for (int e = threadIdx.x; e < table.dim; e += blockDim.x) to[e] = static_cast<T>(sum[e]);
}

}  // namespace recsys_opt::tt
