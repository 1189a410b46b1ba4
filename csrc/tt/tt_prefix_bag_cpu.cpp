// tt_prefix_bag on the CPU. Ids are looked up as they come: there is no product to share. What
// counts is to ask for the rows of the prefix core, which is large, long before their use.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <string>

#include "as_contiguous.h"
#include "simd.h"
#include "tt_ids.h"
#include "tt_prefix_rows.h"
#include "tt_reduced.h"
#include "tt_work.h"

namespace recsys_opt::tt {
namespace {

// Loops without a branch, so that they become vector instructions: a number is negative, or beyond
// the most allowed, where its top bit or that of the difference is set.
template <typename T>
ALWAYS_INLINE std::make_unsigned_t<T> outside(T number, T most) {
  using U = std::make_unsigned_t<T>;
  return static_cast<U>(number) | (static_cast<U>(most) - static_cast<U>(number));
}
template <typename U>
ALWAYS_INLINE bool top_bit(U bits) {
  return bits >> (8 * sizeof(U) - 1);
}

// Whether bounds[0 .. n] are of n bags within `limit` indices, and whether every bag has one.
struct Bounds {
  bool good, ones;
};
template <typename Offset>
ALWAYS_INLINE Bounds check_bounds_body(const Offset* bounds, int64_t n, int64_t limit) {
  const auto most = static_cast<Offset>(limit);
  auto bad = outside(bounds[n], most);
  std::make_unsigned_t<Offset> uneven = 0;
  for (int64_t b = 0; b < n; ++b) {
    bad |= outside(bounds[b], most) | outside(bounds[b], bounds[b + 1]);
    uneven |= static_cast<std::make_unsigned_t<Offset>>(bounds[b] + 1) ^
              static_cast<std::make_unsigned_t<Offset>>(bounds[b + 1]);
  }
  return {!top_bit(bad), uneven == 0};
}
SIMD_CLONES Bounds check_bounds(const int32_t* bounds, int64_t n, int64_t limit) {
  return check_bounds_body(bounds, n, limit);
}
SIMD_CLONES Bounds check_bounds(const int64_t* bounds, int64_t n, int64_t limit) {
  return check_bounds_body(bounds, n, limit);
}

// Takes n ids below 2^31 apart by a divisor; returns whether all were in [0, rows).
template <typename Index>
ALWAYS_INLINE bool take_apart_body(const Index* __restrict ids, int64_t n, int64_t rows,
                                   int32_t divisor, int32_t* __restrict node,
                                   int32_t* __restrict digit) {
  std::make_unsigned_t<Index> bad = 0;
  const double inverse = 1.0 / divisor;
  const auto most = static_cast<Index>(rows - 1);
  for (int64_t i = 0; i < n; ++i) {
    bad |= outside(ids[i], most);
    const auto id = static_cast<int32_t>(ids[i]);
    // Half a step above the quotient's lower end: rounding does not reach the next whole number.
    const auto quotient = static_cast<int32_t>((id + 0.5) * inverse);
    node[i] = quotient;
    digit[i] = static_cast<int32_t>(static_cast<uint32_t>(id) - static_cast<uint32_t>(quotient) *
                                                                    static_cast<uint32_t>(divisor));
  }
  return !top_bit(bad);
}
SIMD_CLONES bool take_apart(const int32_t* ids, int64_t n, int64_t rows, int32_t divisor,
                            int32_t* node, int32_t* digit) {
  return take_apart_body(ids, n, rows, divisor, node, digit);
}
SIMD_CLONES bool take_apart(const int64_t* ids, int64_t n, int64_t rows, int32_t divisor,
                            int32_t* node, int32_t* digit) {
  return take_apart_body(ids, n, rows, divisor, node, digit);
}

// sum[n] += factor * row[n]
SIMD_CLONES void add_row(float factor, const float* row, float* sum, int64_t n) {
  for (int64_t e = 0; e < n; ++e) sum[e] += factor * row[e];
}
SIMD_CLONES void add_row(double factor, const double* row, double* sum, int64_t n) {
  for (int64_t e = 0; e < n; ++e) sum[e] += factor * row[e];
}

constexpr int64_t kBagsOfTask = 1024;
constexpr int64_t kIds = 1024;  // that are read at once
constexpr int64_t kRows = 64;   // that are made at once, where they do not go into the output

struct Batch {
  const void* indices;
  const void* offsets;  // or nullptr
  const void* weights;  // or nullptr; of type Sum
  bool narrow_indices;
  bool narrow_offsets;
  void* out;
};

template <typename Sum, typename Index, typename Offset>
class PrefixBags {
 public:
  PrefixBags(const PrefixArguments& args, int64_t t, const Batch& batch, ScalarType type)
      : args_(args),
        t_(t),
        table_(args.tables[t]),
        type_(type),
        reduced_(is_reduced(type)),
        make_rows_(make_rows_of<Sum>(table_, type)),
        make_narrow_rows_(reduced_ ? make_narrow_rows_of(table_, type) : nullptr),
        indices_(static_cast<const Index*>(batch.indices)),
        offsets_(static_cast<const Offset*>(batch.offsets)),
        weights_(static_cast<const Sum*>(batch.weights)),
        out_(static_cast<char*>(batch.out)),
        prefix_row_bytes_(table_.width[0] *
                          (reduced_ ? 2 * steps_of(type) : static_cast<int64_t>(sizeof(Sum)))),
        scratch_(type == ScalarType::Half ? table_.width[0] + table_.width[1] : 0) {}

  // Bags [begin, end) of the table.
  Fault run(int64_t begin, int64_t end) {
    bool ones = true;
    if (offsets_) {
      // The end of the last bag may be left out.
      const int64_t c = t_ * args_.batch_size + begin, given = args_.given_offsets;
      const int64_t bags = std::min(end - begin, given - 1 - c);
      const Bounds bounds = check_bounds(offsets_ + c, bags, args_.num_indices);
      if (!bounds.good || (c == 0 && offsets_[0] != 0)) return offsets_fault(c, bags);
      ones = bounds.ones && bound(end) - bound(begin + bags) == end - begin - bags;
    }
    first_ = known_ = made_ = bound(begin);
    until_ = bound(end);
    return ones && !weights_ && table_.padding_idx < 0 ? copy_rows(begin) : pool(begin, end);
  }

 private:
  int64_t bound(int64_t b) const {
    const int64_t c = t_ * args_.batch_size + b;
    if (!offsets_) return c;
    return c < args_.given_offsets ? static_cast<int64_t>(offsets_[c]) : args_.num_indices;
  }

  // What is wrong with the bounds of bags [c, c + bags) of the call.
  Fault offsets_fault(int64_t c, int64_t bags) const {
    const auto name = [&](int64_t i) {
      return "offsets[" + std::to_string(i) + "] = " + std::to_string(offsets_[i]);
    };
    for (int64_t i = c; i <= c + bags; ++i) {
      if (offsets_[i] < 0 || offsets_[i] > args_.num_indices) {
        return {i, name(i) + " is outside the " + std::to_string(args_.num_indices) + " indices"};
      }
      if (i == 0 && offsets_[0] != 0) return {0, name(0) + "; the first bag must start at 0"};
      if (i > c && offsets_[i] < offsets_[i - 1]) {
        return {i, name(i) + " is less than " + name(i - 1)};
      }
    }
    return {};
  }

  // The first id from `begin` on that is out of range.
  Fault id_fault(int64_t begin) const {
    int64_t i = begin;
    while (indices_[i] >= 0 && indices_[i] < table_.num_embeddings) ++i;
    return {i, "indices[" + std::to_string(i) + "] = " + std::to_string(indices_[i]) +
                   " is outside the table's " + std::to_string(table_.num_embeddings) +
                   " rows (table " + std::to_string(t_) + ")"};
  }

  // Where the table's columns of bag b lie in the output.
  char* out_row(int64_t b) const {
    const int64_t at = b * args_.columns + table_.column;
    return out_ + at * (reduced_ ? 2 : static_cast<int64_t>(sizeof(Sum)));
  }

  // Results of bags [b, b + count).
  void write(const Sum* rows, int64_t b, int64_t count) const {
    const bool together = args_.columns == table_.dim;
    const int64_t size = together ? count * table_.dim : table_.dim;
    for (int64_t i = 0; i < (together ? 1 : count); ++i, rows += size) {
      if constexpr (std::is_same_v<Sum, float>) {
        if (reduced_) {
          narrow(rows, size, type_, out_row(b + i));
          continue;
        }
      }
      std::copy_n(rows, size, reinterpret_cast<Sum*>(out_row(b + i)));
    }
  }

  // Every bag is one id: rows are results.
  Fault copy_rows(int64_t begin) {
    const int64_t first = first_;
    while (made_ < until_) {
      if (made_ == known_) {
        const Fault fault = read();
        if (fault.position >= 0) return fault;
      }
      const int64_t b = begin + made_ - first;
      if (!reduced_) {
        make(known_ - made_, reinterpret_cast<Sum*>(out_row(b)), args_.columns);
        continue;
      }
      if (make_narrow_rows_) {
        make_narrow_rows_(table_, {node_, digit_, known_ - first_}, made_ - first_, known_ - first_,
                          out_row(b), args_.columns);
        made_ = known_;
        continue;
      }
      const int64_t count = std::min(kRows, known_ - made_);
      make(count, rows(), table_.dim);
      write(rows(), b, count);
    }
    return {};
  }

  Fault pool(int64_t begin, int64_t end) {
    Array<Sum> sum(table_.dim);
    int64_t made_from = made_;
    for (int64_t b = begin; b < end; ++b) {
      std::fill_n(sum.data(), table_.dim, Sum(0));
      int64_t count = 0;
      const int64_t stop = bound(b + 1);
      for (int64_t i = bound(b); i < stop; ++i) {
        if (i == known_) {
          const Fault fault = read();
          if (fault.position >= 0) return fault;
        }
        if (i == made_) {
          made_from = made_;
          make(std::min(kRows, known_ - made_), rows(), table_.dim);
        }
        if (static_cast<int64_t>(indices_[i]) == table_.padding_idx) continue;
        ++count;
        add_row(weights_ ? weights_[i] : Sum(1), rows() + (i - made_from) * table_.dim, sum.data(),
                table_.dim);
      }
      if (table_.pooling == Pooling::kMean && count > 1) {
        for (int64_t e = 0; e < table_.dim; ++e) sum[e] /= static_cast<Sum>(count);
      }
      write(sum.data(), b, 1);
    }
    return {};
  }

  // Takes the next ids apart, and asks for the first of their rows.
  Fault read() {
    const int64_t count = std::min(kIds, until_ - known_);
    if (!read_ids(indices_ + known_, count)) return id_fault(known_);
    const auto* prefix = static_cast<const char*>(table_.prefix);
    const int64_t ahead = std::min(count, rows_ahead(prefix_row_bytes_));
    for (int64_t i = 0; i < ahead; ++i) {
      const char* row = prefix + node_[i] * prefix_row_bytes_;
      for (int64_t byte = 0; byte < prefix_row_bytes_; byte += 64) __builtin_prefetch(row + byte);
    }
    first_ = known_;
    known_ += count;
    return {};
  }

  bool read_ids(const Index* ids, int64_t count) {
    const int64_t divisor = table_.n[1];
    if (table_.num_embeddings <= std::numeric_limits<int32_t>::max()) {
      return take_apart(ids, count, table_.num_embeddings,
                        static_cast<int32_t>(std::min(divisor, table_.num_embeddings)), node_,
                        digit_);
    }
    for (int64_t i = 0; i < count; ++i) {
      const auto id = static_cast<int64_t>(ids[i]);
      if (id < 0 || id >= table_.num_embeddings) return false;
      node_[i] = static_cast<int32_t>(id / divisor);
      digit_[i] = static_cast<int32_t>(id % divisor);
    }
    return true;
  }

  // The rows of the next `count` ids.
  void make(int64_t count, Sum* out, int64_t stride) {
    const int64_t begin = made_ - first_;
    make_rows_(table_, {node_, digit_, known_ - first_}, begin, begin + count, out, stride,
               scratch_.data());
    made_ += count;
  }

  Sum* rows() {
    if (rows_.size() == 0) rows_ = Array<Sum>(kRows * table_.dim);
    return rows_.data();
  }

  const PrefixArguments& args_;
  const int64_t t_;
  const PrefixTable& table_;
  const ScalarType type_;
  const bool reduced_;
  const MakeRows<Sum> make_rows_;
  const MakeNarrowRows make_narrow_rows_;
  const Index* indices_;
  const Offset* offsets_;
  const Sum* weights_;
  char* out_;
  const int64_t prefix_row_bytes_;
  Array<Sum> scratch_, rows_;
  // Ids [first_, known_) are taken apart, of [first_, made_) there are rows; the last is until_.
  int64_t first_ = 0, known_ = 0, made_ = 0, until_ = 0;
  int32_t node_[kIds], digit_[kIds];
};

// Calls f(id type, offset type).
template <typename F>
Fault by_types(const Batch& batch, const F& f) {
  if (batch.narrow_indices) {
    return batch.narrow_offsets ? f(int32_t{}, int32_t{}) : f(int32_t{}, int64_t{});
  }
  return batch.narrow_offsets ? f(int64_t{}, int32_t{}) : f(int64_t{}, int64_t{});
}

template <typename Sum>
void look_up(const PrefixArguments& args, const Batch& batch, ScalarType type) {
  const int64_t blocks = (args.batch_size + kBagsOfTask - 1) / kBagsOfTask;
  std::vector<Fault> faults(args.size() * blocks);
  for_each_task(args.size() * blocks, [&](int64_t i) {
    const int64_t begin = i % blocks * kBagsOfTask;
    const int64_t end = std::min(begin + kBagsOfTask, args.batch_size);
    faults[i] = by_types(batch, [&]<typename Index, typename Offset>(Index, Offset) {
      return PrefixBags<Sum, Index, Offset>(args, i / blocks, batch, type).run(begin, end);
    });
  });
  for (const Fault& fault : faults) {
    STD_TORCH_CHECK(fault.position < 0, "tt_prefix_bag: ", fault.message);
  }
}

Tensor tt_prefix_bag_cpu(Tensor indices, std::optional<Tensor> offsets,
                         std::vector<Tensor> prefixes, std::vector<Tensor> lasts,
                         std::vector<int64_t> num_embeddings, std::vector<int64_t> pooling_modes,
                         std::vector<int64_t> padding_idx, std::optional<Tensor> per_sample_weights,
                         bool include_last_offset) {
  const PrefixArguments args =
      check_prefix_arguments(indices, offsets, prefixes, lasts, num_embeddings, pooling_modes,
                             padding_idx, per_sample_weights, include_last_offset);
  const ScalarType type = prefixes[0].scalar_type(), compute = compute_type(type);
  STD_TORCH_CHECK(compute == ScalarType::Float || compute == ScalarType::Double,
                  "tt_prefix_bag: the cores must be float32, float64, bfloat16 or float16");
  indices = as_contiguous(indices);
  if (offsets) offsets = as_contiguous(*offsets);
  if (per_sample_weights) per_sample_weights = contiguous_as(*per_sample_weights, compute);
  Tensor out = torch::stable::new_empty(prefixes[0], {args.batch_size, args.columns});
  const Batch batch{indices.const_data_ptr(),
                    offsets ? offsets->const_data_ptr() : nullptr,
                    per_sample_weights ? per_sample_weights->const_data_ptr() : nullptr,
                    indices.scalar_type() == ScalarType::Int,
                    offsets && offsets->scalar_type() == ScalarType::Int,
                    out.mutable_data_ptr()};
  if (compute == ScalarType::Float) {
    look_up<float>(args, batch, type);
  } else {
    look_up<double>(args, batch, type);
  }
  return out;
}

}  // namespace
}  // namespace recsys_opt::tt

STABLE_TORCH_LIBRARY_IMPL(recsys_opt, CPU, m) {
  m.impl("tt_prefix_bag", TORCH_BOX(&recsys_opt::tt::tt_prefix_bag_cpu));
}
