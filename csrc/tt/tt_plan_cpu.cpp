#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "tt_ids.h"
#include "tt_plan.h"

namespace recsys_opt::tt {
namespace {

template <typename Key>
struct Item {
  Key key;
  uint32_t source;
};

// Sorts by key, stable, in passes over its digits. Returns the buffer (items or spare) that holds
// the result.
template <typename Key>
Item<Key>* radix_sort(Item<Key>* items, Item<Key>* spare, int64_t count, int bits) {
  constexpr int widest = 8;  // the ends of 256 runs stay in the L1 cache
  const int passes = std::max(1, (bits + widest - 1) / widest);
  const int width = (bits + passes - 1) / passes;
  const int64_t buckets = int64_t{1} << width;
  std::vector<uint32_t> counts(passes * buckets, 0);
  for (int64_t i = 0; i < count; ++i) {
    for (int p = 0; p < passes; ++p) {
      ++counts[p * buckets + ((items[i].key >> (p * width)) & (buckets - 1))];
    }
  }
  for (int p = 0; p < passes; ++p) {
    uint32_t* at = counts.data() + p * buckets;
    uint32_t sum = 0;
    bool sorted = false;  // all keys have the same digit
    for (int64_t d = 0; d < buckets; ++d) {
      sorted |= at[d] == count;
      sum += std::exchange(at[d], sum);
    }
    if (sorted) continue;
    for (int64_t i = 0; i < count; ++i) {
      spare[at[(items[i].key >> (p * width)) & (buckets - 1)]++] = items[i];
    }
    std::swap(items, spare);
  }
  return items;
}

// Level k from its children's keys (i_0 .. i_{k-1} as one number).
void build_level(const Table& table, int k, const Array<int64_t>& keys, Level& level) {
  const int64_t count = keys.size();
  uint64_t parents = 1;
  for (int j = 0; j + 1 < k; ++j) parents *= table.n[j];
  const Divider last(table.n[k - 1]), by_parents(parents);
  Array<Item<uint64_t>> items(count), spare(count);
  for (int64_t c = 0; c < count; ++c) {
    const auto key = static_cast<uint64_t>(keys[c]);
    const uint64_t parent = last.quotient(key);
    items[c] = {(key - parent * last.divisor()) * parents + parent, static_cast<uint32_t>(c)};
  }
  const int bits = std::bit_width(parents * table.n[k - 1] - 1);
  const Item<uint64_t>* sorted = radix_sort(items.data(), spare.data(), count, bits);

  level.child = Array<int32_t>(count);
  level.child_start = Array<int32_t>(count + 1);
  level.parent_key = Array<int64_t>(count);
  level.group_index = Array<int64_t>(count);
  level.group_start = Array<int32_t>(count + 1);
  for (int64_t c = 0; c < count; ++c) {
    level.child[c] = static_cast<int32_t>(sorted[c].source);
    if (c > 0 && sorted[c].key == sorted[c - 1].key) continue;
    const uint64_t index = by_parents.quotient(sorted[c].key);
    if (level.groups == 0 || level.group_index[level.groups - 1] != static_cast<int64_t>(index)) {
      level.group_index[level.groups] = static_cast<int64_t>(index);
      level.group_start[level.groups++] = static_cast<int32_t>(level.nodes);
    }
    level.parent_key[level.nodes] = static_cast<int64_t>(sorted[c].key - index * parents);
    level.child_start[level.nodes++] = static_cast<int32_t>(c);
  }
  level.group_start[level.groups] = static_cast<int32_t>(level.nodes);
  level.child_start[level.nodes] = static_cast<int32_t>(count);
}

// Key: wide enough for every row number of the table.
template <typename Key, typename Index, typename Offset>
Fault make_plan(const Arguments& args, int64_t t, const Index* indices, const Offset* all_offsets,
                TablePlan& plan) {
  const Table& table = args.tables[t];
  const Fault fault = check_offsets(all_offsets, t, args);
  if (fault.position >= 0) return fault;
  const Offset* offsets = all_offsets + t * args.batch_size;
  plan.begin = offsets[0];
  const int64_t covered = offsets[args.batch_size] - plan.begin;

  // Sort key of id (i_0 .. i_{d-1}): i_{d-2} first (the group), then i_0 .. i_{d-3} (the node),
  // then i_{d-1} (the row).
  const int top = table.d - 1;
  uint64_t parents = 1;
  for (int k = 0; k + 1 < top; ++k) parents *= table.n[k];
  const Divider last(table.n[top]), group(table.n[top - 1]), by_parents(parents);
  Array<Item<Key>> items(covered), spare(covered);
  Array<int32_t> bag_of(covered);
  const bool mean = table.pooling == Pooling::kMean;
  if (mean) plan.bag_size = Array<int32_t>(args.batch_size);
  int64_t count = 0, longest = 0;
  for (int64_t b = 0; b < args.batch_size; ++b) {
    const int64_t before = count;
    for (int64_t i = offsets[b]; i < offsets[b + 1]; ++i) {
      const auto id = static_cast<int64_t>(indices[i]);
      if (id < 0 || id >= table.num_embeddings) return id_fault(table, t, i, id);
      bag_of[i - plan.begin] = static_cast<int32_t>(b);
      const uint64_t prefix = last.quotient(id), parent = group.quotient(prefix);
      const uint64_t node = (prefix - parent * group.divisor()) * parents + parent;
      items[count] = {static_cast<Key>(node * last.divisor() + (id - prefix * last.divisor())),
                      static_cast<uint32_t>(i - plan.begin)};
      count += id != table.padding_idx;
    }
    longest = std::max(longest, count - before);
    if (mean) plan.bag_size[b] = static_cast<int32_t>(count - before);
  }
  plan.lookups = count;
  plan.one_per_bag = longest <= 1;
  const int bits = std::bit_width(parents * table.n[top - 1] * table.n[top] - 1);
  const Item<Key>* sorted = radix_sort(items.data(), spare.data(), count, bits);

  plan.levels.resize(table.d);
  Level& level = plan.levels[top];
  plan.lookup = Array<int32_t>(count);
  plan.bag = Array<int32_t>(count);
  plan.row = Array<int32_t>(count);
  plan.row_node = Array<int32_t>(count);
  plan.row_last = Array<int32_t>(count);
  plan.row_start = Array<int32_t>(count + 1);
  level.parent_key = Array<int64_t>(count);
  level.child_start = Array<int32_t>(count + 1);
  level.group_index = Array<int64_t>(count);
  level.group_start = Array<int32_t>(count + 1);
  plan.row_start[0] = level.child_start[0] = level.group_start[0] = 0;
  // Which lookups begin a row, a node or a group no branch could foresee: the entries of all three
  // are written again with each lookup, the last time with their ends.
  int64_t row = -1, u = -1, g = -1;
  uint64_t key = UINT64_MAX, node = UINT64_MAX, index = UINT64_MAX;
  for (int64_t c = 0; c < count; ++c) {
    const uint64_t next_key = sorted[c].key, next_node = last.quotient(next_key);
    const uint64_t next_index = by_parents.quotient(next_node);
    row += next_key != key;
    u += next_node != node;
    g += next_index != index;
    key = next_key;
    node = next_node;
    index = next_index;
    plan.row_node[row] = static_cast<int32_t>(u);
    plan.row_last[row] = static_cast<int32_t>(key - node * last.divisor());
    plan.row_start[row + 1] = static_cast<int32_t>(c + 1);
    level.parent_key[u] = static_cast<int64_t>(node - index * parents);
    level.child_start[u + 1] = static_cast<int32_t>(row + 1);
    level.group_index[g] = static_cast<int64_t>(index);
    level.group_start[g + 1] = static_cast<int32_t>(u + 1);
    plan.row[c] = static_cast<int32_t>(row);
    plan.lookup[c] = static_cast<int32_t>(sorted[c].source);
  }
  plan.rows = row + 1;
  level.nodes = u + 1;
  level.groups = g + 1;
  for (int64_t c = 0; c < count; ++c) plan.bag[c] = bag_of[plan.lookup[c]];
  if (!plan.one_per_bag) {
    plan.row_of = Array<int32_t>(covered);
    std::fill_n(plan.row_of.data(), covered, -1);
    for (int64_t c = 0; c < count; ++c) plan.row_of[plan.lookup[c]] = plan.row[c];
  }

  for (int k = top - 1; k >= 2; --k) {
    Level& above = plan.levels[k + 1];
    Level& below = plan.levels[k];
    Array<int64_t> keys(above.nodes);
    std::copy_n(above.parent_key.data(), above.nodes, keys.data());
    build_level(table, k, keys, below);
    above.parent = Array<int32_t>(above.nodes);
    for (int64_t u = 0; u < below.nodes; ++u) {
      for (int32_t c = below.child_start[u]; c < below.child_start[u + 1]; ++c) {
        above.parent[below.child[c]] = static_cast<int32_t>(u);
      }
    }
  }
  return fault;
}

template <typename Index, typename Offset>
Fault make_plan(const Arguments& args, int64_t t, const Tensor& indices, const Tensor& offsets,
                TablePlan& plan) {
  const Table& table = args.tables[t];
  const Index* ids = indices.const_data_ptr<Index>();
  const Offset* bounds = offsets.const_data_ptr<Offset>();
  int64_t rows = 1;
  for (int k = 0; k < table.d; ++k) rows *= table.n[k];
  return rows <= UINT32_MAX ? make_plan<uint32_t, Index, Offset>(args, t, ids, bounds, plan)
                            : make_plan<uint64_t, Index, Offset>(args, t, ids, bounds, plan);
}

}  // namespace

Fault make_plan(const Arguments& args, int64_t t, const Tensor& indices, const Tensor& offsets,
                TablePlan& plan) {
  const bool narrow_offsets = offsets.scalar_type() == ScalarType::Int;
  if (indices.scalar_type() == ScalarType::Int) {
    return narrow_offsets ? make_plan<int32_t, int32_t>(args, t, indices, offsets, plan)
                          : make_plan<int32_t, int64_t>(args, t, indices, offsets, plan);
  }
  return narrow_offsets ? make_plan<int64_t, int32_t>(args, t, indices, offsets, plan)
                        : make_plan<int64_t, int64_t>(args, t, indices, offsets, plan);
}

}  // namespace recsys_opt::tt
