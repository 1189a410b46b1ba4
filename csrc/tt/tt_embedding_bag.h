#pragma once
// Pooled lookups in tensor-train tables (TT-Rec, MLSys 2021; Oseledets, "Tensor-train
// decomposition", 2011).
//
//   cores[k]   [n_k, q_k, r_k, r_{k+1}]   r_0 = r_d = 1
//              G_k(i, j) = cores[k][i, j] is an r_k x r_{k+1} matrix
//   row(i)[j]  = G_0(i_0, j_0) . G_1(i_1, j_1) ... G_{d-1}(i_{d-1}, j_{d-1})
//              i = (i_0 n_1 + i_1) n_2 + ...,   j = (j_0 q_1 + j_1) q_2 + ...
//   out[b, t]  = sum (or mean) of row(i) over the bag's ids i, each times its weight
//
// This file holds the argument checks that all devices share.
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <vector>

namespace recsys_opt::tt {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int kMinCores = 2;
constexpr int kMaxCores = 4;

enum class Pooling : int64_t { kSum = 0, kMean = 1 };

// One feature's table. Plain data: CUDA kernels take it by value.
struct Table {
  int d;                 // cores
  int64_t n[kMaxCores];  // row factors
  int64_t q[kMaxCores];  // column factors
  int64_t r[kMaxCores + 1];
  int64_t num_embeddings;
  int64_t padding_idx;  // -1: none
  Pooling pooling;
  int64_t first_core;  // in the op's list of cores
  int64_t dim;         // product of q
  int64_t column;      // of the output, where this table's columns begin
};

struct Arguments {
  std::vector<Table> tables;
  int64_t num_indices;
  int64_t batch_size;
  int64_t columns;  // of the output

  int64_t size() const { return static_cast<int64_t>(tables.size()); }
};

inline bool is_index_type(ScalarType type) {
  return type == ScalarType::Int || type == ScalarType::Long;
}

inline Table check_table(int64_t t, const std::vector<Tensor>& cores, int64_t first, int64_t d) {
  STD_TORCH_CHECK(d >= kMinCores && d <= kMaxCores, "tt_embedding_bag: table ", t, " has ", d,
                  " cores; it must have ", kMinCores, " to ", kMaxCores);
  STD_TORCH_CHECK(first + d <= static_cast<int64_t>(cores.size()),
                  "tt_embedding_bag: cores_per_table asks for more than the ", cores.size(),
                  " cores given");
  Table table{};
  table.d = static_cast<int>(d);
  table.first_core = first;
  table.dim = 1;
  double rows = 1, columns = 1;
  for (int64_t k = 0; k < d; ++k) {
    const Tensor& core = cores[first + k];
    STD_TORCH_CHECK(core.dim() == 4, "tt_embedding_bag: core ", k, " of table ", t,
                    " must be [n, q, r, r'], got ", core.dim(), "-D");
    STD_TORCH_CHECK(core.scalar_type() == cores[0].scalar_type(), "tt_embedding_bag: core ", k,
                    " of table ", t, " differs in dtype from the first core");
    STD_TORCH_CHECK(core.numel() > 0, "tt_embedding_bag: core ", k, " of table ", t, " is empty");
    table.n[k] = core.size(0);
    table.q[k] = core.size(1);
    table.r[k] = core.size(2);
    table.r[k + 1] = core.size(3);
    if (k > 0) {
      const int64_t left = cores[first + k - 1].size(3);
      STD_TORCH_CHECK(left == core.size(2), "tt_embedding_bag: cores ", k - 1, " and ", k,
                      " of table ", t, " disagree on rank: ", left, " vs ", core.size(2));
    }
    columns *= static_cast<double>(core.size(1));
    STD_TORCH_CHECK(core.size(0) <= std::numeric_limits<int32_t>::max() &&
                        columns * static_cast<double>(core.size(3)) < (1 << 28),
                    "tt_embedding_bag: core ", k, " of table ", t, " is [", core.size(0), ", ",
                    core.size(1), ", ", core.size(2), ", ", core.size(3),
                    "]; a core has fewer than 2^31 row factors, and the product of the columns so "
                    "far and the rank must be below 2^28");
    table.dim *= core.size(1);
    rows *= static_cast<double>(core.size(0));
  }
  STD_TORCH_CHECK(table.r[0] == 1 && table.r[d] == 1, "tt_embedding_bag: the outer ranks of table ",
                  t, " are ", table.r[0], " and ", table.r[d], "; both must be 1");
  STD_TORCH_CHECK(rows < 1.0e18, "tt_embedding_bag: the row factors of table ", t, " multiply to ",
                  rows, "; at most 10^18");
  return table;
}

// The only place where the op's arguments are checked; values of ids and offsets are the kernels'
// to check.
inline Arguments check_arguments(const Tensor& indices, const Tensor& offsets,
                                 const std::vector<Tensor>& cores,
                                 std::span<const int64_t> cores_per_table,
                                 std::span<const int64_t> num_embeddings,
                                 std::span<const int64_t> pooling_modes,
                                 std::span<const int64_t> padding_idx,
                                 const std::optional<Tensor>& per_sample_weights) {
  const auto count = static_cast<int64_t>(cores_per_table.size());
  STD_TORCH_CHECK(count > 0, "tt_embedding_bag: no tables given");
  STD_TORCH_CHECK(num_embeddings.size() == cores_per_table.size() &&
                      pooling_modes.size() == cores_per_table.size() &&
                      padding_idx.size() == cores_per_table.size(),
                  "tt_embedding_bag: ", count, " tables, but ", num_embeddings.size(),
                  " num_embeddings, ", pooling_modes.size(), " pooling_modes and ",
                  padding_idx.size(), " padding_idx");
  STD_TORCH_CHECK(indices.dim() == 1 && is_index_type(indices.scalar_type()),
                  "tt_embedding_bag: indices must be 1-D int32 or int64, got ", indices.dim(),
                  "-D");
  STD_TORCH_CHECK(offsets.dim() == 1 && is_index_type(offsets.scalar_type()),
                  "tt_embedding_bag: offsets must be 1-D int32 or int64, got ", offsets.dim(),
                  "-D");
  STD_TORCH_CHECK(offsets.numel() > 0 && (offsets.numel() - 1) % count == 0,
                  "tt_embedding_bag: offsets has ", offsets.numel(),
                  " elements; it must have tables x bags + 1, with ", count, " tables");
  STD_TORCH_CHECK(indices.numel() < std::numeric_limits<int32_t>::max(),
                  "tt_embedding_bag: ", indices.numel(), " indices; at most 2^31 - 2 in one call");

  Arguments args;
  args.num_indices = indices.numel();
  args.batch_size = (offsets.numel() - 1) / count;
  args.columns = 0;
  int64_t first = 0;
  for (int64_t t = 0; t < count; ++t) {
    Table table = check_table(t, cores, first, cores_per_table[t]);
    int64_t rows = 1;
    for (int k = 0; k < table.d; ++k) rows *= table.n[k];
    STD_TORCH_CHECK(num_embeddings[t] > 0 && num_embeddings[t] <= rows, "tt_embedding_bag: table ",
                    t, " has num_embeddings = ", num_embeddings[t], ", its cores make ", rows,
                    " rows");
    STD_TORCH_CHECK(pooling_modes[t] == 0 || pooling_modes[t] == 1, "tt_embedding_bag: table ", t,
                    " has pooling mode ", pooling_modes[t], "; it must be 0 (sum) or 1 (mean)");
    STD_TORCH_CHECK(padding_idx[t] >= -1 && padding_idx[t] < num_embeddings[t],
                    "tt_embedding_bag: table ", t, " has padding_idx = ", padding_idx[t],
                    "; it must be -1 (none) or below ", num_embeddings[t]);
    table.num_embeddings = num_embeddings[t];
    table.pooling = static_cast<Pooling>(pooling_modes[t]);
    table.padding_idx = padding_idx[t];
    table.column = args.columns;
    STD_TORCH_CHECK(!per_sample_weights || table.pooling == Pooling::kSum,
                    "tt_embedding_bag: per_sample_weights need sum pooling; table ", t,
                    " pools by mean");
    args.columns += table.dim;
    first += table.d;
    args.tables.push_back(table);
  }
  STD_TORCH_CHECK(first == static_cast<int64_t>(cores.size()), "tt_embedding_bag: ", cores.size(),
                  " cores given, cores_per_table adds up to ", first);
  if (per_sample_weights) {
    STD_TORCH_CHECK(
        per_sample_weights->dim() == 1 && per_sample_weights->numel() == indices.numel(),
        "tt_embedding_bag: per_sample_weights has ", per_sample_weights->numel(),
        " elements, indices has ", indices.numel());
    STD_TORCH_CHECK(per_sample_weights->scalar_type() == cores[0].scalar_type(),
                    "tt_embedding_bag: per_sample_weights and the cores differ in dtype");
  }
  return args;
}

inline void check_grad(const Tensor& grad, const Arguments& args, const Tensor& core) {
  STD_TORCH_CHECK(
      grad.dim() == 2 && grad.size(0) == args.batch_size && grad.size(1) == args.columns,
      "tt_embedding_bag_backward: grad must be [", args.batch_size, ", ", args.columns, "]");
  STD_TORCH_CHECK(grad.scalar_type() == core.scalar_type(),
                  "tt_embedding_bag_backward: grad and the cores differ in dtype");
}

// Update rules that the backward pass applies by itself; the numbers are the op's.
enum class Algorithm : int64_t { kSgd = 0, kAdagrad = 1, kRowwiseAdagrad = 2, kAdam = 3 };

// Places in the op's hyperparameters, a float64 tensor. kStep: of this update, counted from 1.
enum Hyperparameter { kLr, kEps, kBeta1, kBeta2, kWeightDecay, kStep, kHyperparameters };

struct UpdateArguments {
  Algorithm algorithm;
  int64_t states_per_core;     // state s of core c is states[c * states_per_core + s]
  std::vector<int64_t> owner;  // [tables] the first table with the same cores: features may share
};

// The first table whose cores are those of table t: the same memory.
inline int64_t check_owner(const std::vector<Table>& tables, const std::vector<Tensor>& cores,
                           const std::vector<Tensor>& states, int64_t states_per_core, int64_t t) {
  const auto same = [&](int64_t mine, int64_t other) {
    return cores[mine].const_data_ptr() == cores[other].const_data_ptr();
  };
  const Table& table = tables[t];
  int64_t owner = 0;
  while (owner < t && !same(table.first_core, tables[owner].first_core)) ++owner;
  for (int64_t k = 0; k < table.d; ++k) {
    const int64_t mine = table.first_core + k, other = tables[owner].first_core + k;
    const bool shared = owner < t && table.d == tables[owner].d && same(mine, other);
    bool elsewhere = false;
    for (int64_t c = 0; c < mine && !elsewhere && !shared; ++c) elsewhere = same(mine, c);
    STD_TORCH_CHECK(shared || (owner == t && !elsewhere), "tt_embedding_bag_backward_update: core ",
                    k, " of table ", t,
                    " is also another core; two tables share all their cores or none");
    for (int64_t s = 0; s < states_per_core && shared; ++s) {
      STD_TORCH_CHECK(states[mine * states_per_core + s].const_data_ptr() ==
                          states[other * states_per_core + s].const_data_ptr(),
                      "tt_embedding_bag_backward_update: tables ", owner, " and ", t,
                      " share their cores, but not their states");
    }
  }
  return owner;
}

struct CheckedRule {
  Algorithm algorithm;
  int64_t states;  // of each thing that is updated
};

inline CheckedRule check_rule(const char* op, int64_t algorithm, const Tensor& hyperparameters) {
  constexpr int64_t kStates[] = {0, 1, 1, 2};
  STD_TORCH_CHECK(algorithm >= 0 && algorithm <= 3, op, ": algorithm ", algorithm,
                  " is not 0 (SGD), 1 (Adagrad), 2 (row-wise Adagrad) or 3 (Adam)");
  STD_TORCH_CHECK(hyperparameters.scalar_type() == ScalarType::Double &&
                      hyperparameters.dim() == 1 && hyperparameters.is_contiguous() &&
                      hyperparameters.numel() == kHyperparameters,
                  op, ": hyperparameters must be ", static_cast<int>(kHyperparameters),
                  " float64 numbers: lr, eps, beta1, beta2, weight_decay, step");
  return {static_cast<Algorithm>(algorithm), kStates[algorithm]};
}

// The only place where the arguments of the fused update are checked, after check_arguments.
inline UpdateArguments check_update(const Arguments& args, const std::vector<Tensor>& cores,
                                    const std::vector<Tensor>& states, int64_t algorithm,
                                    const Tensor& hyperparameters) {
  const auto rule = check_rule("tt_embedding_bag_backward_update", algorithm, hyperparameters);
  UpdateArguments update{rule.algorithm, rule.states, {}};
  STD_TORCH_CHECK(states.size() == cores.size() * update.states_per_core,
                  "tt_embedding_bag_backward_update: ", cores.size(), " cores need ",
                  cores.size() * update.states_per_core, " states, got ", states.size());
  const bool rowwise = update.algorithm == Algorithm::kRowwiseAdagrad;
  const ScalarType state_type =
      cores[0].scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  for (size_t c = 0; c < cores.size(); ++c) {
    STD_TORCH_CHECK(cores[c].is_contiguous(), "tt_embedding_bag_backward_update: core ", c,
                    " must be contiguous");
    for (int64_t s = 0; s < update.states_per_core; ++s) {
      const Tensor& state = states[c * update.states_per_core + s];
      const int64_t numel = rowwise ? cores[c].size(0) : cores[c].numel();
      STD_TORCH_CHECK(
          state.is_contiguous() && state.numel() == numel && state.scalar_type() == state_type,
          "tt_embedding_bag_backward_update: state ", s, " of core ", c, " must be ", numel,
          " contiguous numbers of ", state_type == ScalarType::Double ? "float64" : "float32",
          ", got ", state.numel());
    }
  }
  for (int64_t t = 0; t < args.size(); ++t) {
    update.owner.push_back(check_owner(args.tables, cores, states, update.states_per_core, t));
  }
  return update;
}

}  // namespace recsys_opt::tt
