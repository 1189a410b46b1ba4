#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>

#include "as_contiguous.h"
#include "dense/pool_rows.h"
#include "dense/sum_gradients.h"
#include "dispatch.h"
#include "empty_on_cpu.h"
#include "tiered/tiered_bag.h"
#include "tiered/translate.h"
#include "tt/tt_update.h"

namespace recsys_opt::tiered {
namespace {

constexpr int64_t kRemapsAhead = 128;  // lookups whose remaps are asked for ahead

template <typename T>
std::vector<PooledRows<T>> tables_of(const std::vector<Tensor>& hot,
                                     const std::vector<Tensor>& cold, const TieredShape& s) {
  std::vector<PooledRows<T>> tables;
  for (int64_t t = 0; t < s.tables; ++t)
    tables.push_back({hot[t].const_data_ptr<T>(), cold[t].const_data_ptr<T>(), s.hot_rows[t],
                      s.rows[t], s.dims[t]});
  return tables;
}

template <typename T>
struct Lookup {
  const TieredShape& shape;
  std::vector<PooledRows<T>> tables;
  const std::vector<Tensor>& remaps;
  const int64_t* offsets;  // null: one id per bag
  const T* factors;        // null: all 1
  const std::vector<int64_t>& mean;
  T* out;

  int64_t start(int64_t bag) const { return offsets ? offsets[bag] : bag; }
};

// Positions of the ids [begin, end) of one table, whose last is before last_id. False, with the
// first bad lookup kept, where an id or its position is outside the table.
template <typename Id, typename Position>
bool find_positions(const Tensor& remap, const Id* ids, int64_t rows, int64_t begin, int64_t end,
                    int64_t last_id, Position* positions, std::atomic<int64_t>& bad) {
  const auto outside = [&](int64_t number) {
    return static_cast<uint64_t>(number) >= static_cast<uint64_t>(rows);
  };
  const auto find = [&](const auto* map) {
    ask_for_remaps(ids, map, rows, std::min(begin + kRemapsAhead, last_id),
                   std::min(end + kRemapsAhead, last_id));
    if (translate(ids, map, rows, begin, end, positions)) return true;
    int64_t k = begin;
    while (!outside(ids[k]) && !outside(map[ids[k]])) ++k;
    keep_smallest(bad, k);
    return false;
  };
  if (remap.numel() > 0) {
    if constexpr (sizeof(Position) == 8) return with_integers(remap, find);
    return find(remap.const_data_ptr<int32_t>());
  }
  // Ids that are positions, beside tables that have remaps.
  for (int64_t k = begin; k < end; ++k) {
    if (outside(ids[k])) {
      keep_smallest(bad, k);
      return false;
    }
    positions[k] = static_cast<Position>(ids[k]);
  }
  return true;
}

// Pools by ids; where positions are wanted, they are written first, block by block and so far ahead
// as rows are asked for, so that remaps are read together. Returns the first bad lookup, or
// kNoLookup.
template <typename T, typename Id, typename Position>
int64_t forward(const Lookup<T>& l, const Id* ids, Position* positions) {
  const TieredShape& s = l.shape;
  std::atomic<int64_t> bad{kNoLookup};
  torch::stable::parallel_for(0, s.batch, kPoolBlock, [&](int64_t begin, int64_t end) {
    std::vector<int64_t> found(s.tables);  // ids of each table before this one have positions
    for (int64_t t = 0; t < s.tables; ++t) found[t] = l.start(t * s.batch + begin);
    for (int64_t block = begin; block < end; block += kPoolBlock)
      for (int64_t t = 0; t < s.tables; ++t) {
        const int64_t stop = std::min(block + kPoolBlock, end), first = t * s.batch;
        const int64_t last_id = l.start(first + end);
        PoolBags<T> bags{l.offsets, l.factors, l.mean[t] != 0, first, block, stop, last_id};
        const auto pool = [&](const auto* numbers) {
          keep_smallest(
              bad, pool_rows(l.tables[t], bags, numbers, l.out + s.first_column[t], s.columns));
        };
        if (!positions) {
          pool(ids);
          continue;
        }
        bags.known = std::min(l.start(first + stop) + kPoolAhead, last_id);
        const int64_t from = found[t];
        if (from < bags.known) found[t] = bags.known;
        if (from >= bags.known ||
            find_positions(l.remaps[t], ids, s.rows[t], from, bags.known, last_id, positions, bad))
          pool(positions);
      }
  });
  return bad.load();
}

// Says which id, or which entry of a remap, lookup k found outside its table.
template <typename T, typename Id>
[[noreturn]] void refuse(const Lookup<T>& l, const Id* ids, int64_t k) {
  const TieredShape& s = l.shape;
  int64_t t = 0;
  while (k >= l.start((t + 1) * s.batch)) ++t;
  const int64_t id = ids[k];
  STD_TORCH_CHECK(id >= 0 && id < s.rows[t], "tiered_bag: indices[", k, "] = ", id,
                  " is outside the ", s.rows[t], " rows of table ", t);
  const Tensor& remap = l.remaps[t];
  const auto position = with_integers(remap, [&](const auto* map) { return int64_t{map[id]}; });
  STD_TORCH_CHECK(false, "tiered_bag: remaps[", t, "][", id, "] = ", position, " is outside the ",
                  s.rows[t], " rows of the table");
  __builtin_unreachable();
}

std::tuple<Tensor, Tensor> tiered_bag_cpu(std::vector<Tensor> hot, std::vector<Tensor> cold,
                                          std::vector<Tensor> remaps, Tensor indices,
                                          std::optional<Tensor> offsets,
                                          std::optional<Tensor> per_sample_weights,
                                          std::vector<int64_t> mean) {
  const char* op = "tiered_bag";
  const TieredShape s =
      check_tiered_args(op, hot, cold, indices, offsets, per_sample_weights, mean);
  const bool remapped = check_remaps(op, remaps, s);
  make_contiguous(indices, offsets, per_sample_weights);
  const int64_t* bounds = offsets_of(offsets, s, op);
  Tensor out = empty_on_cpu({s.batch, s.columns}, hot[0].scalar_type());
  Tensor positions = empty_on_cpu({remapped ? s.ids : 0}, s.positions());
  dispatch_floating(op, hot[0].scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const Lookup<T> lookup{s,
                           tables_of<T>(hot, cold, s),
                           remaps,
                           bounds,
                           per_sample_weights ? per_sample_weights->const_data_ptr<T>() : nullptr,
                           mean,
                           out.mutable_data_ptr<T>()};
    with_integers(indices, [&](const auto* ids) {
      const int64_t bad = with_integers(positions, [&](auto* found) {
        using Position = std::remove_cvref_t<decltype(*found)>;
        return forward(lookup, ids, remapped ? positions.mutable_data_ptr<Position>() : nullptr);
      });
      if (bad != kNoLookup) refuse(lookup, ids, bad);
    });
  });
  return {out, positions};
}

// d out / d per_sample_weights[k] = grad of the bag . row, for the lookups of bags.
template <typename T, typename Position>
void factor_gradients(const GradientBatch<T, Position>& batch,
                      const std::vector<PooledRows<T>>& tables, T* out) {
  const DenseBagShape& s = batch.shape;
  torch::stable::parallel_for(0, s.batch, kPoolBlock, [&](int64_t begin, int64_t end) {
    for (int64_t t = 0; t < s.tables; ++t)
      for (int64_t b = begin; b < end; ++b) {
        const int64_t bag = t * s.batch + b;
        const T* grad = batch.grad + b * s.columns + s.first_column[t];
        for (int64_t k = batch.start(bag); k < batch.start(bag + 1); ++k) {
          const T* row = tables[t][batch.ids[k]];
          T sum = 0;
          for (int64_t d = 0; d < s.dims[t]; ++d) sum += grad[d] * row[d];
          out[k] = sum;
        }
      }
  });
}

// Calls use(batch) with the positions in their type; all are in their tables.
template <typename T, typename Use>
void with_positions(const char* op, const TieredShape& s, const Tensor& positions,
                    const std::optional<Tensor>& offsets, const std::optional<Tensor>& factors,
                    const std::vector<int64_t>& mean, const Tensor& grad, const Use& use) {
  const int64_t* bounds = offsets_of(offsets, s, op);
  const auto run = [&](const auto* ids) {
    const GradientBatch<T, std::remove_cvref_t<decltype(*ids)>> batch{
        s,      ids,
        bounds, factors ? factors->const_data_ptr<T>() : nullptr,
        mean,   grad.const_data_ptr<T>()};
    check_update_ids(op, batch);
    use(batch);
  };
  with_integers(positions, run);
}

Tensor tiered_bag_factor_gradients_cpu(Tensor grad, std::vector<Tensor> hot,
                                       std::vector<Tensor> cold, Tensor positions,
                                       std::optional<Tensor> offsets, Tensor per_sample_weights) {
  const char* op = "tiered_bag_factor_gradients";
  const std::vector<int64_t> mean(hot.size(), 0);
  const TieredShape s =
      check_tiered_factor_args(op, grad, hot, cold, positions, offsets, per_sample_weights);
  make_contiguous(grad, positions, offsets);
  Tensor out = torch::stable::new_zeros(grad, {s.ids});
  dispatch_floating(op, grad.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const auto tables = tables_of<T>(hot, cold, s);
    with_positions<T>(op, s, positions, offsets, std::nullopt, mean, grad, [&](const auto& batch) {
      factor_gradients(batch, tables, out.mutable_data_ptr<T>());
    });
  });
  return out;
}

// A table's rows and their states: two cores whose slices they are.
template <typename T>
struct TieredUpdate {
  tt::CoreUpdate<T> hot, cold;
  int64_t hot_rows;

  void prefetch(int64_t position) const {
    position < hot_rows ? prefetch_row(hot, position) : prefetch_row(cold, position - hot_rows);
  }
  void apply(int64_t position, T* grad) const {
    position < hot_rows ? hot.apply(position, grad) : cold.apply(position - hot_rows, grad);
  }
};

Tensor tiered_bag_backward_update_cpu(Tensor grad, std::vector<Tensor> hot,
                                      std::vector<Tensor> cold, std::vector<Tensor> hot_states,
                                      std::vector<Tensor> cold_states, Tensor positions,
                                      std::optional<Tensor> offsets,
                                      std::optional<Tensor> per_sample_weights,
                                      std::vector<int64_t> mean, bool factors_grad,
                                      int64_t algorithm, Tensor hyperparameters) {
  const char* op = "tiered_bag_backward_update";
  const TieredUpdateArgs args =
      check_tiered_update_args(op, grad, hot, cold, hot_states, cold_states, positions, offsets,
                               per_sample_weights, mean, factors_grad, algorithm, hyperparameters);
  const TieredShape& s = args.shape;
  make_contiguous(grad, positions, offsets, per_sample_weights);
  // The factors' gradients are about the rows as they were.
  Tensor result = factors_grad ? tiered_bag_factor_gradients_cpu(grad, hot, cold, positions,
                                                                 offsets, *per_sample_weights)
                               : empty_on_cpu({0}, grad.scalar_type());
  dispatch_floating(op, grad.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const auto rule = tt::make_rule<T>(args.algorithm, hyperparameters.const_data_ptr<double>());
    std::vector<TieredUpdate<T>> tables;
    for (int64_t t = 0; t < s.tables; ++t) {
      tables.push_back({{&rule, hot[t].mutable_data_ptr<T>(), {}, s.dims[t]},
                        {&rule, cold[t].mutable_data_ptr<T>(), {}, s.dims[t]},
                        s.hot_rows[t]});
      for (int64_t k = 0; k < args.states_per_table; ++k) {
        const int64_t at = t * args.states_per_table + k;
        tables[t].hot.states[k] = hot_states[at].mutable_data_ptr<T>();
        tables[t].cold.states[k] = cold_states[at].mutable_data_ptr<T>();
      }
    }
    with_positions<T>(op, s, positions, offsets, per_sample_weights, mean, grad,
                      [&](const auto& batch) { update_rows(batch, args.owner, tables); });
  });
  return result;
}

}  // namespace
}  // namespace recsys_opt::tiered

STABLE_TORCH_LIBRARY_IMPL(recsys_opt, CPU, m) {
  using namespace recsys_opt::tiered;
  m.impl("tiered_bag", TORCH_BOX(&tiered_bag_cpu));
  m.impl("tiered_bag_factor_gradients", TORCH_BOX(&tiered_bag_factor_gradients_cpu));
  m.impl("tiered_bag_backward_update", TORCH_BOX(&tiered_bag_backward_update_cpu));
}
