#pragma once
// DLRM's dot interaction (Naumov et al. 2019, section 2.1.3).
//
//   dense      [B, D]          vector 0
//   sparse[p]  [B, F_p * D]    the F = sum F_p embeddings, in pieces
//   order      [F]             vector v is column block order[v - 1] of the pieces side by side
//   out        [B, D + V (V - 1) / 2], V = F + 1: dense, then the dot products of the vectors
//              i > j, row by row: (1, 0), (2, 0), (2, 1), (3, 0), ...
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

namespace recsys_opt {

struct InteractionShape {
  int64_t batch, dim, vectors;

  int64_t pairs() const { return vectors * (vectors - 1) / 2; }
  int64_t width() const { return dim + pairs(); }
};

// The only place where dot_interaction's arguments are checked.
inline InteractionShape check_interaction_args(const torch::stable::Tensor& dense,
                                               const std::vector<torch::stable::Tensor>& sparse,
                                               const std::vector<int64_t>& order) {
  STD_TORCH_CHECK(dense.dim() == 2 && dense.size(1) > 0,
                  "dot_interaction: dense must be [batch, D] with D >= 1, but is ", dense.dim(),
                  "-D");
  const int64_t batch = dense.size(0), dim = dense.size(1);
  int64_t features = 0;
  for (size_t p = 0; p < sparse.size(); ++p) {
    STD_TORCH_CHECK(sparse[p].dim() == 2 && sparse[p].size(0) == batch, "dot_interaction: sparse[",
                    p, "] must be [", batch, ", F * ", dim, "] as dense has ", batch, " rows");
    STD_TORCH_CHECK(sparse[p].size(1) % dim == 0, "dot_interaction: sparse[", p, "] has ",
                    sparse[p].size(1), " columns, no multiple of dense's ", dim);
    features += sparse[p].size(1) / dim;
  }
  STD_TORCH_CHECK(static_cast<int64_t>(order.size()) == features, "dot_interaction: order has ",
                  order.size(), " entries, but sparse holds ", features, " vectors");
  STD_TORCH_CHECK(features > 0, "dot_interaction: needs at least one sparse vector");
  std::vector<bool> seen(features, false);
  for (size_t v = 0; v < order.size(); ++v) {
    STD_TORCH_CHECK(order[v] >= 0 && order[v] < features && !seen[order[v]],
                    "dot_interaction: order[", v, "] = ", order[v],
                    "; order must be a permutation of 0 .. ", features - 1);
    seen[order[v]] = true;
  }
  return {batch, dim, features + 1};
}

}  // namespace recsys_opt
