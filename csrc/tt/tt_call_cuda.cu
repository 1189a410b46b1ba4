// A call's arguments as the kernels take them.
#include <algorithm>

#include "tt_bounds_cuda.cuh"
#include "tt_cuda.cuh"

namespace recsys_opt::tt {
namespace {

Numbers numbers(const Tensor& tensor) {
  return {tensor.const_data_ptr(), tensor.scalar_type() == ScalarType::Int};
}

// How many keys a table has in an order.
int64_t keys_of(const Table& table, int order) {
  if (!takes_part(order, table.d)) return 0;
  const int core = core_of(order, table.d);
  int64_t keys = table.n[core];
  if (order == kTop || order == kInner) {
    for (int k = 0; k < core; ++k) keys *= table.n[k];
  }
  return keys;
}

// Whether the levels' work on core k, laid out in shared memory (tt_level_cuda.cuh), has sizes that
// int holds: the largest tile, rows padded by at most 11.
bool fits_int(const Table& table, int k, int64_t columns) {
  constexpr int64_t kTileRows = 32, kPadding = 11, kChunk = 64, kLargest = (int64_t{1} << 31) - 1;
  const int64_t left_rows = columns / table.q[k];
  const int64_t nodes = std::max<int64_t>(1, kTileRows / left_rows);
  const int64_t left = nodes * left_rows * (table.r[k] + kPadding);
  const int64_t products = nodes * columns * (table.r[k + 1] + kPadding);
  const int64_t slice = table.q[k] * table.r[k] * (table.r[k + 1] + kPadding);
  return left + 2 * products + 2 * slice < kLargest && kChunk * columns < kLargest;
}

DeviceTable device_table(const Table& table, const std::vector<Tensor>& cores) {
  constexpr int64_t kLargest = std::numeric_limits<int>::max();
  DeviceTable t{};
  int64_t dim = 1;
  for (int k = 0; k < table.d; ++k) {
    const Tensor& core = cores[table.first_core + k];
    const int64_t slice = table.q[k] * table.r[k] * table.r[k + 1];
    dim *= table.q[k];
    STD_TORCH_CHECK(table.n[k] < kLargest && fits_int(table, k, dim), "tt_embedding_bag: core ", k,
                    " of a table is [", table.n[k], ", ", table.q[k], ", ", table.r[k], ", ",
                    table.r[k + 1],
                    "]; on CUDA its rows, and the elements of a slice and of a product with room "
                    "to work on them, must be fewer than 2^31");
    t.core[k] = core.const_data_ptr();
    t.n[k] = static_cast<int>(table.n[k]);
    t.q[k] = static_cast<int>(table.q[k]);
    t.r[k] = static_cast<int>(table.r[k]);
    t.r[k + 1] = static_cast<int>(table.r[k + 1]);
    const bool aligned = reinterpret_cast<uintptr_t>(t.core[k]) % 16 == 0 &&
                         slice * element_bytes(core.scalar_type()) % 16 == 0;
    t.aligned |= int{aligned} << k;
  }
  t.num_embeddings = table.num_embeddings;
  t.padding_idx = table.padding_idx;
  t.column = table.column;
  t.first_core = table.first_core;
  t.d = table.d;
  t.mean = table.pooling == Pooling::kMean;
  t.dim = static_cast<int>(table.dim);
  return t;
}

std::vector<Tensor> contiguous(const std::vector<Tensor>& tensors) {
  std::vector<Tensor> result;
  for (const Tensor& tensor : tensors) result.push_back(torch::stable::contiguous(tensor));
  return result;
}

}  // namespace

Call::Call(const Tensor& given_indices, const Tensor& given_offsets,
           const std::vector<Tensor>& given_cores, const std::vector<int64_t>& cores_per_table,
           const std::vector<int64_t>& num_embeddings, const std::vector<int64_t>& pooling_modes,
           const std::vector<int64_t>& padding_idx, const std::optional<Tensor>& per_sample_weights,
           const OnDevice& on_device)
    : args(check_arguments(given_indices, given_offsets, given_cores, cores_per_table,
                           num_embeddings, pooling_modes, padding_idx, per_sample_weights)),
      indices(torch::stable::contiguous(given_indices)),
      offsets(torch::stable::contiguous(given_offsets)),
      cores(contiguous(given_cores)),
      type(given_cores[0].scalar_type()),
      stream(on_device.stream()),
      device(on_device.index()),
      limits(device_limits()) {
  raise_noted_errors(device);
  STD_TORCH_CHECK(offsets.numel() <= std::numeric_limits<int>::max(),
                  "tt_embedding_bag: ", offsets.numel() - 1,
                  " bags in one call; on CUDA at most 2^31 - 2");
  if (per_sample_weights) weights = torch::stable::contiguous(*per_sample_weights);
  batch = Batch{};
  batch.indices = numbers(indices);
  batch.offsets = numbers(offsets);
  batch.num_indices = args.num_indices;
  batch.batch_size = args.batch_size;
  batch.bags = args.batch_size * args.size();
  batch.columns = args.columns;
  batch.weights = weights ? weights->const_data_ptr() : nullptr;
  for (const Table& table : args.tables) {
    DeviceTable t = device_table(table, cores);
    for (int o = 0; o < kOrders; ++o) {
      Order& order = batch.order[o];
      t.key_base[o] = order.keys;
      t.group_base[o] = order.groups;
      order.keys += keys_of(table, o);
      if (takes_part(o, table.d)) order.groups += table.n[core_of(o, table.d)];
      STD_TORCH_CHECK(order.keys >= 0 && order.keys < int64_t{1} << 62 &&
                          order.groups < std::numeric_limits<int>::max(),
                      "tt_embedding_bag: the tables of one call have too many slices or prefixes; "
                      "call it for fewer tables at a time");
    }
    t.owner = static_cast<int>(all_tables.size());
    t.next_shared = -1;
    all_tables.push_back(t);
  }
  tables.count = static_cast<int>(all_tables.size());
  tables.more = nullptr;
}

bool Call::any_with(int d) const {
  for (const DeviceTable& t : all_tables) {
    if (t.d == d) return true;
  }
  return false;
}

bool Call::any_mean() const {
  for (const DeviceTable& t : all_tables) {
    if (t.mean) return true;
  }
  return false;
}

}  // namespace recsys_opt::tt
