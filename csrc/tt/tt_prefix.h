#pragma once
// Pooled lookups in tensor trains of two cores, laid out for lookups alone: what a table becomes at
// freeze("prefix"). With s = 2 for bf16, else 1:
//
//   prefix  [n_0, q_0 / t_0, r / s, t_0, s]   prefix[i][a][p][j][k] = core_0[i, a t_0 + j, 0, p s +
//   k] last    [n_1, q_1 / t_1, r / s, t_1, s]   last[i][b][p][j][k]   = core_1[i, b t_1 + j, p s +
//   k, 0] row(i)[j_0 q_1 + j_1] = the sum over p and k of prefix[i / n_1] at j_0 times last[i %
//   n_1] at j_1
//
// A row is made tile by tile, t_0 by t_1 numbers, as a sum of outer products that stays in
// registers. Tiles of 16 numbers are fastest. bf16 numbers that follow each other in the sum lie
// side by side, as dot product instructions take them.
//
// This file holds the argument checks that all devices share.
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "tt_embedding_bag.h"

namespace recsys_opt::tt {

// One feature's table. Plain data: CUDA kernels take it by value.
struct PrefixTable {
  const void* prefix;
  const void* last;
  int64_t n[2];      // row factors
  int64_t tiles[2];  // of the columns of a core
  int64_t tile[2];   // columns of a tile
  int64_t steps;     // r / s
  int64_t width[2];  // steps of all columns of a core: what a row of it holds
  int64_t num_embeddings;
  int64_t padding_idx;  // -1: none
  Pooling pooling;
  int64_t dim;
  int64_t column;  // of the output, where this table's columns begin
};

struct PrefixArguments {
  std::vector<PrefixTable> tables;
  int64_t num_indices;
  int64_t batch_size;
  int64_t columns;        // of the output
  int64_t given_offsets;  // 0: one id a bag; the end of the last bag may be left out

  int64_t size() const { return static_cast<int64_t>(tables.size()); }
};

inline int64_t steps_of(ScalarType type) {
  return type == ScalarType::BFloat16 ? 2 : 1;
}

inline void check_prefix_core(const char* name, int64_t t, const Tensor& core, ScalarType type) {
  STD_TORCH_CHECK(core.dim() == 5 && core.numel() > 0 && core.size(4) == steps_of(type),
                  "tt_prefix_bag: the ", name, " core of table ", t,
                  " must be [n, tiles, steps, tile, ", steps_of(type), "] and not empty, got ",
                  core.dim(), "-D with ", core.numel(), " elements");
  STD_TORCH_CHECK(core.scalar_type() == type, "tt_prefix_bag: the ", name, " core of table ", t,
                  " differs in dtype from the first core");
  STD_TORCH_CHECK(core.is_contiguous(), "tt_prefix_bag: the ", name, " core of table ", t,
                  " must be contiguous");
  STD_TORCH_CHECK(core.size(0) <= std::numeric_limits<int32_t>::max() &&
                      core.numel() / core.size(0) < (1 << 28),
                  "tt_prefix_bag: the ", name, " core of table ", t, " has ", core.size(0),
                  " row factors of ", core.numel() / core.size(0),
                  " numbers; they must be below 2^31 and 2^28");
}

inline PrefixTable check_prefix_table(int64_t t, const Tensor& prefix, const Tensor& last,
                                      ScalarType type) {
  check_prefix_core("prefix", t, prefix, type);
  check_prefix_core("last", t, last, type);
  STD_TORCH_CHECK(prefix.size(2) == last.size(2), "tt_prefix_bag: the cores of table ", t,
                  " disagree on rank: ", prefix.size(2) * prefix.size(4), " vs ",
                  last.size(2) * last.size(4));
  PrefixTable table{};
  table.prefix = prefix.const_data_ptr();
  table.last = last.const_data_ptr();
  table.steps = prefix.size(2);
  const Tensor* cores[] = {&prefix, &last};
  for (int k = 0; k < 2; ++k) {
    table.n[k] = cores[k]->size(0);
    table.tiles[k] = cores[k]->size(1);
    table.tile[k] = cores[k]->size(3);
    table.width[k] = table.tiles[k] * table.tile[k] * table.steps;
  }
  const double dim = static_cast<double>(table.tiles[0] * table.tile[0]) *
                     static_cast<double>(table.tiles[1] * table.tile[1]);
  STD_TORCH_CHECK(dim < (1 << 28), "tt_prefix_bag: table ", t, " has ", dim,
                  " columns; they must be below 2^28");
  table.dim = static_cast<int64_t>(dim);
  return table;
}

// The only place where the op's arguments are checked; values of ids and offsets are the kernels'
// to check.
inline PrefixArguments check_prefix_arguments(
    const Tensor& indices, const std::optional<Tensor>& offsets,
    const std::vector<Tensor>& prefixes, const std::vector<Tensor>& lasts,
    const std::vector<int64_t>& num_embeddings, const std::vector<int64_t>& pooling_modes,
    const std::vector<int64_t>& padding_idx, const std::optional<Tensor>& per_sample_weights,
    bool include_last_offset) {
  const auto count = static_cast<int64_t>(prefixes.size());
  STD_TORCH_CHECK(count > 0, "tt_prefix_bag: no tables given");
  STD_TORCH_CHECK(lasts.size() == prefixes.size() && num_embeddings.size() == prefixes.size() &&
                      pooling_modes.size() == prefixes.size() &&
                      padding_idx.size() == prefixes.size(),
                  "tt_prefix_bag: ", count, " prefix cores, but ", lasts.size(), " last cores, ",
                  num_embeddings.size(), " num_embeddings, ", pooling_modes.size(),
                  " pooling_modes and ", padding_idx.size(), " padding_idx");
  STD_TORCH_CHECK(indices.dim() == 1 && is_index_type(indices.scalar_type()),
                  "tt_prefix_bag: indices must be 1-D int32 or int64, got ", indices.dim(), "-D");
  STD_TORCH_CHECK(indices.numel() < std::numeric_limits<int32_t>::max(),
                  "tt_prefix_bag: ", indices.numel(), " indices; at most 2^31 - 2 in one call");
  PrefixArguments args{};
  args.num_indices = indices.numel();
  int64_t bags = args.num_indices;
  if (offsets) {
    STD_TORCH_CHECK(offsets->dim() == 1 && is_index_type(offsets->scalar_type()),
                    "tt_prefix_bag: offsets must be 1-D int32 or int64, got ", offsets->dim(),
                    "-D");
    STD_TORCH_CHECK(offsets->numel() > 0 || !include_last_offset,
                    "tt_prefix_bag: offsets is empty; it has at least the end of the last bag");
    args.given_offsets = offsets->numel();
    bags = args.given_offsets - (include_last_offset ? 1 : 0);
  }
  STD_TORCH_CHECK(bags % count == 0, "tt_prefix_bag: ", bags, " bags do not divide among ", count,
                  " tables");
  args.batch_size = bags / count;
  const ScalarType type = prefixes[0].scalar_type();
  for (int64_t t = 0; t < count; ++t) {
    PrefixTable table = check_prefix_table(t, prefixes[t], lasts[t], type);
    STD_TORCH_CHECK(num_embeddings[t] > 0 && num_embeddings[t] <= table.n[0] * table.n[1],
                    "tt_prefix_bag: table ", t, " has num_embeddings = ", num_embeddings[t],
                    ", its cores make ", table.n[0] * table.n[1], " rows");
    STD_TORCH_CHECK(pooling_modes[t] == 0 || pooling_modes[t] == 1, "tt_prefix_bag: table ", t,
                    " has pooling mode ", pooling_modes[t], "; it must be 0 (sum) or 1 (mean)");
    STD_TORCH_CHECK(padding_idx[t] >= -1 && padding_idx[t] < num_embeddings[t],
                    "tt_prefix_bag: table ", t, " has padding_idx = ", padding_idx[t],
                    "; it must be -1 (none) or below ", num_embeddings[t]);
    table.num_embeddings = num_embeddings[t];
    table.pooling = static_cast<Pooling>(pooling_modes[t]);
    table.padding_idx = padding_idx[t];
    STD_TORCH_CHECK(!per_sample_weights || table.pooling == Pooling::kSum,
                    "tt_prefix_bag: per_sample_weights need sum pooling; table ", t,
                    " pools by mean");
    table.column = args.columns;
    args.columns += table.dim;
    args.tables.push_back(table);
  }
  if (per_sample_weights) {
    STD_TORCH_CHECK(
        per_sample_weights->dim() == 1 && per_sample_weights->numel() == args.num_indices,
        "tt_prefix_bag: per_sample_weights has ", per_sample_weights->numel(),
        " elements, indices has ", args.num_indices);
    STD_TORCH_CHECK(per_sample_weights->scalar_type() == type,
                    "tt_prefix_bag: per_sample_weights and the cores differ in dtype");
  }
  return args;
}

}  // namespace recsys_opt::tt
