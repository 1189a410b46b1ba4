#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "simd.h"
#include "tt_ids.h"
#include "tt_plan.h"

namespace recsys_opt::tt {
namespace {

// What is sorted: a key, and where it comes from. Keys of up to 32 bits share a word with that.
using Narrow = uint64_t;
struct Wide {
  uint64_t key;
  uint32_t source;
};
inline uint64_t key_of(Narrow item) {
  return item >> 32;
}
inline uint64_t key_of(const Wide& item) {
  return item.key;
}
inline int32_t source_of(Narrow item) {
  return static_cast<int32_t>(item);
}
inline int32_t source_of(const Wide& item) {
  return static_cast<int32_t>(item.source);
}
inline void set(Narrow& item, uint64_t key, int64_t source) {
  item = key << 32 | static_cast<uint64_t>(source);
}
inline void set(Wide& item, uint64_t key, int64_t source) {
  item = {key, static_cast<uint32_t>(source)};
}

constexpr int64_t kAhead = 16;  // items

// Sorts by key, of `bits` bits; stable, in passes over digits. Returns the buffer (items or spare)
// that holds the result.
template <typename Item>
Item* sort_items(Item* items, Item* spare, int64_t count, int bits) {
  constexpr int widest = 8;  // the ends of 256 runs stay in the L1 cache
  const int passes = std::max(1, (bits + widest - 1) / widest);
  const int width = (bits + passes - 1) / passes;
  const int64_t runs = int64_t{1} << width;
  const uint64_t mask = runs - 1;
  uint32_t ends[8 << widest];
  std::fill_n(ends, passes * runs, 0u);
  for (int64_t i = 0; i < count; ++i) {
    uint64_t key = key_of(items[i]);
    for (int p = 0; p < passes; ++p, key >>= width) ++ends[p * runs + (key & mask)];
  }
  for (int p = 0; p < passes; ++p) {
    uint32_t* at = ends + p * runs;
    uint32_t sum = 0;
    bool sorted = false;  // all keys have the same digit
    for (int64_t d = 0; d < runs; ++d) {
      sorted |= at[d] == count;
      sum += std::exchange(at[d], sum);
    }
    if (sorted) continue;
    const int shift = p * width;
    // Stores leave a core in order, so that one to a line that is far off holds up all that follow:
    // lines are asked for early.
    int64_t i = 0;
    for (; i + kAhead < count; ++i) {
      const Item item = items[i];
      __builtin_prefetch(spare + at[key_of(items[i + kAhead]) >> shift & mask], 1);
      spare[at[key_of(item) >> shift & mask]++] = item;
    }
    for (; i < count; ++i) spare[at[key_of(items[i]) >> shift & mask]++] = items[i];
    std::swap(items, spare);
  }
  return items;
}

// Bits of the numbers below n.
int bits_below(uint64_t n) {
  return std::bit_width(n - 1);
}

// The sort key of an id (i_0 .. i_{d-1}): i_{d-2} first (the group), then i_0 .. i_{d-3} as one
// number (the parent), then i_{d-1}; each in bits of its own.
struct Keys {
  Divider last, group;
  int last_bits, parent_bits, group_bits;

  explicit Keys(const Table& table)
      : last(table.n[table.d - 1]),
        group(table.n[table.d - 2]),
        last_bits(bits_below(table.n[table.d - 1])),
        group_bits(bits_below(table.n[table.d - 2])) {
    uint64_t parents = 1;
    for (int k = 0; k + 2 < table.d; ++k) parents *= table.n[k];
    parent_bits = bits_below(parents);
  }

  int bits() const { return last_bits + parent_bits + group_bits; }
  uint64_t key(uint64_t id) const {
    return key(id, last.quotient(id), [&](uint64_t prefix) { return group.quotient(prefix); });
  }
  // For ids below 2^31: without branches.
  uint64_t small_key(uint64_t id) const {
    return key(id, last.small_quotient(id),
               [&](uint64_t prefix) { return group.small_quotient(prefix); });
  }

 private:
  template <typename Parent>
  ALWAYS_INLINE uint64_t key(uint64_t id, uint64_t prefix, const Parent& parent_of) const {
    const uint64_t parent = parent_of(prefix);
    return ((prefix - parent * group.divisor()) << parent_bits | parent) << last_bits |
           (id - prefix * last.divisor());
  }
};

// Items of `count` ids. Returns whether all are below `rows`; the items count only then.
template <typename Index>
ALWAYS_INLINE bool make_items_body(const Index* ids, int64_t count, uint64_t rows, const Keys& made,
                                   Narrow* items) {
  const Keys keys = made;
  uint64_t wrong = 0;
  for (int64_t i = 0; i < count; ++i) {
    const auto id = static_cast<uint64_t>(static_cast<int64_t>(ids[i]));
    wrong |= id >= rows ? 1 : 0;
    items[i] = keys.small_key(id) << 32 | static_cast<uint64_t>(i);
  }
  return wrong == 0;
}
SIMD_CLONES bool make_items(const int32_t* ids, int64_t count, uint64_t rows, const Keys& keys,
                            Narrow* items) {
  return make_items_body(ids, count, rows, keys, items);
}
SIMD_CLONES bool make_items(const int64_t* ids, int64_t count, uint64_t rows, const Keys& keys,
                            Narrow* items) {
  return make_items_body(ids, count, rows, keys, items);
}

// Whether every bag has just one index.
template <typename Offset>
ALWAYS_INLINE bool ones_body(const Offset* offsets, int64_t bags) {
  uint64_t other = 0;
  const auto begin = static_cast<int64_t>(offsets[0]);
  for (int64_t b = 1; b <= bags; ++b) other |= static_cast<int64_t>(offsets[b]) ^ (begin + b);
  return other == 0;
}
SIMD_CLONES bool all_ones(const int32_t* offsets, int64_t bags) {
  return ones_body(offsets, bags);
}
SIMD_CLONES bool all_ones(const int64_t* offsets, int64_t bags) {
  return ones_body(offsets, bags);
}

// A level's nodes and groups from its nodes' keys: the last index above `parent_bits` bits of the
// parent. parents: receives the latter.
template <typename Parent>
void number_groups(const uint64_t* keys, int64_t nodes, int parent_bits, Level& level,
                   Parent* parents) {
  const uint64_t mask = (uint64_t{1} << parent_bits) - 1;
  level.nodes = nodes;
  level.group_index = Array<int32_t>(nodes);
  level.group_start = Array<int32_t>(nodes + 1);
  level.group_start[0] = 0;
  int64_t g = -1;
  uint64_t last = UINT64_MAX;
  for (int64_t u = 0; u < nodes; ++u) {
    const uint64_t index = keys[u] >> parent_bits;
    g += index != last;
    last = index;
    parents[u] = static_cast<Parent>(keys[u] & mask);
    level.group_index[g] = static_cast<int32_t>(index);
    level.group_start[g + 1] = static_cast<int32_t>(u + 1);
  }
  level.groups = g + 1;
}

// Level k of a table of four cores from the prefixes of its children.
void build_level(const Table& table, const Array<uint64_t>& prefixes, Level& level, Level& above) {
  const int64_t count = prefixes.size();
  const Divider last(table.n[1]);
  const int parent_bits = bits_below(table.n[0]);
  Array<Wide> items(count), spare(count);
  for (int64_t c = 0; c < count; ++c) {
    const uint64_t parent = last.quotient(prefixes[c]);
    set(items[c], (prefixes[c] - parent * last.divisor()) << parent_bits | parent, c);
  }
  const int bits = parent_bits + bits_below(table.n[1]);
  const Wide* sorted = sort_items(items.data(), spare.data(), count, bits);

  level.child = Array<int32_t>(count);
  level.child_start = Array<int32_t>(count + 1);
  level.child_start[0] = 0;
  above.parent = Array<int32_t>(count);
  Array<uint64_t> keys(count);
  int64_t u = -1;
  for (int64_t c = 0; c < count; ++c) {
    u += c == 0 || sorted[c].key != sorted[c - 1].key;
    keys[u] = sorted[c].key;
    level.child_start[u + 1] = static_cast<int32_t>(c + 1);
    level.child[c] = source_of(sorted[c]);
    above.parent[level.child[c]] = static_cast<int32_t>(u);
  }
  level.parent = Array<int32_t>(count);
  number_groups(keys.data(), u + 1, parent_bits, level, level.parent.data());
}

// The tree over sorted lookups.
template <typename Item>
void build_tree(const Table& table, const Keys& made, const Item* sorted, TablePlan& plan) {
  const int top = table.d - 1;
  const int64_t count = plan.lookups;
  plan.levels.resize(table.d);
  Level& level = plan.levels[top];
  plan.lookup = Array<int32_t>(count);
  plan.row = Array<int32_t>(count);
  plan.row_node = Array<int32_t>(count);
  plan.row_last = Array<int32_t>(count);
  plan.row_start = Array<int32_t>(count + 1);
  level.child_start = Array<int32_t>(count + 1);
  plan.row_start[0] = level.child_start[0] = 0;
  Array<uint64_t> keys(count);
  // Which lookups begin a row or a node no branch could foresee: the entries of both are written
  // again with each lookup, the last time with their ends.
  const int last_bits = made.last_bits;
  const uint64_t mask = (uint64_t{1} << last_bits) - 1;
  int32_t* lookup = plan.lookup.data();
  int32_t* row_of_lookup = plan.row.data();
  int32_t* row_node = plan.row_node.data();
  int32_t* row_last = plan.row_last.data();
  int32_t* row_start = plan.row_start.data();
  int32_t* child_start = level.child_start.data();
  uint64_t* node_keys = keys.data();
  int64_t row = -1, u = -1;
  uint64_t key = UINT64_MAX, node = UINT64_MAX;
  for (int64_t c = 0; c < count; ++c) {
    const uint64_t next_key = key_of(sorted[c]), next_node = next_key >> last_bits;
    row += next_key != key;
    u += next_node != node;
    key = next_key;
    node = next_node;
    node_keys[u] = node;
    child_start[u + 1] = static_cast<int32_t>(row + 1);
    row_of_lookup[c] = static_cast<int32_t>(row);
    row_node[row] = static_cast<int32_t>(u);
    row_last[row] = static_cast<int32_t>(key & mask);
    row_start[row + 1] = static_cast<int32_t>(c + 1);
    lookup[c] = source_of(sorted[c]);
  }
  plan.rows = row + 1;
  level.parent = Array<int32_t>(top > 1 ? u + 1 : 0);
  if (top == 3) {
    Array<uint64_t> parents(u + 1);
    number_groups(keys.data(), u + 1, made.parent_bits, level, parents.data());
    build_level(table, parents, plan.levels[2], level);
  } else if (top == 2) {
    number_groups(keys.data(), u + 1, made.parent_bits, level, level.parent.data());
  } else {
    Array<int32_t> none(u + 1);
    number_groups(keys.data(), u + 1, made.parent_bits, level, none.data());
  }
}

template <typename Item, typename Index, typename Offset>
Fault make_plan(const Table& table, const Keys& keys, int64_t t, const Index* indices,
                const Offset* offsets, int64_t bags, bool ones, TablePlan& plan) {
  plan.begin = offsets[0];
  const int64_t covered = offsets[bags] - plan.begin;
  Array<Item> items(covered), spare(covered);
  const auto rows = static_cast<uint64_t>(table.num_embeddings);
  plan.lookups = covered;
  bool made = false;
  if constexpr (std::is_same_v<Item, Narrow>) {
    if (ones && table.padding_idx < 0) {
      made = make_items(indices + plan.begin, covered, rows, keys, items.data());
    }
  }
  Array<int32_t> bag_of(made ? 0 : covered);
  if (!made) {
    const bool mean = table.pooling == Pooling::kMean;
    if (mean) plan.bag_size = Array<int32_t>(bags);
    int64_t count = 0, longest = 0;
    for (int64_t b = 0; b < bags; ++b) {
      const int64_t before = count;
      for (int64_t i = offsets[b]; i < offsets[b + 1]; ++i) {
        const auto id = static_cast<int64_t>(indices[i]);
        if (static_cast<uint64_t>(id) >= rows) return id_fault(table, t, i, id);
        bag_of[i - plan.begin] = static_cast<int32_t>(b);
        set(items[count], keys.key(id), i - plan.begin);
        count += id != table.padding_idx;
      }
      longest = std::max(longest, count - before);
      if (mean) plan.bag_size[b] = static_cast<int32_t>(count - before);
    }
    plan.lookups = count;
    plan.one_per_bag = longest <= 1;
  }
  build_tree(table, keys, sort_items(items.data(), spare.data(), plan.lookups, keys.bits()), plan);
  if (!ones) {
    plan.bag_of = Array<int32_t>(plan.lookups);
    for (int64_t c = 0; c < plan.lookups; ++c) plan.bag_of[c] = bag_of[plan.lookup[c]];
  }
  if (!plan.one_per_bag) {
    plan.row_of = Array<int32_t>(covered);
    std::fill_n(plan.row_of.data(), covered, -1);
    for (int64_t c = 0; c < plan.lookups; ++c) plan.row_of[plan.lookup[c]] = plan.row[c];
  }
  return {};
}

template <typename Index, typename Offset>
Fault make_plan(const Arguments& args, int64_t t, const Tensor& indices, const Tensor& offsets,
                TablePlan& plan) {
  const Table& table = args.tables[t];
  const Index* ids = indices.const_data_ptr<Index>();
  const Offset* bounds = offsets.const_data_ptr<Offset>() + t * args.batch_size;
  const int64_t bags = args.batch_size;
  const bool ones = bags > 0 && bounds[0] >= 0 && (t > 0 || bounds[0] == 0) &&
                    bounds[0] + bags <= args.num_indices && all_ones(bounds, bags);
  if (!ones) {
    const Fault fault = check_offsets(offsets.const_data_ptr<Offset>(), t, args);
    if (fault.position >= 0) return fault;
  }
  const Keys keys(table);
  return keys.bits() <= 32 && table.num_embeddings <= INT32_MAX
             ? make_plan<Narrow>(table, keys, t, ids, bounds, bags, ones, plan)
             : make_plan<Wide>(table, keys, t, ids, bounds, bags, ones, plan);
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
