#pragma once
// Rows of tensor-train tables that are held dense because they are looked up often.
//
//   keys[t]        [K_t] int64: which row of table t slot s holds; -1: none
//   directories[t] [C_t] int32, C_t a power of two above K_t: an open-addressing hash table of
//   slots
//                  (linear probing, -1: empty); an id is hot if its probe meets a slot with its key
//   slots          [N] int32, one for every lookup: its slot, kCold or kPadding
//   weights[t]     [K_t, D_t] the hot rows
//
// Tables are features of one call in torchrec's memory order: indices [N] feature-major,
// offsets [T * B + 1], or none where every bag has one id.
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#if defined(__CUDACC__)
#define HOT_ROWS_DEVICE __host__ __device__
#else
#define HOT_ROWS_DEVICE
#endif

namespace recsys_opt::hot_rows {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int32_t kCold = -1;     // not held: the tensor train makes the row
constexpr int32_t kPadding = -2;  // counts for nothing

// A candidate is one number, so that the larger of two is the more frequent one whatever the order
// of the comparisons: the estimated count in the upper bits, id + 1 in the lower ones; 0: empty.
constexpr int kIdBits = 40;
constexpr int64_t kMaxRows = (int64_t{1} << kIdBits) - 1;
constexpr int64_t kMaxEstimate = (int64_t{1} << (63 - kIdBits)) - 1;

// The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
HOT_ROWS_DEVICE inline uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

// The slot that holds `id`, or kCold.
HOT_ROWS_DEVICE inline int32_t find(int64_t id, const int64_t* keys, const int32_t* directory,
                                    int64_t mask) {
  for (uint64_t at = mix(id) & mask;; at = (at + 1) & mask) {
    const int32_t slot = directory[at];
    if (slot < 0) return kCold;
    if (keys[slot] == id) return slot;
  }
}

// The two counters of a count-min sketch (Cormode and Muthukrishnan 2005) of two rows of `width`
// each, and the two cells that a candidate may take; all widths are powers of two.
struct Places {
  int64_t counter[2], cell[2];
};

HOT_ROWS_DEVICE inline Places places(int64_t id, int64_t width, int64_t cells) {
  const uint64_t h = mix(id), g = mix(h);
  return {{static_cast<int64_t>(h & (width - 1)),
           width + static_cast<int64_t>((h >> 32) & (width - 1))},
          {static_cast<int64_t>(g & (cells - 1)), static_cast<int64_t>((g >> 32) & (cells - 1))}};
}

HOT_ROWS_DEVICE inline int64_t candidate(int64_t id, int64_t estimate) {
  return ((estimate < kMaxEstimate ? estimate : kMaxEstimate) << kIdBits) | (id + 1);
}

struct Shape {
  int64_t tables, batch, ids;

  int64_t bags() const { return tables * batch; }
};

// The arguments that all ops share. The only place where they are checked.
inline Shape check_lookups(const char* op, int64_t tables, const Tensor& ids, const char* ids_name,
                           const std::optional<Tensor>& offsets) {
  STD_TORCH_CHECK(tables > 0, op, ": no tables given");
  STD_TORCH_CHECK(ids.dim() == 1, op, ": ", ids_name, " must be 1-D, got ", ids.dim(), "-D");
  STD_TORCH_CHECK(ids.numel() < (int64_t{1} << 31) - 1, op, ": ", ids.numel(),
                  " lookups; at most 2^31 - 2 in one call");
  Shape s{tables, 0, ids.numel()};
  if (!offsets) {
    STD_TORCH_CHECK(s.ids % tables == 0, op, ": ", s.ids, " lookups without offsets for ", tables,
                    " tables: every table needs one id per sample");
    s.batch = s.ids / tables;
    return s;
  }
  STD_TORCH_CHECK(offsets->dim() == 1 && offsets->scalar_type() == ScalarType::Long, op,
                  ": offsets must be 1-D int64");
  STD_TORCH_CHECK(offsets->numel() > 0 && (offsets->numel() - 1) % tables == 0, op,
                  ": offsets has ", offsets->numel(),
                  " elements; it must have tables x bags + 1, with ", tables, " tables");
  s.batch = (offsets->numel() - 1) / tables;
  return s;
}

inline void check_indices(const char* op, const Tensor& indices) {
  STD_TORCH_CHECK(
      indices.scalar_type() == ScalarType::Int || indices.scalar_type() == ScalarType::Long, op,
      ": indices must be int32 or int64");
}

inline void check_directory(const char* op, int64_t t, const Tensor& keys,
                            const Tensor& directory) {
  STD_TORCH_CHECK(keys.dim() == 1 && keys.scalar_type() == ScalarType::Long && keys.is_contiguous(),
                  op, ": keys[", t, "] must be 1-D int64 and contiguous");
  const int64_t capacity = directory.numel();
  STD_TORCH_CHECK(directory.dim() == 1 && directory.scalar_type() == ScalarType::Int &&
                      directory.is_contiguous() && capacity > keys.numel() &&
                      (capacity & (capacity - 1)) == 0,
                  op, ": directories[", t, "] has ", capacity, " entries for ", keys.numel(),
                  " keys; it must be 1-D int32, contiguous, a power of two long and longer");
}

inline Shape check_split(const Tensor& indices, const std::optional<Tensor>& offsets,
                         const std::vector<Tensor>& keys, const std::vector<Tensor>& directories,
                         const std::vector<int64_t>& num_embeddings,
                         const std::vector<int64_t>& padding_idx) {
  const char* op = "hot_rows_split";
  const Shape s = check_lookups(op, static_cast<int64_t>(keys.size()), indices, "indices", offsets);
  check_indices(op, indices);
  STD_TORCH_CHECK(directories.size() == keys.size() && num_embeddings.size() == keys.size() &&
                      padding_idx.size() == keys.size(),
                  op, ": ", keys.size(), " keys, but ", directories.size(), " directories, ",
                  num_embeddings.size(), " num_embeddings and ", padding_idx.size(),
                  " padding_idx");
  for (int64_t t = 0; t < s.tables; ++t) {
    check_directory(op, t, keys[t], directories[t]);
    STD_TORCH_CHECK(num_embeddings[t] > 0 && num_embeddings[t] <= kMaxRows, op, ": table ", t,
                    " has num_embeddings = ", num_embeddings[t], "; it must be 1 .. ", kMaxRows);
  }
  return s;
}

struct BagShape : Shape {
  std::vector<int64_t> dims, rows, first_column;
  int64_t columns;
};

inline BagShape check_bag(const char* op, const Tensor& base, const std::vector<Tensor>& weights,
                          const Tensor& slots, const std::optional<Tensor>& offsets,
                          const std::optional<Tensor>& per_sample_weights,
                          const std::vector<int64_t>& mean) {
  BagShape s{check_lookups(op, static_cast<int64_t>(weights.size()), slots, "slots", offsets),
             {},
             {},
             {},
             0};
  STD_TORCH_CHECK(slots.scalar_type() == ScalarType::Int && slots.is_contiguous(), op,
                  ": slots must be int32 and contiguous");
  STD_TORCH_CHECK(static_cast<int64_t>(mean.size()) == s.tables, op, ": mean has ", mean.size(),
                  " entries for ", s.tables, " tables");
  for (int64_t t = 0; t < s.tables; ++t) {
    STD_TORCH_CHECK(weights[t].dim() == 2 && weights[t].is_contiguous(), op, ": weights[", t,
                    "] must be [slots, D] and contiguous");
    STD_TORCH_CHECK(weights[t].scalar_type() == base.scalar_type(), op, ": weights[", t,
                    "] and the pooled rows differ in dtype");
    s.rows.push_back(weights[t].size(0));
    s.dims.push_back(weights[t].size(1));
    s.first_column.push_back(s.columns);
    s.columns += weights[t].size(1);
  }
  STD_TORCH_CHECK(base.dim() == 2 && base.size(0) == s.batch && base.size(1) == s.columns, op,
                  ": the pooled rows must be [", s.batch, ", ", s.columns, "]");
  if (per_sample_weights) {
    STD_TORCH_CHECK(per_sample_weights->dim() == 1 && per_sample_weights->numel() == s.ids &&
                        per_sample_weights->scalar_type() == base.scalar_type(),
                    op, ": per_sample_weights must be [", s.ids,
                    "] as slots, with the rows' dtype");
    for (int64_t t = 0; t < s.tables; ++t)
      STD_TORCH_CHECK(mean[t] == 0, op, ": per_sample_weights needs sum pooling, but table ", t,
                      " averages");
  }
  return s;
}

inline Shape check_count(const std::vector<Tensor>& hot_counts, const std::vector<Tensor>& counts,
                         const std::vector<Tensor>& candidates, const Tensor& indices,
                         const Tensor& slots, const std::optional<Tensor>& offsets,
                         const std::vector<int64_t>& num_embeddings, int64_t stride,
                         int64_t phase) {
  const char* op = "hot_rows_count_";
  STD_TORCH_CHECK(stride >= 1 && phase >= 0 && phase < stride, op, ": stride = ", stride,
                  ", phase = ", phase, "; they must be at least 1, and 0 .. stride - 1");
  const Shape s =
      check_lookups(op, static_cast<int64_t>(hot_counts.size()), indices, "indices", offsets);
  check_indices(op, indices);
  STD_TORCH_CHECK(slots.dim() == 1 && slots.scalar_type() == ScalarType::Int &&
                      slots.numel() == s.ids && slots.is_contiguous(),
                  op, ": slots must be [", s.ids, "] int32 and contiguous");
  STD_TORCH_CHECK(counts.size() == hot_counts.size() && candidates.size() == hot_counts.size() &&
                      num_embeddings.size() == hot_counts.size(),
                  op, ": ", hot_counts.size(), " hot_counts, but ", counts.size(), " counts, ",
                  candidates.size(), " candidates and ", num_embeddings.size(), " num_embeddings");
  for (int64_t t = 0; t < s.tables; ++t) {
    STD_TORCH_CHECK(hot_counts[t].dim() == 1 && hot_counts[t].scalar_type() == ScalarType::Int &&
                        hot_counts[t].is_contiguous(),
                    op, ": hot_counts[", t, "] must be 1-D int32 and contiguous");
    const int64_t cells = candidates[t].numel();
    STD_TORCH_CHECK(candidates[t].dim() == 1 && candidates[t].scalar_type() == ScalarType::Long &&
                        candidates[t].is_contiguous() && (cells & (cells - 1)) == 0,
                    op, ": candidates[", t,
                    "] must be 1-D int64, contiguous and empty or a power of two long");
    STD_TORCH_CHECK(counts[t].dim() == 2 && counts[t].scalar_type() == ScalarType::Int &&
                        counts[t].is_contiguous() && counts[t].numel() > 0,
                    op, ": counts[", t, "] must be 2-D int32 and contiguous");
    const int64_t rows = counts[t].size(0), width = counts[t].size(1);
    if (cells > 0) {
      STD_TORCH_CHECK(rows == 2 && (width & (width - 1)) == 0 && num_embeddings[t] <= kMaxRows, op,
                      ": counts[", t, "] is [", rows, ", ", width,
                      "]; a sketch is [2, a power of two]");
    } else {
      STD_TORCH_CHECK(rows == 1 && width == num_embeddings[t], op, ": counts[", t, "] is [", rows,
                      ", ", width, "]; without candidates it is [1, ", num_embeddings[t], "]");
    }
  }
  return s;
}

}  // namespace recsys_opt::hot_rows
