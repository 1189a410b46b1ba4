#pragma once
// Lookup and pooling in tables whose rows are in two tiers behind one index space (RecShard, ASPLOS
// 2022, has them in HBM and in host memory that the GPU reads in place).
//
//   hot[t]              [H_t, D_t]   the rows of the positions 0 .. H_t - 1, on the indices' device
//   cold[t]             [C_t, D_t]   the rows of the positions H_t .. H_t + C_t - 1, in host memory
//   remaps[t]           [H_t + C_t]  position of each id, int32 where it fits, else int64; or [0]:
//                                    the ids are positions
//   indices             [N] int32 or int64, feature-major
//   offsets             [T * B + 1] int64; none: one id per bag, N = T * B
//   per_sample_weights  [N]
//   mean                [T] 1 where the rows of a bag are averaged, 0 where they are summed
//   out                 [B, sum D_t]
//   positions           [N] of the ids, for the backward pass; [0] where no table has a remap: the
//                       indices are the positions. int32 where all tables' rows fit, else int64.
//                       Those of ids that are of no bag are not set.
//
// Features may share a table: they then have the same tensors.
#include <limits>

#include "dense/dense_bag_update.h"

namespace recsys_opt::tiered {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The type of positions in a table of so many rows.
inline ScalarType position_type(int64_t rows) {
  return rows <= std::numeric_limits<int32_t>::max() ? ScalarType::Int : ScalarType::Long;
}

struct TieredShape : DenseBagShape {  // rows: of both tiers
  std::vector<int64_t> hot_rows;

  // The type of the op's positions.
  ScalarType positions() const {
    return position_type(*std::max_element(rows.begin(), rows.end()));
  }
};

// The only place where the arguments of the tiered lookups are checked.
inline TieredShape check_tiered_args(const char* op, const std::vector<Tensor>& hot,
                                     const std::vector<Tensor>& cold, const Tensor& indices,
                                     const std::optional<Tensor>& offsets,
                                     const std::optional<Tensor>& per_sample_weights,
                                     const std::vector<int64_t>& mean) {
  TieredShape s{check_dense_bag_args(hot, indices, offsets, per_sample_weights, mean, op, "hot"),
                {}};
  STD_TORCH_CHECK(cold.size() == hot.size(), op, ": ", hot.size(), " hot tiers, but ", cold.size(),
                  " cold ones");
  s.hot_rows = s.rows;
  for (int64_t t = 0; t < s.tables; ++t) {
    STD_TORCH_CHECK(cold[t].dim() == 2 && cold[t].size(1) == s.dims[t] && cold[t].is_contiguous(),
                    op, ": cold[", t, "] must be [rows, ", s.dims[t], "] as hot[", t,
                    "] and contiguous");
    STD_TORCH_CHECK(cold[t].scalar_type() == hot[t].scalar_type(), op, ": hot[", t, "] and cold[",
                    t, "] differ in dtype");
    STD_TORCH_CHECK(cold[t].device().type() == torch::headeronly::DeviceType::CPU, op, ": cold[", t,
                    "] must be in host memory");
    s.rows[t] += cold[t].size(0);
  }
  return s;
}

// The same of the gradients of the factors; weighted bags are summed.
inline TieredShape check_tiered_factor_args(const char* op, const Tensor& grad,
                                            const std::vector<Tensor>& hot,
                                            const std::vector<Tensor>& cold,
                                            const Tensor& positions,
                                            const std::optional<Tensor>& offsets,
                                            const Tensor& per_sample_weights) {
  const std::vector<int64_t> summed(hot.size(), 0);
  TieredShape s = check_tiered_args(op, hot, cold, positions, offsets, per_sample_weights, summed);
  check_upstream(op, grad, hot[0], s, "rows");
  return s;
}

// Whether any table has a remap.
inline bool check_remaps(const char* op, const std::vector<Tensor>& remaps, const TieredShape& s) {
  STD_TORCH_CHECK(static_cast<int64_t>(remaps.size()) == s.tables, op, ": ", s.tables,
                  " tables, but ", remaps.size(), " remaps");
  bool any = false;
  for (int64_t t = 0; t < s.tables; ++t) {
    const Tensor& remap = remaps[t];
    const bool empty = remap.numel() == 0;
    STD_TORCH_CHECK(remap.dim() == 1 && remap.is_contiguous() &&
                        (empty || (remap.numel() == s.rows[t] &&
                                   remap.scalar_type() == position_type(s.rows[t]))),
                    op, ": remaps[", t, "] must be empty, or ", s.rows[t], " contiguous ",
                    position_type(s.rows[t]) == ScalarType::Int ? "int32" : "int64",
                    " positions, one of each of the table's rows");
    any |= !empty;
  }
  return any;
}

// The update of looked-up rows in the backward pass: no gradient is stored. What
// dense/dense_bag_update.h says holds here, with every state in two tiers as its rows are:
//
//   hot_states[t * S + s]   S = 0 (SGD), 1 (Adagrad, row-wise Adagrad) or 2 (Adam) of each table:
//                           [H_t, D_t]; row-wise [H_t]
//   cold_states[t * S + s]  [C_t, D_t]; row-wise [C_t], in host memory
//   hyperparameters         [6] float64: lr, eps, beta1, beta2, weight_decay, step
struct TieredUpdateArgs {
  TieredShape shape;
  tt::Algorithm algorithm;
  int64_t states_per_table;
  std::vector<int64_t> owner;  // [tables] the first feature with the same table
};

// The only place where the arguments of the update are checked.
inline TieredUpdateArgs check_tiered_update_args(
    const char* op, const Tensor& grad, const std::vector<Tensor>& hot,
    const std::vector<Tensor>& cold, const std::vector<Tensor>& hot_states,
    const std::vector<Tensor>& cold_states, const Tensor& positions,
    const std::optional<Tensor>& offsets, const std::optional<Tensor>& per_sample_weights,
    const std::vector<int64_t>& mean, bool factors_grad, int64_t algorithm,
    const Tensor& hyperparameters) {
  TieredUpdateArgs u{
      check_tiered_args(op, hot, cold, positions, offsets, per_sample_weights, mean), {}, 0, {}};
  const TieredShape& s = u.shape;
  const auto rule = tt::check_rule(op, algorithm, hyperparameters);
  u.algorithm = rule.algorithm;
  u.states_per_table = rule.states;
  check_upstream(op, grad, hot[0], s, "rows");
  check_factors_grad(op, factors_grad, per_sample_weights);
  const int64_t per_table = u.states_per_table;
  for (const auto* states : {&hot_states, &cold_states})
    STD_TORCH_CHECK(static_cast<int64_t>(states->size()) == s.tables * per_table, op, ": ",
                    s.tables, " tables need ", s.tables * per_table, " states of either tier, got ",
                    states->size());
  const auto begins_like = [](const Tensor& a, const Tensor& b) {
    return a.numel() > 0 && b.numel() > 0 && a.const_data_ptr() == b.const_data_ptr();
  };
  const auto is_same = [](const Tensor& a, const Tensor& b) {
    return a.numel() == b.numel() && (a.numel() == 0 || a.const_data_ptr() == b.const_data_ptr());
  };
  for (int64_t t = 0; t < s.tables; ++t) {
    int64_t owner = 0;
    while (owner < t && !begins_like(hot[owner], hot[t]) && !begins_like(cold[owner], cold[t]))
      ++owner;
    STD_TORCH_CHECK(
        s.dims[owner] == s.dims[t] && is_same(hot[owner], hot[t]) && is_same(cold[owner], cold[t]),
        op, ": the tables ", owner, " and ", t, " share rows, but are not the same table");
    u.owner.push_back(owner);
    const int64_t columns = u.algorithm == tt::Algorithm::kRowwiseAdagrad ? 1 : s.dims[t];
    for (int64_t k = 0; k < per_table; ++k) {
      const int64_t at = t * per_table + k, of_owner = owner * per_table + k;
      const auto check = [&](const char* tier, const Tensor& state, int64_t rows) {
        STD_TORCH_CHECK(state.is_contiguous() && state.numel() == rows * columns &&
                            state.scalar_type() == hot[0].scalar_type(),
                        op, ": state ", k, " of table ", t, "'s ", tier, " rows must be ",
                        rows * columns, " contiguous numbers of the rows' dtype, got ",
                        state.numel());
      };
      check("hot", hot_states[at], s.hot_rows[t]);
      check("cold", cold_states[at], s.rows[t] - s.hot_rows[t]);
      STD_TORCH_CHECK(is_same(hot_states[at], hot_states[of_owner]) &&
                          is_same(cold_states[at], cold_states[of_owner]),
                      op, ": the tables ", owner, " and ", t,
                      " are one table, but have not the same states");
    }
  }
  return u;
}

}  // namespace recsys_opt::tiered
