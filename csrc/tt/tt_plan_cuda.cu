// The plan of a batch on the device: lookups taken apart and checked, and sorted in several orders
// at once by a stable radix sort, so that lookups that share a slice of a core, and then a prefix,
// lie next to each other. Sorting is deterministic, and so are all sums taken in its orders.
#include <bit>

#include "tt_bounds_cuda.cuh"
#include "tt_sort_cuda.cuh"

namespace recsys_opt::tt {
namespace {

constexpr int kPlanThreads = 1024;

// --- keys ---

// The bag that lookup i is in, or -1. Bags are found whatever the offsets hold.
__device__ int64_t bag_of(const Batch& batch, int64_t i) {
  if (i < batch.bags && batch.offsets[i] == i && batch.offsets[i + 1] == i + 1) return i;
  int64_t low = 0, high = batch.bags;  // offsets[low] <= i < offsets[high], where they are sorted
  while (low + 1 < high) {
    const int64_t middle = (low + high) / 2;
    (batch.offsets[middle] <= i ? low : high) = middle;
  }
  const BagRange range = range_of_bag(batch, low);
  return range.begin <= i && i < range.end ? low : -1;
}

__device__ int64_t key_of(int order, const DeviceTable& table, const Lookup& lookup) {
  const int core = core_of(order, table.d);
  int64_t key = lookup.digit[core];
  if (order == kTop || order == kInner) {
    for (int k = 0; k < core; ++k) key = key * table.n[k] + lookup.digit[k];
  }
  return table.key_base[order] + key;
}

// Thread i: lookup i's record and its keys; offsets[i] checked; the rooms made empty.
__global__ void keys_kernel(const __grid_constant__ Tables tables,
                            const __grid_constant__ Batch batch, const __grid_constant__ Sort sort,
                            BoundsCheck mode, BoundsRecord* record) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < kRooms) batch.taken[i] = 0;
  if (mode != BoundsCheck::kTrust && i <= batch.bags) {
    const int64_t bag = i < batch.bags ? i : i - 1;
    check_offset(batch.offsets, i, batch.num_indices, bag / batch.batch_size, record);
  }
  if (i >= batch.num_indices) return;
  Lookup lookup{};
  lookup.table = -1;
  const int64_t bag = bag_of(batch, i);
  if (bag >= 0) {
    const int t = static_cast<int>(bag / batch.batch_size);
    const DeviceTable& table = tables[t];
    int64_t id = batch.indices[i];
    const bool good = id >= 0 && id < table.num_embeddings;
    if (!good && mode != BoundsCheck::kTrust) {
      note_error(record,
                 {static_cast<int64_t>(BoundsKind::kIndex), i, id, table.num_embeddings, t});
    } else if (id != table.padding_idx) {
      lookup.table = t;
      lookup.bag = static_cast<int>(bag);
      for (int k = table.d - 1; k >= 0; --k) {
        lookup.digit[k] = static_cast<int>(id % table.n[k]);
        id /= table.n[k];
      }
      if (table.mean) atomicAdd(batch.bag_count + bag, 1);
    }
  }
  batch.lookups[i] = lookup;
  for (int o = 0; o < kOrders; ++o) {
    const Order& order = batch.order[o];
    if (!order.used) continue;
    const bool in = lookup.table >= 0 && takes_part(o, tables[lookup.table].d);
    const bool swapped = sort.passes[o] % 2;  // so that the last pass ends in `sorted`
    (swapped ? order.spare_keys : order.sorted_keys)[i] =
        in ? key_of(o, tables[lookup.table], lookup) : order.keys;
    (swapped ? order.spare : order.sorted)[i] = static_cast<int>(i);
  }
}

// --- groups and units ---

__device__ int64_t first_key(const Tables& tables, const Order& order, int o, int64_t group) {
  if (group >= order.groups) return order.keys;
  const DeviceTable& table = tables[table_of_group(tables, o, group)];
  int64_t key = group - table.group_base[o];
  if (o == kTop || o == kInner) {
    for (int k = 0; k < core_of(o, table.d); ++k) key *= table.n[k];
  }
  return table.key_base[o] + key;
}

// group_start[g]: how many lookups come before group g.
__device__ void start_group(const Tables& tables, const Batch& batch, int o, int64_t group) {
  const Order& order = batch.order[o];
  const int64_t key = first_key(tables, order, o, group);
  int64_t low = 0, high = batch.num_indices;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (order.sorted_keys[middle] < key)
      low = middle + 1;
    else
      high = middle;
  }
  order.group_start[group] = low;
}

// unit_start: units before each group; unit_group: the group of each unit. One block.
__device__ void cut_units(const Order& order, int* shared) {
  int64_t carry = 0;
  for (int64_t first = 0; first < order.groups; first += blockDim.x) {
    const int64_t g = first + threadIdx.x;
    const bool in = g < order.groups;
    const int64_t size = in ? order.group_start[g + 1] - order.group_start[g] : 0;
    const int units = static_cast<int>((size + order.run - 1) / order.run);
    int total;
    const int64_t begin = carry + exclusive_scan(units, shared, total);
    if (in) order.unit_start[g] = begin;
    for (int u = 0; u < units; ++u) order.unit_group[begin + u] = static_cast<int>(g);
    carry += total;
  }
  if (threadIdx.x == 0) order.unit_start[order.groups] = carry;
}

__device__ int* shared_ints() {
  return reinterpret_cast<int*>(dynamic_shared());
}

// Blocks of the following kernels: x a tile (a digit, a stretch of groups), y an order.

__global__ void count_kernel(const __grid_constant__ Batch batch, const __grid_constant__ Sort sort,
                             int pass) {
  const int o = sort.order_of[blockIdx.y];
  if (pass < sort.passes[o]) {
    count_digits(batch, sort, o, blockIdx.y, pass, blockIdx.x, shared_ints());
  }
}

__global__ void add_up_kernel(const __grid_constant__ Sort sort, int pass) {
  if (pass < sort.passes[sort.order_of[blockIdx.y]]) {
    add_up_blocks(sort, blockIdx.y, blockIdx.x, shared_ints());
  }
}

__global__ void scatter_kernel(const __grid_constant__ Batch batch,
                               const __grid_constant__ Sort sort, int pass) {
  const int o = sort.order_of[blockIdx.y];
  if (pass < sort.passes[o]) {
    scatter_tile(batch, sort, o, blockIdx.y, pass, blockIdx.x, shared_ints());
  }
}

__global__ void groups_kernel(const __grid_constant__ Tables tables,
                              const __grid_constant__ Batch batch,
                              const __grid_constant__ Sort sort) {
  const int o = sort.order_of[blockIdx.y];
  const int64_t group = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (group <= batch.order[o].groups) start_group(tables, batch, o, group);
}

__global__ void units_kernel(const __grid_constant__ Batch batch,
                             const __grid_constant__ Sort sort) {
  cut_units(batch.order[sort.order_of[blockIdx.x]], shared_ints());
}

// All of the above for a batch of one tile. Block: an order.
__global__ void small_plan_kernel(const __grid_constant__ Tables tables,
                                  const __grid_constant__ Batch batch,
                                  const __grid_constant__ Sort sort) {
  const int row = blockIdx.x, o = sort.order_of[row];
  int* shared = shared_ints();
  for (int pass = 0; pass < sort.passes[o]; ++pass) {
    count_digits(batch, sort, o, row, pass, 0, shared);
    __syncthreads();
    for (int x = threadIdx.x; x < kDigits; x += blockDim.x) {
      sort.totals[row * kDigits + x] = sort.counts[row * kDigits + x];
      sort.counts[row * kDigits + x] = 0;
    }
    __syncthreads();
    scatter_tile(batch, sort, o, row, pass, 0, shared);
    __syncthreads();
  }
  for (int64_t g = threadIdx.x; g <= batch.order[o].groups; g += blockDim.x) {
    start_group(tables, batch, o, g);
  }
  __syncthreads();
  cut_units(batch.order[o], shared);
}

// Copies tables that came by value to their place among all. One block.
__global__ void store_tables_kernel(const __grid_constant__ Tables tables, DeviceTable* to) {
  for (int t = threadIdx.x; t < tables.count; t += blockDim.x) to[t] = tables.by_value[t];
}

}  // namespace

void store_tables(Call& call) {
  const auto count = static_cast<int64_t>(call.all_tables.size());
  if (count <= kTablesByValue) {
    std::copy(call.all_tables.begin(), call.all_tables.end(), call.tables.by_value);
    return;
  }
  for (int64_t first = 0; first < count; first += kTablesByValue) {
    Tables part{};
    part.count = static_cast<int>(std::min<int64_t>(kTablesByValue, count - first));
    std::copy_n(call.all_tables.begin() + first, part.count, part.by_value);
    launch(store_tables_kernel, {1}, kWarp, 0, call.stream, part, call.table_buffer + first);
  }
  call.tables.more = call.table_buffer;
}

void layout_plan(Call& call, Workspace& workspace, const std::vector<int>& orders) {
  Batch& batch = call.batch;
  const int64_t n = batch.num_indices;
  batch.lookups = workspace.take<Lookup>(n);
  batch.taken = workspace.take<unsigned long long>(kRooms);
  if (call.any_mean()) batch.bag_count = workspace.take<int>(batch.bags);
  if (call.args.size() > kTablesByValue) {
    call.table_buffer = workspace.take<DeviceTable>(call.args.size());
  }
  const int64_t run = cuda_settings().run;
  for (int o : orders) {
    Order& order = batch.order[o];
    order.used = true;
    order.run = static_cast<int>(std::min(run, std::max<int64_t>(n, 1)));
    order.max_units = std::min(n, order.groups) + n / order.run;
    order.sorted_keys = workspace.take<int64_t>(n);
    order.spare_keys = workspace.take<int64_t>(n);
    order.sorted = workspace.take<int>(n);
    order.spare = workspace.take<int>(n);
    order.group_start = workspace.take<int64_t>(order.groups + 1);
    order.unit_start = workspace.take<int64_t>(order.groups + 1);
    order.unit_group = workspace.take<int>(order.max_units);
    order.unit_sums = workspace.take<int64_t>(order.max_units);
  }
  const int64_t blocks = std::max<int64_t>(1, ceil_divide(n, kTile));
  call.sort_counts = workspace.take<int>(kOrders * kDigits * blocks);
  call.sort_totals = workspace.take<int>(kOrders * kDigits);
}

void make_plan(Call& call) {
  Batch& batch = call.batch;
  store_tables(call);
  Sort sort{};
  sort.count = batch.num_indices;
  sort.blocks = std::max<int64_t>(1, ceil_divide(sort.count, kTile));
  sort.counts = call.sort_counts;
  sort.totals = call.sort_totals;
  int orders = 0, passes = 0;
  int64_t groups = 0;
  for (int o = 0; o < kOrders; ++o) {
    if (!batch.order[o].used) continue;
    sort.order_of[orders++] = o;
    const int bits = std::bit_width(static_cast<uint64_t>(batch.order[o].keys));
    sort.passes[o] = static_cast<int>(ceil_divide(bits, kRadixBits));
    passes = std::max(passes, sort.passes[o]);
    groups = std::max(groups, batch.order[o].groups);
  }
  if (batch.bag_count) {
    clear_async(batch.bag_count, batch.bags * static_cast<int64_t>(sizeof(int)), call.stream);
  }
  const auto mode = static_cast<BoundsCheck>(cuda_settings().bounds);
  const int64_t threads = std::max(batch.num_indices, batch.bags + 1);
  launch(keys_kernel, {ceil_divide(threads, kSortThreads)}, kSortThreads, 0, call.stream,
         call.tables, batch, sort, mode, bounds_record(call.device));
  if (orders == 0) return;
  if (sort.count <= kTile) {
    launch(small_plan_kernel, {orders}, kPlanThreads, sort_shared_bytes(kPlanThreads), call.stream,
           call.tables, batch, sort);
    return;
  }
  const int64_t bytes = sort_shared_bytes(kSortThreads);
  for (int pass = 0; pass < passes; ++pass) {
    launch(count_kernel, {sort.blocks, orders}, kSortThreads, bytes, call.stream, batch, sort,
           pass);
    launch(add_up_kernel, {kDigits, orders}, kSortThreads, bytes, call.stream, sort, pass);
    launch(scatter_kernel, {sort.blocks, orders}, kSortThreads, bytes, call.stream, batch, sort,
           pass);
  }
  launch(groups_kernel, {ceil_divide(groups + 1, kSortThreads), orders}, kSortThreads, 0,
         call.stream, call.tables, batch, sort);
  launch(units_kernel, {orders}, kPlanThreads, bytes, call.stream, batch, sort);
}

}  // namespace recsys_opt::tt
