#pragma once
// A stable radix sort of lookups by their keys in several orders at once, by device functions that
// work on one tile or one digit: one pass per digit counts the tiles' digits, adds the counts up,
// and moves each lookup to its place. Equal keys keep their order, so the sort is deterministic.
#include "tt_cuda.cuh"

namespace recsys_opt::tt {

constexpr int kRadixBits = 8;
constexpr int kDigits = 1 << kRadixBits;
// Lookups that a block sorts. Batches no larger are planned by one block per order, in one launch.
constexpr int kTile = 2048;
constexpr int kSortThreads = 256;

// What the kernels of the sort share.
struct Sort {
  int64_t count;  // lookups
  int64_t blocks;
  int passes[kOrders];
  int order_of[kOrders];  // blockIdx.y -> order
  int* counts;            // [orders, digits, blocks]
  int* totals;            // [orders, digits]
};

// The sum of the values of the threads before this one; total: of all. Uses warps + 1 ints.
inline __device__ int exclusive_scan(int value, int* shared, int& total) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  int sum = value;
  for (int delta = 1; delta < kWarp; delta *= 2) {
    const int below = warp_shift_up(sum, delta);
    if (lane >= delta) sum += below;
  }
  if (lane == kWarp - 1) shared[warp] = sum;
  __syncthreads();
  int before = 0;
  total = 0;
  for (int w = 0; w < static_cast<int>(blockDim.x) / kWarp; ++w) {
    if (w == warp) before = total;
    total += shared[w];
  }
  __syncthreads();
  return before + sum - value;
}

inline __device__ int digit_of(int64_t key, int pass) {
  return static_cast<int>(key >> (pass * kRadixBits)) & (kDigits - 1);
}

// Where pass `pass` of an order reads: the last pass writes into `sorted`.
inline __device__ bool reads_spare(const Sort& sort, int o, int pass) {
  return (sort.passes[o] - pass) % 2;
}

// counts[digit, block]: how many keys of the tile have the digit.
inline __device__ void count_digits(const Batch& batch, const Sort& sort, int o, int row, int pass,
                                    int64_t block, int* shared) {
  const Order& order = batch.order[o];
  const int64_t* keys = reads_spare(sort, o, pass) ? order.spare_keys : order.sorted_keys;
  for (int x = threadIdx.x; x < kDigits; x += blockDim.x) shared[x] = 0;
  __syncthreads();
  for (int64_t i = block * kTile + threadIdx.x; i < sort.count && i < (block + 1) * kTile;
       i += blockDim.x) {
    atomicAdd(shared + digit_of(keys[i], pass), 1);
  }
  __syncthreads();
  for (int x = threadIdx.x; x < kDigits; x += blockDim.x) {
    sort.counts[(int64_t{row} * kDigits + x) * sort.blocks + block] = shared[x];
  }
}

// counts[digit, b] becomes the sum of those of the blocks before b; totals[digit]: of all.
inline __device__ void add_up_blocks(const Sort& sort, int row, int digit, int* shared) {
  int* counts = sort.counts + (int64_t{row} * kDigits + digit) * sort.blocks;
  int carry = 0;
  for (int64_t first = 0; first < sort.blocks; first += blockDim.x) {
    const int64_t b = first + threadIdx.x;
    int total;
    const int before = exclusive_scan(b < sort.blocks ? counts[b] : 0, shared, total);
    if (b < sort.blocks) counts[b] = carry + before;
    carry += total;
  }
  if (threadIdx.x == 0) sort.totals[row * kDigits + digit] = carry;
}

// Moves a tile's lookups to their places by one digit; equal ones keep their order.
inline __device__ void scatter_tile(const Batch& batch, const Sort& sort, int o, int row, int pass,
                                    int64_t block, int* shared) {
  const Order& order = batch.order[o];
  const bool spare = reads_spare(sort, o, pass);
  const int64_t* keys = spare ? order.spare_keys : order.sorted_keys;
  const int* values = spare ? order.spare : order.sorted;
  int64_t* new_keys = spare ? order.sorted_keys : order.spare_keys;
  int* new_values = spare ? order.sorted : order.spare;
  const int warps = blockDim.x / kWarp, lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  int* base = shared;                  // [digits] where the tile's next key of a digit goes
  int* warp_count = shared + kDigits;  // [warps, digits]
  const int x = threadIdx.x;
  int total;
  const int before =
      exclusive_scan(x < kDigits ? sort.totals[row * kDigits + x] : 0, warp_count, total);
  if (x < kDigits) {
    base[x] = before + sort.counts[(int64_t{row} * kDigits + x) * sort.blocks + block];
  }
  for (int64_t first = block * kTile; first < sort.count && first < (block + 1) * kTile;
       first += blockDim.x) {
    for (int y = x; y < warps * kDigits; y += blockDim.x) warp_count[y] = 0;
    __syncthreads();
    const int64_t i = first + x;
    const bool in = i < sort.count;
    const int64_t key = in ? keys[i] : 0;
    const int digit = digit_of(key, pass);
    const unsigned same = warp_match(in ? digit : kDigits);
    const int rank = count_bits(same & ((1u << lane) - 1));
    if (in && rank == 0) warp_count[warp * kDigits + digit] = count_bits(same);
    __syncthreads();
    if (in) {
      int place = base[digit] + rank;
      for (int w = 0; w < warp; ++w) place += warp_count[w * kDigits + digit];
      new_keys[place] = key;
      new_values[place] = values[i];
    }
    __syncthreads();
    if (x < kDigits) {
      for (int w = 0; w < warps; ++w) base[x] += warp_count[w * kDigits + x];
    }
    __syncthreads();
  }
}

inline int64_t sort_shared_bytes(int threads) {
  return (kDigits + int64_t{threads} / kWarp * kDigits) * static_cast<int64_t>(sizeof(int));
}

}  // namespace recsys_opt::tt
