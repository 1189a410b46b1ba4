#pragma once
// The backward pass of a level. With E_u the gradient of node u's product C_u [left_rows, q, r]:
//
//   grad core[i][j] += L_u^T . E_u[:, j]            summed over the unit's nodes
//   grad L_u         = sum over j of E_u[:, j] . core[i][j]^T
//
// At the top, E_u is summed over the node's lookups, with g the gradient of the row times the row's
// factor:  E_u[m, p] += sum over j of g[m, j] last[i_last][j, p]. Below, over the nodes above that
// have u as their prefix. C_u is kept for the gradient of the last core (tt_sums_cuda.cuh).
#include "tt_level_forward_cuda.cuh"

namespace recsys_opt::tt {

// E of nodes [begin, end) at the top level. A thread takes an element of a node.
template <typename T, typename Acc>
inline __device__ void add_up_rows(const Batch& batch, const DeviceTable& table, const Tile& tile,
                                   const Level<Acc>& level, const Chunk& chunk, int begin, int end,
                                   Acc* grad_products) {
  const int top = table.d - 1, q = table.q[top], r = tile.r, size = tile.rows * r;
  for (int x = threadIdx.x; x < (end - begin) * size; x += blockDim.x) {
    const int node = begin + x / size, m = x % size / r, p = x % r;
    Acc sum = 0;
    for (int i = chunk.node_begin[node]; i < chunk.node_begin[node + 1]; ++i) {
      const Lookup& lookup = chunk.lookup[i];
      const T* last = slice_of<T>(table, top, lookup.digit[top]) + p;
      const T* grad = static_cast<const T*>(level.grad) +
                      lookup.bag % batch.batch_size * batch.columns + table.column + m * q;
      Acc product = 0;
      for (int j = 0; j < q; ++j) {
        product += static_cast<Acc>(grad[j]) * static_cast<Acc>(last[j * r]);
      }
      sum += static_cast<Acc>(chunk.factor[i]) * product;
    }
    grad_products[((node - begin) * tile.rows + m) * tile.product_stride + p] = sum;
  }
}

// The same below the top: the sum over the lookups that begin a node of the level above.
template <typename Acc>
inline __device__ void add_up_nodes(const DeviceTable& table, const Tile& tile,
                                    const Level<Acc>& level, const Chunk& chunk, int begin, int end,
                                    Acc* grad_products) {
  const int size = tile.rows * tile.r;
  const int64_t upper_product = node_room(table, kTop).product;
  for (int x = threadIdx.x; x < (end - begin) * size; x += blockDim.x) {
    const int node = begin + x / size, e = x % size;
    Acc sum = 0;
    for (int i = chunk.node_begin[node]; i < chunk.node_begin[node + 1]; ++i) {
      const int64_t slot = level.upper_slot[chunk.index[i]];
      if (slot >= 0) sum += level.upper_nodes[slot + upper_product + e];
    }
    grad_products[((node - begin) * tile.rows + e / tile.r) * tile.product_stride + e % tile.r] =
        sum;
  }
}

// grad_weights[i] = row(i) . grad. A thread takes a lookup.
template <typename T, typename Acc>
inline __device__ void write_weight_gradients(const Batch& batch, const DeviceTable& table,
                                              const Tile& tile, const Level<Acc>& level,
                                              const Chunk& chunk, int begin, int end, int first,
                                              const Acc* products) {
  const int top = table.d - 1, q = table.q[top], r = tile.r;
  for (int i = begin + threadIdx.x; i < end; i += blockDim.x) {
    const Lookup& lookup = chunk.lookup[i];
    const T* last = slice_of<T>(table, top, lookup.digit[top]);
    const T* grad = static_cast<const T*>(level.grad) +
                    lookup.bag % batch.batch_size * batch.columns + table.column;
    const Acc* product = products + (chunk.node[i] - first) * tile.rows * tile.product_stride;
    Acc sum = 0;
    for (int m = 0; m < tile.rows; ++m) {
      for (int j = 0; j < q; ++j) {
        Acc row = 0;
        for (int p = 0; p < r; ++p) {
          row += product[m * tile.product_stride + p] * static_cast<Acc>(last[j * r + p]);
        }
        sum += row * static_cast<Acc>(grad[m * q + j]);
      }
    }
    static_cast<T*>(level.grad_weights)[chunk.index[i]] = static_cast<T>(sum);
  }
}

// Adds L^T . E of the tile's nodes to the gradient of the slice, wherever that is summed.
template <bool kTensor, typename Acc>
inline __device__ void add_slice_gradient(const Tile& tile, int nodes, const Acc* left,
                                          const Acc* grad_products, Acc* sums, int stride,
                                          bool add) {
  Multiply s{};
  s.m = tile.r_left, s.n = tile.r, s.k = nodes * tile.left_rows;
  s.a_row = tile.left_stride, s.b_row = tile.q * tile.product_stride, s.c_row = stride;
  s.batches = tile.q, s.b_batch = tile.product_stride, s.c_batch = tile.r_left * stride;
  s.parts = 1;
  s.add = add;
  multiply<kTensor, true, false>(sums, left, grad_products, s);
}

// grad L of the tile's nodes, into the place of L.
template <typename T, bool kTensor, typename Acc>
inline __device__ void multiply_back(const DeviceTable& table, const Tile& tile, const T* slice,
                                     int nodes, const Acc* grad_products, Acc* staged,
                                     Acc* grad_left) {
  for_each_piece(table, tile, slice, staged, [&](int j, int count, int p, int rows) {
    Multiply s{};
    s.m = nodes * tile.left_rows, s.n = rows, s.k = tile.r;
    s.a_row = tile.q * tile.product_stride, s.b_row = tile.product_stride;
    s.c_row = tile.left_stride;
    s.batches = 1;
    s.parts = count, s.a_part = tile.product_stride;
    s.b_part = tile.r_left * tile.product_stride;
    s.add = j > 0;
    multiply<kTensor, false, true>(grad_left + p, grad_products + j * tile.product_stride, staged,
                                   s);
  });
}

// Block: units u = blockIdx.x, + gridDim.x, ...
template <typename T, bool kTensor, bool kTopLevel>
__global__ __launch_bounds__(kLevelThreads, kLevelBlocks) void level_backward_kernel(
    const __grid_constant__ Tables tables, const __grid_constant__ Batch batch,
    const __grid_constant__ Level<Accumulator<T>> level) {
  using Acc = Accumulator<T>;
  const Order& order = batch.order[level.order];
  const int64_t units = order.unit_start[order.groups];
  for (int64_t u = blockIdx.x; u < units; u += gridDim.x) {
    const Unit unit = unit_at(tables, batch, level.order, u);
    const DeviceTable& table = tables[unit.table];
    const Tile tile = tile_of(table, level.order, true, sizeof(Acc));
    const Parts<Acc> parts(tile);
    const Chunk& chunk = *parts.chunk;
    const T* slice = slice_of<T>(table, tile.core, unit.index);
    const int64_t room = level.room(table), product_room = node_room(table, level.order).product;
    if (threadIdx.x == 0) {
      parts.chunk->sums = take_room(batch, room_of_sums(level.order), tile.slice_size());
      order.unit_sums[u] = parts.chunk->sums;
    }
    __syncthreads();
    Acc* const partial = level.sums + chunk.sums;
    Acc* const sums = tile.sums_near ? parts.grad_slice : partial;
    const int sums_stride = tile.sums_near ? tile.product_stride : tile.r;
    bool add = false;
    if (tile.whole) {
      stage(parts.slice, tile.product_stride, slice, tile.q * tile.r_left, tile.r,
            (table.aligned >> tile.core & 1) != 0);
    }
    for (int64_t first = unit.begin; first < unit.end; first += kChunk) {
      const int nodes = load_chunk<T>(batch, order, table, first, unit.end, *parts.chunk);
      if (threadIdx.x == 0) {
        parts.chunk->slot = kTopLevel ? take_room(batch, room_of_nodes(level.order), nodes * room)
                                      : level.slot[chunk.index[0]];  // as the forward pass has it
      }
      for (int begin = 0; begin < nodes; begin += tile.nodes) {
        const int end = begin + tile.nodes < nodes ? begin + tile.nodes : nodes;
        gather_left<T>(table, tile, level, chunk, begin, end, parts.left);
        if constexpr (kTopLevel) {
          add_up_rows<T>(batch, table, tile, level, chunk, begin, end, parts.grad_products);
        } else {
          add_up_nodes(table, tile, level, chunk, begin, end, parts.grad_products);
        }
        copies_wait();
        __syncthreads();
        if constexpr (kTopLevel) {
          multiply_level<T, kTensor>(table, tile, slice, end - begin, parts.left, parts.slice,
                                     parts.products);
          write_products(tile, level, chunk, room, begin, end, parts.products);
          if (level.grad_weights) {
            write_weight_gradients<T>(batch, table, tile, level, chunk, chunk.node_begin[begin],
                                      chunk.node_begin[end], begin, parts.products);
          }
        }
        add_slice_gradient<kTensor>(tile, end - begin, parts.left, parts.grad_products, sums,
                                    sums_stride, add);
        add = true;
        __syncthreads();
        if (tile.core == 0) continue;
        multiply_back<T, kTensor>(table, tile, slice, end - begin, parts.grad_products, parts.slice,
                                  parts.left);
        const int size = tile.left_rows * tile.r_left;
        for (int x = threadIdx.x; x < (end - begin) * size; x += blockDim.x) {
          const int node = x / size, e = x % size;
          level.nodes[chunk.slot + (begin + node) * room + product_room + e] =
              parts.left[(node * tile.left_rows + e / tile.r_left) * tile.left_stride +
                         e % tile.r_left];
        }
        __syncthreads();
      }
      if constexpr (kTopLevel) write_slots(chunk, nodes, room, level.slot);
    }
    if (!tile.sums_near) continue;
    for (int x = threadIdx.x; x < tile.slice_size(); x += blockDim.x) {
      partial[x] = sums[x / tile.r * sums_stride + x % tile.r];
    }
    __syncthreads();
  }
}

}  // namespace recsys_opt::tt
