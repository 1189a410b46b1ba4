#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "tt_plan.h"

namespace recsys_opt::tt {
namespace {

// Division by a number known only at run time, as one multiplication where the dividend has 32
// bits.
class Divider {
 public:
  explicit Divider(uint64_t divisor)
      : divisor_(divisor), magic_(divisor > 1 ? UINT64_MAX / divisor + 1 : 0) {}
  uint64_t quotient(uint64_t x) const {
    if (divisor_ == 1) return x;
    if ((x | divisor_) >> 32) return x / divisor_;
    return static_cast<uint64_t>((static_cast<unsigned __int128>(magic_) * x) >> 64);
  }
  uint64_t divisor() const { return divisor_; }

 private:
  uint64_t divisor_;
  uint64_t magic_;
};

template <typename Key>
struct Item {
  Key key;
  uint32_t source;
};

// Sorts by key, stable, in passes over its digits. Returns the buffer (items or spare) that holds
// the result.
template <typename Key>
Item<Key>* radix_sort(Item<Key>* items, Item<Key>* spare, int64_t count, int bits) {
  const int widest = count < 4096 ? 8 : 12;
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

// Checks the offsets of the feature's bags. Returns false with a fault when they are not usable.
// Ids before the first bag are refused; those after the last are of no bag, as nn.EmbeddingBag's
// include_last_offset has it.
template <typename Offset>
bool check_offsets(const Offset* offsets, int64_t t, const Arguments& args, Fault& fault) {
  const Offset* at = offsets + t * args.batch_size;
  for (int64_t b = 0; b <= args.batch_size; ++b) {
    const int64_t position = t * args.batch_size + b;
    if (at[b] < 0 || at[b] > args.num_indices) {
      fault = {position, "offsets[" + std::to_string(position) + "] = " + std::to_string(at[b]) +
                             " is outside the " + std::to_string(args.num_indices) + " indices"};
      return false;
    }
    if (position == 0 && at[0] != 0) {
      fault = {0, "offsets[0] = " + std::to_string(at[0]) + "; the first bag must start at 0"};
      return false;
    }
    if (b > 0 && at[b] < at[b - 1]) {
      fault = {position, "offsets[" + std::to_string(position) + "] = " + std::to_string(at[b]) +
                             " is less than offsets[" + std::to_string(position - 1) +
                             "] = " + std::to_string(at[b - 1])};
      return false;
    }
  }
  return true;
}

// Key: wide enough for every row number of the table.
template <typename Key, typename Index, typename Offset>
Fault make_plan(const Arguments& args, int64_t t, const Index* indices, const Offset* all_offsets,
                TablePlan& plan) {
  const Table& table = args.tables[t];
  Fault fault;
  if (!check_offsets(all_offsets, t, args, fault)) return fault;
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
  for (int64_t b = 0; b < args.batch_size; ++b) {
    const int64_t before = plan.lookups;
    for (int64_t i = offsets[b]; i < offsets[b + 1]; ++i) {
      const auto id = static_cast<int64_t>(indices[i]);
      if (id < 0 || id >= table.num_embeddings) {
        return {i, "indices[" + std::to_string(i) + "] = " + std::to_string(id) +
                       " is outside the table's " + std::to_string(table.num_embeddings) +
                       " rows (table " + std::to_string(t) + ")"};
      }
      bag_of[i - plan.begin] = static_cast<int32_t>(b);
      if (id == table.padding_idx) continue;
      const uint64_t prefix = last.quotient(id), parent = group.quotient(prefix);
      const uint64_t node = (prefix - parent * group.divisor()) * parents + parent;
      items[plan.lookups++] = {
          static_cast<Key>(node * last.divisor() + (id - prefix * last.divisor())),
          static_cast<uint32_t>(i - plan.begin)};
    }
    plan.one_per_bag &= plan.lookups - before <= 1;
    if (mean) plan.bag_size[b] = static_cast<int32_t>(plan.lookups - before);
  }
  const int bits = std::bit_width(parents * table.n[top - 1] * table.n[top] - 1);
  const Item<Key>* sorted = radix_sort(items.data(), spare.data(), plan.lookups, bits);

  plan.levels.resize(table.d);
  Level& level = plan.levels[top];
  const int64_t count = plan.lookups;
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
  if (!plan.one_per_bag) {
    plan.row_of = Array<int32_t>(covered);
    std::fill_n(plan.row_of.data(), covered, -1);
  }
  uint64_t node = UINT64_MAX, group_index = UINT64_MAX;
  for (int64_t c = 0; c < count; ++c) {
    const uint64_t key = sorted[c].key;
    if (c == 0 || key != sorted[c - 1].key) {
      const uint64_t row_node = last.quotient(key);
      if (row_node != node) {
        node = row_node;
        const uint64_t index = by_parents.quotient(node);
        if (index != group_index) {
          group_index = index;
          level.group_index[level.groups] = static_cast<int64_t>(index);
          level.group_start[level.groups++] = static_cast<int32_t>(level.nodes);
        }
        level.parent_key[level.nodes] = static_cast<int64_t>(node - index * parents);
        level.child_start[level.nodes++] = static_cast<int32_t>(plan.rows);
      }
      plan.row_node[plan.rows] = static_cast<int32_t>(level.nodes - 1);
      plan.row_last[plan.rows] = static_cast<int32_t>(key - node * last.divisor());
      plan.row_start[plan.rows++] = static_cast<int32_t>(c);
    }
    plan.lookup[c] = static_cast<int32_t>(sorted[c].source);
    plan.bag[c] = bag_of[sorted[c].source];
    plan.row[c] = static_cast<int32_t>(plan.rows - 1);
    if (!plan.one_per_bag) plan.row_of[sorted[c].source] = static_cast<int32_t>(plan.rows - 1);
  }
  level.group_start[level.groups] = static_cast<int32_t>(level.nodes);
  level.child_start[level.nodes] = static_cast<int32_t>(plan.rows);
  plan.row_start[plan.rows] = static_cast<int32_t>(count);

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
