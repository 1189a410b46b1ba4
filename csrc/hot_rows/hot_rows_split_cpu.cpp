// hot_rows_split and hot_rows_directory on the CPU.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <tuple>

#include "as_contiguous.h"
#include "hot_rows/hot_rows.h"
#include "hot_rows/offsets_cpu.h"

namespace recsys_opt::hot_rows {
namespace {

constexpr int64_t kBagsPerBlock = 1024;
constexpr int64_t kAhead = 8;  // lookups whose first probe is asked for ahead

struct Table {
  const int64_t* keys;
  const int32_t* directory;
  int64_t mask, num_embeddings, padding_idx;
};

// Fills slots[begin, end) and counts the cold ones. Returns the position of the first id outside
// the table, or `end`.
template <typename Index>
int64_t look_up(const Table& table, const Index* indices, int64_t begin, int64_t end,
                int32_t* slots, int64_t& cold) {
  const auto rows = static_cast<uint64_t>(table.num_embeddings);
  for (int64_t k = begin; k < end; ++k) {
    if (k + kAhead < end)
      __builtin_prefetch(table.directory + (mix(indices[k + kAhead]) & table.mask));
    const auto id = static_cast<int64_t>(indices[k]);
    if (static_cast<uint64_t>(id) >= rows) return k;
    const int32_t slot =
        id == table.padding_idx ? kPadding : find(id, table.keys, table.directory, table.mask);
    slots[k] = slot;
    cold += slot == kCold;
  }
  return end;
}

template <typename Index>
void split(const Shape& s, const std::vector<Table>& tables, const Index* indices,
           const int64_t* offsets, int32_t* slots, Index* cold_indices, int64_t* cold_offsets,
           int64_t* cold_positions) {
  std::atomic<int64_t> bad{std::numeric_limits<int64_t>::max()};
  const auto start = [&](int64_t bag) { return offsets ? offsets[bag] : bag; };
  // First every block's number of cold ids, then, from their sums, where they go.
  const int64_t blocks = (s.bags() + kBagsPerBlock - 1) / kBagsPerBlock;
  std::vector<int64_t> first(blocks + 1, 0);
  torch::stable::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t last_bag = std::min((block + 1) * kBagsPerBlock, s.bags());
      for (int64_t bag = block * kBagsPerBlock; bag < last_bag;) {
        const int64_t t = bag / s.batch, stop = std::min(last_bag, (t + 1) * s.batch);
        const int64_t reached =
            look_up(tables[t], indices, start(bag), start(stop), slots, first[block + 1]);
        if (reached < start(stop)) {
          int64_t seen = bad.load();
          while (reached < seen && !bad.compare_exchange_weak(seen, reached)) {
          }
          return;
        }
        bag = stop;
      }
    }
  });
  if (const int64_t k = bad.load(); k < s.ids) {
    int64_t t = 0;
    while (k >= start((t + 1) * s.batch)) ++t;
    STD_TORCH_CHECK(false, "hot_rows_split: indices[", k, "] = ", static_cast<int64_t>(indices[k]),
                    " is outside the table's ", tables[t].num_embeddings, " rows (table ", t, ")");
  }
  for (int64_t block = 0; block < blocks; ++block) first[block + 1] += first[block];
  cold_offsets[0] = 0;
  torch::stable::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      int64_t to = first[block];
      const int64_t last_bag = std::min((block + 1) * kBagsPerBlock, s.bags());
      for (int64_t bag = block * kBagsPerBlock; bag < last_bag; ++bag) {
        for (int64_t k = start(bag); k < start(bag + 1); ++k) {
          if (to == first[block + 1]) break;  // what follows is another block's
          // Written in any case, and kept if cold: a branch would be guessed wrong too often.
          cold_indices[to] = indices[k];
          cold_positions[to] = k;
          to += slots[k] == kCold;
        }
        cold_offsets[bag + 1] = to;
      }
    }
  });
  const int64_t cold = first[blocks];
  std::fill(slots + start(s.bags()), slots + s.ids, kPadding);
  std::fill(cold_indices + cold, cold_indices + s.ids, Index(0));
  std::fill(cold_positions + cold, cold_positions + s.ids, 0);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> hot_rows_split_cpu(Tensor indices,
                                                              std::optional<Tensor> offsets,
                                                              std::vector<Tensor> keys,
                                                              std::vector<Tensor> directories,
                                                              std::vector<int64_t> num_embeddings,
                                                              std::vector<int64_t> padding_idx) {
  const Shape s = check_split(indices, offsets, keys, directories, num_embeddings, padding_idx);
  make_contiguous(indices, offsets);
  const int64_t* bounds = offsets ? offsets->const_data_ptr<int64_t>() : nullptr;
  if (bounds) check_offsets("hot_rows_split", bounds, s);
  std::vector<Table> tables;
  for (int64_t t = 0; t < s.tables; ++t)
    tables.push_back({keys[t].const_data_ptr<int64_t>(), directories[t].const_data_ptr<int32_t>(),
                      directories[t].numel() - 1, num_embeddings[t], padding_idx[t]});
  Tensor slots = torch::stable::new_empty(indices, {s.ids}, ScalarType::Int);
  Tensor cold_indices = torch::stable::new_empty(indices, {s.ids});
  Tensor cold_offsets = torch::stable::new_empty(indices, {s.bags() + 1}, ScalarType::Long);
  Tensor cold_positions = torch::stable::new_empty(indices, {s.ids}, ScalarType::Long);
  const auto run = [&](auto zero) {
    using Index = decltype(zero);
    split<Index>(s, tables, indices.const_data_ptr<Index>(), bounds,
                 slots.mutable_data_ptr<int32_t>(), cold_indices.mutable_data_ptr<Index>(),
                 cold_offsets.mutable_data_ptr<int64_t>(),
                 cold_positions.mutable_data_ptr<int64_t>());
  };
  if (indices.scalar_type() == ScalarType::Int)
    run(int32_t{});
  else
    run(int64_t{});
  return {slots, cold_indices, cold_offsets, cold_positions};
}

void hot_rows_directory_cpu(Tensor directory, Tensor keys) {
  check_directory("hot_rows_directory_", 0, keys, directory);
  const int64_t* key = keys.const_data_ptr<int64_t>();
  auto* entry = directory.mutable_data_ptr<int32_t>();
  const int64_t mask = directory.numel() - 1;
  std::fill_n(entry, directory.numel(), -1);
  for (int64_t slot = 0; slot < keys.numel(); ++slot) {
    if (key[slot] < 0) continue;
    uint64_t at = mix(key[slot]) & mask;
    for (; entry[at] >= 0; at = (at + 1) & mask)
      STD_TORCH_CHECK(key[entry[at]] != key[slot], "hot_rows_directory_: keys[", entry[at],
                      "] and keys[", slot, "] are both ", key[slot]);
    entry[at] = static_cast<int32_t>(slot);
  }
}

}  // namespace
}  // namespace recsys_opt::hot_rows

STABLE_TORCH_LIBRARY_IMPL(recsys_opt, CPU, m) {
  m.impl("hot_rows_split", TORCH_BOX(&recsys_opt::hot_rows::hot_rows_split_cpu));
  m.impl("hot_rows_directory_", TORCH_BOX(&recsys_opt::hot_rows::hot_rows_directory_cpu));
}
