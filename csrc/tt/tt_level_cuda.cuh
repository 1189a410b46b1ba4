#pragma once
// One level of the tree of products, forward and backward. The prefixes of a batch's ids form a
// tree (tt_plan.h); a level multiplies the products of one length by the slices of the next core:
//
//   C_u = L_u . core[i]     C_u [left_rows, q, r],  L_u [left_rows, r_left],  core[i] [q, r_left,
//   r]
//
// where u is a distinct prefix, a node, that ends in i. A block takes a unit: up to `run` lookups
// whose prefixes end in the same i. Its slice of the core lies in shared memory; per chunk of
// lookups the distinct nodes are found, and a tile of nodes at a time is gathered and multiplied as
// one matrix. At the top level the last core then gives the rows:
//
//   row = C_u . last[i_last]^T     [left_rows q, q_last]
#include "tt_cuda.cuh"
#include "tt_multiply_cuda.cuh"

namespace recsys_opt::tt {

constexpr int kLevelThreads = 128;
constexpr int kLevelBlocks = 4;       // on a multiprocessor: 128 registers a thread
constexpr int kChunk = 64;            // lookups looked at together; two warps load them
constexpr int kTileRows = 32;         // left rows of a tile of nodes, about
constexpr int kPieceElements = 4096;  // of a slice that does not fit into shared memory whole
// Shared memory that a block takes at most where it has the choice: three blocks run on a
// multiprocessor of 228 KB.
constexpr int64_t kSharedTarget = 72 << 10;

// A level's work on one table, and how it lies in shared memory (elements of the accumulator).
struct Tile {
  int core;       // the level multiplies by it
  int left_rows;  // product of the q before it
  int r_left, q, r;
  int rows;                         // of a node's product: left_rows q
  int nodes;                        // of a tile
  int left_stride, product_stride;  // between rows
  bool whole;                       // the slice lies in shared memory whole
  int piece;                        // rows of r_left of one q that lie there otherwise
  bool sums_near;                   // backward: the slice's gradient is summed there too
  int left, products, slice, grad_products, grad_slice, size;  // where the parts begin; all of it

  __host__ __device__ int slice_size() const { return q * r_left * r; }
};

// Rows begin 16 bytes aligned, and 4 banks apart from the rows before.
inline __host__ __device__ int padded(int columns) {
  return (columns + 7) / 8 * 8 + 4;
}

inline __host__ __device__ void lay_out(Tile& tile, bool backward) {
  const int left = tile.nodes * tile.left_rows * tile.left_stride;
  const int products = tile.nodes * tile.rows * tile.product_stride;
  const int slice = (tile.whole ? tile.q * tile.r_left : tile.piece) * tile.product_stride;
  tile.left = 0;
  tile.products = tile.left + left;
  tile.slice = tile.products + products;
  tile.grad_products = tile.slice + slice;
  tile.grad_slice = tile.grad_products + (backward ? products : 0);
  tile.size = tile.grad_slice +
              (backward && tile.sums_near ? tile.q * tile.r_left * tile.product_stride : 0);
}

// The largest tile that stays under the target; the same on the host and on the device.
inline __host__ __device__ Tile tile_of(const DeviceTable& table, int order, bool backward,
                                        int element_bytes) {
  Tile tile{};
  tile.core = core_of(order, table.d);
  tile.left_rows = 1;
  for (int k = 0; k < tile.core; ++k) tile.left_rows *= table.q[k];
  tile.r_left = table.r[tile.core];
  tile.q = table.q[tile.core];
  tile.r = table.r[tile.core + 1];
  tile.rows = tile.left_rows * tile.q;
  tile.left_stride = padded(tile.r_left);
  tile.product_stride = padded(tile.r);
  tile.nodes = kTileRows / tile.left_rows;
  if (tile.nodes < 1) tile.nodes = 1;
  if (tile.core == 0) tile.nodes = 1;  // of two cores the group is the node
  tile.whole = tile.sums_near = true;
  tile.piece = kPieceElements / tile.product_stride;
  if (tile.piece < 1) tile.piece = 1;
  if (tile.piece > tile.r_left) tile.piece = tile.r_left;
  for (;;) {
    lay_out(tile, backward);
    if (int64_t{tile.size} * element_bytes <= kSharedTarget) break;
    if (tile.nodes > 8) {
      tile.nodes /= 2;
    } else if (backward && tile.sums_near) {
      tile.sums_near = false;
    } else if (tile.whole) {
      tile.whole = false;
    } else if (tile.nodes > 1) {
      tile.nodes /= 2;
    } else {
      break;  // more than the target, then: the host checks the device's limit
    }
  }
  return tile;
}

// A chunk of lookups in shared memory, before the tile.
struct Chunk {
  Lookup lookup[kChunk];
  double factor[kChunk];  // of the row
  int index[kChunk];      // in indices
  int node[kChunk];
  int node_begin[kChunk + 1];      // the node's first lookup, of the chunk
  unsigned heads[kChunk / kWarp];  // lookups that begin a node
  int unused;
  int64_t slot;  // of its first node; those of the others follow
  int64_t sums;  // of the unit
};
static_assert(sizeof(Chunk) % 16 == 0);

inline int64_t level_shared_bytes(const Tile& tile, int64_t element_bytes) {
  return static_cast<int64_t>(sizeof(Chunk)) + tile.size * element_bytes;
}

// Elements that a node takes in memory: its product, and behind it the gradient of its left product
// (none where that is 1), each rounded up so that all begin at 16 bytes.
struct NodeRoom {
  int64_t product, left;
};

inline __host__ __device__ NodeRoom node_room(const DeviceTable& table, int order) {
  const int core = core_of(order, table.d);
  int64_t left_rows = 1;
  for (int k = 0; k < core; ++k) left_rows *= table.q[k];
  const int64_t product = left_rows * table.q[core] * table.r[core + 1];
  const int64_t left = core == 0 ? 0 : left_rows * table.r[core];
  return {(product + 3) / 4 * 4, (left + 3) / 4 * 4};
}

// What a level reads and writes besides the plan. A node of a chunk of lookups has a slot in the
// level's room, where its product begins.
template <typename Acc>
struct Level {
  int order;
  // [N] the slot of each lookup's node; ~slot where another lookup of the chunk begins the node.
  // Null: products are not kept.
  int64_t* slot;
  Acc* nodes;  // the room
  bool backward;

  const Acc* left_nodes;  // of the level before; null: there is none
  const int64_t* left_slot;

  // forward, top level
  void* out;  // [B, columns]
  Acc* rows;  // [N, row_width] of lookups that share their bag
  int64_t row_width;

  // backward
  const void* grad;        // [B, columns], at the top
  void* grad_weights;      // [N] or null
  const Acc* upper_nodes;  // of the level above, below the top
  const int64_t* upper_slot;
  Acc* sums;  // of the units' slices

  // Elements of a node's slot.
  __device__ int64_t room(const DeviceTable& table) const {
    const NodeRoom node = node_room(table, order);
    return node.product + (backward ? node.left : 0);
  }
};

// Loads lookups [first, end) of the order, at most a chunk; returns how many distinct nodes.
template <typename T>
inline __device__ int load_chunk(const Batch& batch, const Order& order, const DeviceTable& table,
                                 int64_t first, int64_t end, Chunk& chunk) {
  const int i = threadIdx.x, lane = i % kWarp;
  const int count = static_cast<int>(end - first < kChunk ? end - first : kChunk);
  const bool in = i < count;
  if (i < kChunk) {
    bool head = false;
    if (in) {
      const int64_t place = first + i;
      chunk.index[i] = order.sorted[place];
      chunk.lookup[i] = batch.lookups[chunk.index[i]];
      chunk.factor[i] = factor_of<T>(batch, table, chunk.index[i]);
      head = i == 0 || order.sorted_keys[place] != order.sorted_keys[place - 1];
    }
    const unsigned heads = warp_ballot(head);
    if (lane == 0) chunk.heads[i / kWarp] = heads;
  }
  __syncthreads();
  int nodes = 0;
  for (int w = 0; w < kChunk / kWarp; ++w) {
    if (in && i / kWarp == w) {
      const unsigned mine = chunk.heads[w] & (~0u >> (kWarp - 1 - lane));
      chunk.node[i] = nodes + count_bits(mine) - 1;
      if (chunk.heads[w] >> lane & 1) chunk.node_begin[chunk.node[i]] = i;
    }
    nodes += count_bits(chunk.heads[w]);
  }
  if (i == 0) chunk.node_begin[nodes] = count;
  __syncthreads();
  return nodes;
}

// Notes where the nodes of the chunk lie. A thread writes what it alone has loaded, so the next
// chunk need not wait.
inline __device__ void write_slots(const Chunk& chunk, int nodes, int64_t room, int64_t* slot) {
  const int i = threadIdx.x;
  if (i >= chunk.node_begin[nodes]) return;
  const int node = chunk.node[i];
  const int64_t mine = chunk.slot + node * room;
  slot[chunk.index[i]] = chunk.node_begin[node] == i ? mine : ~mine;
}

inline __device__ int64_t slot_of(const int64_t* slot, int index) {
  const int64_t found = slot[index];
  return found < 0 ? ~found : found;
}

// Copies [rows, columns] next to each other in global memory to shared memory; to be waited for.
template <typename T, typename Acc>
inline __device__ void stage(Acc* to, int stride, const T* from, int rows, int columns,
                             bool aligned) {
  constexpr int kVector = 16 / static_cast<int>(sizeof(Acc));
  if constexpr (std::is_same<T, Acc>::value) {
    if (aligned && columns % kVector == 0) {
      const int per_row = columns / kVector;
      for (int x = threadIdx.x; x < rows * per_row; x += blockDim.x) {
        const int row = x / per_row, column = x % per_row * kVector;
        copy_async<16>(to + row * stride + column, from + int64_t{row} * columns + column);
      }
      return;
    }
  }
  for (int x = threadIdx.x; x < rows * columns; x += blockDim.x) {
    to[x / columns * stride + x % columns] = static_cast<Acc>(from[x]);
  }
}

// Gathers the left products of nodes [begin, end) of the chunk.
template <typename T, typename Acc>
inline __device__ void gather_left(const DeviceTable& table, const Tile& tile,
                                   const Level<Acc>& level, const Chunk& chunk, int begin, int end,
                                   Acc* left) {
  if (tile.core == 0) {  // the product of no core at all
    if (threadIdx.x == 0) left[0] = 1;
    return;
  }
  const int rows = tile.left_rows, size = rows * tile.r_left;
  constexpr int kVector = 16 / static_cast<int>(sizeof(Acc));
  bool by_vector = tile.r_left % kVector == 0;
  if (tile.core == 1) {
    by_vector = by_vector && std::is_same<T, Acc>::value && (table.aligned & 1);
  }
  const int step = by_vector ? kVector : 1, per_node = size / step;
  for (int x = threadIdx.x; x < (end - begin) * per_node; x += blockDim.x) {
    const int node = x / per_node, e = x % per_node * step;
    const int i = chunk.node_begin[begin + node];
    Acc* to = left + (node * rows + e / tile.r_left) * tile.left_stride + e % tile.r_left;
    if (tile.core == 1) {
      const T* from = slice_of<T>(table, 0, chunk.lookup[i].digit[0]) + e;
      if (by_vector)
        copy_async<16>(to, from);
      else
        *to = static_cast<Acc>(*from);
    } else {
      const Acc* from = level.left_nodes + slot_of(level.left_slot, chunk.index[i]) + e;
      if (by_vector)
        copy_async<16>(to, from);
      else
        *to = *from;
    }
  }
}

// For each piece of the slice that shared memory holds at a time: body(j, q's, first row of r_left,
// rows). Ends with all threads in step.
template <typename T, typename Acc, typename Body>
inline __device__ void for_each_piece(const DeviceTable& table, const Tile& tile, const T* slice,
                                      Acc* staged, const Body& body) {
  if (tile.whole) {
    body(0, tile.q, 0, tile.r_left);
    __syncthreads();
    return;
  }
  for (int j = 0; j < tile.q; ++j) {
    for (int p = 0; p < tile.r_left; p += tile.piece) {
      const int rows = tile.r_left - p < tile.piece ? tile.r_left - p : tile.piece;
      stage(staged, tile.product_stride, slice + (int64_t{j} * tile.r_left + p) * tile.r, rows,
            tile.r, (table.aligned >> tile.core & 1) != 0);
      copies_wait();
      __syncthreads();
      body(j, 1, p, rows);
      __syncthreads();
    }
  }
}

// C = L . core[i] for `nodes` nodes.
template <typename T, bool kTensor, typename Acc>
inline __device__ void multiply_level(const DeviceTable& table, const Tile& tile, const T* slice,
                                      int nodes, const Acc* left, Acc* staged, Acc* products) {
  for_each_piece(table, tile, slice, staged, [&](int j, int count, int p, int rows) {
    Multiply s{};
    s.m = nodes * tile.left_rows, s.n = tile.r, s.k = rows;
    s.a_row = tile.left_stride, s.b_row = tile.product_stride;
    s.c_row = tile.q * tile.product_stride;
    s.batches = count, s.b_batch = tile.r_left * tile.product_stride;
    s.c_batch = tile.product_stride;
    s.parts = 1;
    s.add = p > 0;
    multiply<kTensor, false, false>(products + j * tile.product_stride, left + p, staged, s);
  });
}

}  // namespace recsys_opt::tt
