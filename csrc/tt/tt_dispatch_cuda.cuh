#pragma once
// What the forward and the backward pass share on the host: element types, sizes of buffers, and
// the launch of a level.
#include <algorithm>

#include "tt_bounds_cuda.cuh"
#include "tt_level_cuda.cuh"

namespace recsys_opt::tt {

// Calls f(T{}, std::bool_constant<tensor cores?>{}). fp32 products are exact unless the setting
// tf32 says otherwise; those of half-precision cores, exact in tf32, always take the tensor cores.
template <typename F>
void dispatch(ScalarType type, F&& f) {
  if (type == ScalarType::Float) {
    if (cuda_settings().tf32)
      f(float{}, std::true_type{});
    else
      f(float{}, std::false_type{});
  } else if (type == ScalarType::Double) {
    f(double{}, std::false_type{});
  } else if (type == ScalarType::Half) {
    f(torch::headeronly::Half{}, std::true_type{});
  } else if (type == ScalarType::BFloat16) {
    f(torch::headeronly::BFloat16{}, std::true_type{});
  } else {
    STD_TORCH_CHECK(false, "tt_embedding_bag: cores must be float32, float64, float16 or bfloat16");
  }
}

// Elements of a node's product at a level, or of its left product, over all tables; rounded up so
// that every slot begins at 16 bytes.
inline int64_t product_width(const Call& call, int order, bool left = false) {
  int64_t width = 0;
  for (const DeviceTable& t : call.all_tables) {
    if (!takes_part(order, t.d)) continue;
    const Tile tile = tile_of(t, order, false, 4);
    const int64_t product = int64_t{tile.rows} * tile.r;
    const int64_t before = int64_t{tile.left_rows} * tile.r_left;
    width = std::max(width, left ? before : product);
  }
  return ceil_divide(width, 4) * 4;
}

// Elements of an order's largest slice.
inline int64_t slice_width(const Call& call, int order) {
  int64_t width = 0;
  for (const DeviceTable& t : call.all_tables) {
    if (!takes_part(order, t.d)) continue;
    const int k = core_of(order, t.d);
    width = std::max(width, int64_t{t.q[k]} * t.r[k] * t.r[k + 1]);
  }
  return width;
}

// Elements of the largest product in a lookup's chain.
inline int64_t direct_buffer(const Call& call) {
  int64_t size = 0;
  for (const DeviceTable& t : call.all_tables) {
    int64_t rows = 1;
    for (int k = 0; k < t.d; ++k) {
      rows *= t.q[k];
      size = std::max(size, rows * t.r[k + 1]);
    }
  }
  return size;
}

inline int64_t direct_shared_bytes(const Call& call, int64_t element_bytes) {
  int64_t dim = 0;
  for (const DeviceTable& t : call.all_tables) dim = std::max<int64_t>(dim, t.dim);
  return (2 * direct_buffer(call) + dim) * element_bytes;
}

// Blocks that take turns at an order's units: no more than run at once.
inline int64_t unit_blocks(const Call& call, int order) {
  constexpr int64_t kBlocksPerMultiprocessor = 16;
  return std::min(call.batch.order[order].max_units,
                  call.limits.multiprocessors * kBlocksPerMultiprocessor);
}

template <typename Acc, typename Kernel>
void launch_level(Kernel kernel, const Call& call, const Level<Acc>& level, bool backward) {
  int64_t bytes = 0;
  for (size_t t = 0; t < call.all_tables.size(); ++t) {
    if (!takes_part(level.order, call.all_tables[t].d)) continue;
    const Tile tile = tile_of(call.all_tables[t], level.order, backward, sizeof(Acc));
    const int64_t needed = level_shared_bytes(tile, sizeof(Acc));
    STD_TORCH_CHECK(needed <= call.limits.shared_bytes, "tt_embedding_bag: table ", t, " needs ",
                    needed, " bytes of shared memory for one product of its cores, a block has ",
                    call.limits.shared_bytes, "; choose lower ranks or more cores");
    bytes = std::max(bytes, needed);
  }
  launch(kernel, {unit_blocks(call, level.order)}, kLevelThreads, bytes, call.stream, call.tables,
         call.batch, level);
}

}  // namespace recsys_opt::tt
