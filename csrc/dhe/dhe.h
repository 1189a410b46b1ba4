#pragma once
// Deep hash embedding (Kang et al. 2021, arXiv:2010.10784): a row is computed from its id.
//
//   h_j(x) = ((a_j x + b_j) mod p) mod m                    k hashes, 0 <= h_j < m
//   e_j(x) = 2 h_j(x) / (m - 1) - 1                         uniform in [-1, 1]
//   y_0 = e(x),  y_l = relu(y_{l-1} W_l + c_l),  row(x) = y_{L-1} W_L + c_L
//
// or, Gaussian, by Box and Muller from the pairs u = (h_{2i} + 1/2) / m, v = (h_{2i+1} + 1/2) / m:
//   e_{2i} = sqrt(-2 ln u) cos(2 pi v),  e_{2i+1} = sqrt(-2 ln u) sin(2 pi v)
//
// Arguments of the lookups, for T tables of one call:
//   indices             [N] int32 or int64, feature-major
//   offsets             [T * B + 1] int64; none: one id per bag, N = T * B
//   hashes[t]           [2, k] int64: a, then b
//   weights, biases     of all tables' layers, one behind the other: W [in, out], c [out]
//   tables              kTableNumbers per table: layers, rows, p, m, encoding (0 uniform, 1
//   Gaussian),
//                       pooling (0 sum, 1 mean), padding_idx (-1: none)
//   per_sample_weights  [N]
//   out                 [B, sum of the last layers' widths]
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "dense/dense_bag.h"

namespace recsys_opt::dhe {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kTableNumbers = 7;
constexpr int64_t kMostPrime = (int64_t{1} << 31) - 1;  // (p - 1)^2 + p - 1 is below 2^62

struct Encoder {
  int64_t hashes, prime, buckets;
  bool gaussian;
};

struct Table {
  Encoder encoder;
  int64_t rows, padding;
  bool mean;
  int64_t layers, first_layer;
  std::vector<int64_t> widths;  // [layers + 1], the encoding's first
  int64_t kept;                 // the sum of the layers' outputs
  int64_t first_column;

  int64_t dim() const { return widths.back(); }
};

struct Shape {
  std::vector<Table> table;
  int64_t batch, ids, columns, widest;  // widest: the largest `kept`

  int64_t tables() const { return static_cast<int64_t>(table.size()); }
};

inline Encoder check_encoder(const char* op, const Tensor& hashes, int64_t prime, int64_t buckets,
                             int64_t encoding) {
  STD_TORCH_CHECK(hashes.dim() == 2 && hashes.size(0) == 2 && hashes.size(1) > 0 &&
                      hashes.scalar_type() == ScalarType::Long && hashes.is_contiguous(),
                  op, ": hashes must be [2, k] int64 and contiguous");
  STD_TORCH_CHECK(1 < prime && prime <= kMostPrime, op, ": prime = ", prime, "; it must be 2 to ",
                  kMostPrime);
  STD_TORCH_CHECK(1 < buckets && buckets <= prime, op, ": buckets = ", buckets,
                  "; they must be 2 to the prime, ", prime);
  STD_TORCH_CHECK(encoding == 0 || encoding == 1, op, ": encoding = ", encoding,
                  "; it must be 0 (uniform) or 1 (Gaussian)");
  STD_TORCH_CHECK(encoding == 0 || hashes.size(1) % 2 == 0, op, ": ", hashes.size(1),
                  " hashes; a Gaussian encoding needs an even number");
  return {hashes.size(1), prime, buckets, encoding == 1};
}

// Where ids stand in the call that they come from; none: 0, 1, ...
inline void check_positions(const char* op, const std::optional<Tensor>& positions,
                            const Tensor& ids) {
  STD_TORCH_CHECK(!positions || (positions->dim() == 1 && positions->numel() == ids.numel() &&
                                 positions->scalar_type() == ScalarType::Long),
                  op, ": positions must be [", ids.numel(), "] int64, as ids");
}

// The only place where the arguments of the lookups are checked.
inline Shape check_bag(const char* op, const Tensor& indices, const std::optional<Tensor>& offsets,
                       const std::vector<Tensor>& hashes, const std::vector<Tensor>& weights,
                       const std::vector<Tensor>& biases, const std::vector<int64_t>& tables,
                       const std::optional<Tensor>& per_sample_weights) {
  const auto count = static_cast<int64_t>(hashes.size());
  const auto layers = static_cast<int64_t>(weights.size());
  STD_TORCH_CHECK(count > 0, op, ": needs at least one table");
  STD_TORCH_CHECK(static_cast<int64_t>(tables.size()) == kTableNumbers * count, op, ": tables has ",
                  tables.size(), " numbers; ", count, " tables need ", kTableNumbers, " each");
  STD_TORCH_CHECK(layers > 0 && static_cast<int64_t>(biases.size()) == layers, op, ": ", layers,
                  " weights and ", biases.size(), " biases");
  STD_TORCH_CHECK(indices.dim() == 1 && (indices.scalar_type() == ScalarType::Int ||
                                         indices.scalar_type() == ScalarType::Long),
                  op, ": indices must be 1-D int32 or int64");
  const ScalarType type = weights[0].scalar_type();
  Shape s{{}, 0, indices.numel(), 0, 0};
  int64_t layer = 0;
  for (int64_t t = 0; t < count; ++t) {
    const int64_t* own = tables.data() + kTableNumbers * t;
    Table table;
    table.encoder = check_encoder(op, hashes[t], own[2], own[3], own[4]);
    table.layers = own[0];
    table.rows = own[1];
    table.mean = own[5] == 1;
    table.padding = own[6];
    table.first_layer = layer;
    table.kept = 0;
    table.first_column = s.columns;
    STD_TORCH_CHECK(table.layers > 0 && layer + table.layers <= layers, op, ": table ", t, " has ",
                    table.layers, " layers; ", layers - layer, " are left of those given");
    STD_TORCH_CHECK(table.rows > 0, op, ": table ", t, " has ", table.rows, " rows");
    table.widths.push_back(table.encoder.hashes);
    for (int64_t l = 0; l < table.layers; ++l, ++layer) {
      const Tensor &w = weights[layer], &c = biases[layer];
      STD_TORCH_CHECK(w.dim() == 2 && w.size(0) == table.widths.back() && w.size(1) > 0 &&
                          w.is_contiguous() && w.scalar_type() == type,
                      op, ": weights[", layer, "] of table ", t, " must be [", table.widths.back(),
                      ", out], contiguous, of the others' dtype");
      STD_TORCH_CHECK(
          c.dim() == 1 && c.size(0) == w.size(1) && c.is_contiguous() && c.scalar_type() == type,
          op, ": biases[", layer, "] of table ", t, " must be [", w.size(1),
          "], contiguous, of the weights' dtype");
      table.widths.push_back(w.size(1));
      table.kept += w.size(1);
    }
    s.columns += table.dim();
    s.widest = s.widest > table.kept ? s.widest : table.kept;
    s.table.push_back(table);
  }
  STD_TORCH_CHECK(layer == layers, op, ": the tables have ", layer, " layers, but ", layers,
                  " weights are given");
  if (offsets) {
    STD_TORCH_CHECK(offsets->dim() == 1 && offsets->scalar_type() == ScalarType::Long, op,
                    ": offsets must be 1-D int64");
    STD_TORCH_CHECK(offsets->numel() >= 1 && (offsets->numel() - 1) % count == 0, op,
                    ": offsets has ", offsets->numel(), " entries; ", count, " tables need ", count,
                    " * batch + 1");
    s.batch = (offsets->numel() - 1) / count;
  } else {
    STD_TORCH_CHECK(s.ids % count == 0, op, ": ", s.ids, " indices without offsets for ", count,
                    " tables: every table needs one id per sample");
    s.batch = s.ids / count;
  }
  if (per_sample_weights) {
    STD_TORCH_CHECK(per_sample_weights->dim() == 1 && per_sample_weights->numel() == s.ids &&
                        per_sample_weights->scalar_type() == type,
                    op, ": per_sample_weights must be [", s.ids,
                    "] as indices, with the weights' dtype");
    for (int64_t t = 0; t < count; ++t)
      STD_TORCH_CHECK(!s.table[t].mean, op, ": per_sample_weights needs sum pooling, but table ", t,
                      " averages");
  }
  return s;
}

// The lookups that tables have; without offsets every bag has one id.
struct Bags {
  const int64_t* offsets;
  int64_t batch;

  int64_t start(int64_t bag) const { return offsets ? offsets[bag] : bag; }
  int64_t first(int64_t table) const { return start(table * batch); }
};

}  // namespace recsys_opt::dhe
