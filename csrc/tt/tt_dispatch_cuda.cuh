#pragma once
// What the forward and the backward pass share on the host: element types, sizes of buffers, and
// the launch of a level.
#include <algorithm>
#include <cmath>

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

// How much a table takes of a room that the tables of a call share: `width` elements for each of
// its first `things` lookups, then `width` for every `each`-th.
struct Share {
  int64_t width, things;
  double each;
};

// The most elements that `lookups` lookups can take, however they are divided among the tables: how
// many a table has only the device knows. Each goes where the next one costs most.
inline int64_t most_elements(int64_t lookups, const std::vector<Share>& shares) {
  struct Part {
    double cost;  // of a lookup
    int64_t lookups;
  };
  std::vector<Part> parts;
  for (const Share& share : shares) {
    const double later = 1 / share.each;
    // Things are min(lookups, `things` + lookups / each).
    const double full = later < 1 ? std::ceil(static_cast<double>(share.things) / (1 - later)) : 0;
    const auto width = static_cast<double>(share.width);
    const bool all = later >= 1 || full >= static_cast<double>(lookups);
    parts.push_back({width, all ? lookups : static_cast<int64_t>(full)});
    if (!all) parts.push_back({width * later, lookups});
  }
  std::sort(parts.begin(), parts.end(),
            [](const Part& a, const Part& b) { return a.cost > b.cost; });
  int64_t left = lookups, total = 0;
  for (const Part& part : parts) {
    const int64_t taken = std::min(left, part.lookups);
    total += static_cast<int64_t>(std::ceil(part.cost * static_cast<double>(taken)));
    left -= taken;
  }
  return total;
}

// Elements of the nodes of a level. A table has no more nodes than prefixes, but for those that a
// chunk or a unit cuts.
inline int64_t most_in_nodes(const Call& call, int order, bool backward) {
  const double run = call.batch.order[order].run;
  std::vector<Share> shares;
  for (const DeviceTable& t : call.all_tables) {
    if (!takes_part(order, t.d)) continue;
    int64_t prefixes = 1;
    for (int k = 0; k <= core_of(order, t.d); ++k) prefixes *= t.n[k];
    const NodeRoom room = node_room(t, order);
    shares.push_back(
        {room.product + (backward ? room.left : 0), prefixes, 1 / (1.0 / kChunk + 1 / run)});
  }
  return most_elements(call.batch.num_indices, shares);
}

// Elements of the sums of an order's units: of a slice each. A table has no more units than slices,
// but for those of slices with more lookups than a unit holds.
inline int64_t most_in_sums(const Call& call, int order) {
  const double run = call.batch.order[order].run;
  std::vector<Share> shares;
  for (const DeviceTable& t : call.all_tables) {
    if (!takes_part(order, t.d)) continue;
    const int k = core_of(order, t.d);
    shares.push_back({int64_t{t.q[k]} * t.r[k] * t.r[k + 1], t.n[k], run});
  }
  return most_elements(call.batch.num_indices, shares);
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
