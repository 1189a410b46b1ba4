#pragma once
// Lookup and pooling in many dense tables, in torchrec's memory order.
//
//   weights[t]          [rows_t, D_t]   one per feature; features may share a table
//   indices             [N] int32 or int64, feature-major
//   offsets             [T * B + 1] int64; none: one id per bag, N = T * B
//   per_sample_weights  [N]
//   mean                [T] 1 where the rows of a bag are averaged, 0 where they are summed
//   out                 [B, sum D_t]
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

namespace recsys_opt {

struct DenseBagShape {
  int64_t tables, batch, ids, columns;
  std::vector<int64_t> dims, rows, first_column;
};

// The only place where the arguments of the dense lookups are checked.
inline DenseBagShape check_dense_bag_args(
    const std::vector<torch::stable::Tensor>& weights, const torch::stable::Tensor& indices,
    const std::optional<torch::stable::Tensor>& offsets,
    const std::optional<torch::stable::Tensor>& per_sample_weights,
    const std::vector<int64_t>& mean, const char* op = "dense_bag", const char* name = "weights") {
  using torch::headeronly::ScalarType;
  DenseBagShape s{static_cast<int64_t>(weights.size()), 0, indices.numel(), 0, {}, {}, {}};
  STD_TORCH_CHECK(s.tables > 0, op, ": needs at least one table");
  STD_TORCH_CHECK(static_cast<int64_t>(mean.size()) == s.tables, op, ": mean has ", mean.size(),
                  " entries for ", s.tables, " tables");
  STD_TORCH_CHECK(indices.dim() == 1 && (indices.scalar_type() == ScalarType::Int ||
                                         indices.scalar_type() == ScalarType::Long),
                  op, ": indices must be 1-D int32 or int64");
  for (int64_t t = 0; t < s.tables; ++t) {
    STD_TORCH_CHECK(weights[t].dim() == 2 && weights[t].is_contiguous(), op, ": ", name, "[", t,
                    "] must be [rows, D] and contiguous");
    STD_TORCH_CHECK(weights[t].scalar_type() == weights[0].scalar_type(), op, ": ", name,
                    " differ in dtype");
    s.rows.push_back(weights[t].size(0));
    s.dims.push_back(weights[t].size(1));
    s.first_column.push_back(s.columns);
    s.columns += weights[t].size(1);
  }
  if (offsets.has_value()) {
    STD_TORCH_CHECK(offsets->dim() == 1 && offsets->scalar_type() == ScalarType::Long, op,
                    ": offsets must be 1-D int64");
    STD_TORCH_CHECK(offsets->numel() >= 1 && (offsets->numel() - 1) % s.tables == 0, op,
                    ": offsets has ", offsets->numel(), " entries; ", s.tables, " tables need ",
                    s.tables, " * batch + 1");
    s.batch = (offsets->numel() - 1) / s.tables;
  } else {
    STD_TORCH_CHECK(s.ids % s.tables == 0, op, ": ", s.ids, " indices without offsets for ",
                    s.tables, " tables: every table needs one id per sample");
    s.batch = s.ids / s.tables;
  }
  if (per_sample_weights.has_value()) {
    STD_TORCH_CHECK(per_sample_weights->dim() == 1 && per_sample_weights->numel() == s.ids &&
                        per_sample_weights->scalar_type() == weights[0].scalar_type(),
                    op, ": per_sample_weights must be [", s.ids,
                    "] as indices, with the weights' dtype");
    for (int64_t t = 0; t < s.tables; ++t)
      STD_TORCH_CHECK(mean[t] == 0, op, ": per_sample_weights needs sum pooling, but table ", t,
                      " averages");
  }
  return s;
}

// Offsets are non-decreasing from 0 to at most the number of ids; the ids after the last are of no
// bag.
inline void check_dense_bag_offsets(const int64_t* offsets, int64_t bags, int64_t ids,
                                    const char* op = "dense_bag") {
  STD_TORCH_CHECK(offsets[0] == 0, op, ": offsets[0] = ", offsets[0], "; it must be 0");
  bool ascending = true;
  for (int64_t k = 0; k < bags; ++k) ascending &= offsets[k] <= offsets[k + 1];
  for (int64_t k = 0; k < bags && !ascending; ++k)
    STD_TORCH_CHECK(offsets[k] <= offsets[k + 1], op, ": offsets[", k + 1, "] = ", offsets[k + 1],
                    " is below offsets[", k, "] = ", offsets[k]);
  STD_TORCH_CHECK(offsets[bags] <= ids, op, ": offsets[", bags, "] = ", offsets[bags],
                  " is outside the ", ids, " indices");
}

// The checked offsets of contiguous arguments; null where there is one id per bag.
inline const int64_t* offsets_of(const std::optional<torch::stable::Tensor>& offsets,
                                 const DenseBagShape& s, const char* op = "dense_bag") {
  if (!offsets) return nullptr;
  const auto* found = offsets->const_data_ptr<int64_t>();
  check_dense_bag_offsets(found, s.tables * s.batch, s.ids, op);
  return found;
}

// grad is that of out, with the dtype of the rows, named in messages.
inline void check_upstream(const char* op, const torch::stable::Tensor& grad,
                           const torch::stable::Tensor& rows, const DenseBagShape& s,
                           const char* name = "weights") {
  STD_TORCH_CHECK(grad.dim() == 2 && grad.size(0) == s.batch && grad.size(1) == s.columns &&
                      grad.scalar_type() == rows.scalar_type(),
                  op, ": grad must be [", s.batch, ", ", s.columns, "] with the ", name, "' dtype");
}

// d out / d per_sample_weights, [N]; grad is that of out.
torch::stable::Tensor dense_bag_factor_gradients_cpu(torch::stable::Tensor grad,
                                                     std::vector<torch::stable::Tensor> weights,
                                                     torch::stable::Tensor indices,
                                                     std::optional<torch::stable::Tensor> offsets,
                                                     torch::stable::Tensor per_sample_weights);

}  // namespace recsys_opt
