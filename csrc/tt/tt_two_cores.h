#pragma once
// The forward pass of tables of two cores, as the "prefix" level of serving has them. There is no
// product to share, so ids are looked up as they come, without a plan; what counts is to ask for
// the slices of the first core, which is large, long before their use.
#include <string>

#include "tt_work.h"

namespace recsys_opt::tt {

template <typename T>
class TwoCores {
 public:
  TwoCores(const Work<T>& w, int64_t t, int64_t columns)
      : w_(w),
        t_(t),
        columns_(columns),
        rows_(kTableRows * w.table->dim),
        wide_(w.narrow_core ? kNarrowRows * w.width[1] : 0) {
    std::iota(order_, order_ + kNarrowRows, 0);
  }

  // Bags [begin, end) of the table; offsets: of its bags, checked.
  template <typename Index, typename Offset>
  Fault run(const Index* indices, const Offset* offsets, int64_t begin, int64_t end, T* out) {
    const Table& s = *w_.table;
    read_ = computed_ = offsets[begin];
    if (plain(offsets, begin, end)) {
      while (computed_ < offsets[end]) {
        if (computed_ == read_) {
          const Fault fault = read(indices, read_, std::min<int64_t>(read_ + kIds, offsets[end]));
          if (fault.position >= 0) return fault;
        }
        compute(out + (begin + computed_ - offsets[begin]) * s.dim);
      }
      return {};
    }
    for (int64_t b = begin; b < end; ++b) {
      T* bag = out + b * columns_ + s.column;
      int64_t count = 0;
      for (int64_t i = offsets[b]; i < offsets[b + 1]; ++i) {
        if (i == read_) {
          const Fault fault = read(indices, i, std::min<int64_t>(i + kIds, offsets[end]));
          if (fault.position >= 0) return fault;
        }
        if (i == computed_) compute(rows_.data());
        if (padding_[i - first_read_]) continue;
        add(w_.weights ? w_.weights[i] : T(1), i, bag, count++ == 0);
      }
      if (count == 0) std::fill_n(bag, s.dim, T(0));
      if (s.pooling == Pooling::kMean && count > 1) {
        for (int64_t e = 0; e < s.dim; ++e) bag[e] /= static_cast<T>(count);
      }
    }
    return {};
  }

 private:
  static constexpr int64_t kIds = 1024;       // that are read at once
  static constexpr int64_t kNarrowRows = 16;  // widened slices in work at once

  // Whether the bags' ids make the rows of the output as they are.
  template <typename Offset>
  bool plain(const Offset* offsets, int64_t begin, int64_t end) const {
    const Table& s = *w_.table;
    bool ones = !w_.weights && s.padding_idx < 0 && s.dim == columns_;
    for (int64_t b = begin; ones && b < end; ++b) ones = offsets[b + 1] - offsets[b] == 1;
    return ones;
  }

  template <typename Index>
  Fault read(const Index* indices, int64_t begin, int64_t end) {
    const Table& s = *w_.table;
    const Divider last(s.n[1]);
    for (int64_t i = begin; i < end; ++i) {
      auto id = static_cast<int64_t>(indices[i]);
      if (id < 0 || id >= s.num_embeddings) return id_fault(s, t_, i, id);
      padding_[i - begin] = id == s.padding_idx;
      const uint64_t prefix = last.quotient(static_cast<uint64_t>(id));
      node_[i - begin] = static_cast<int32_t>(prefix);
      last_[i - begin] = static_cast<int32_t>(id - prefix * last.divisor());
    }
    first_read_ = begin;
    read_ = end;
    return {};
  }

  // The rows of the next ids.
  void compute(T* out) {
    const Table& s = *w_.table;
    const int64_t begin = computed_ - first_read_, read = read_ - first_read_;
    const int64_t end = std::min(begin + (w_.narrow_core ? kNarrowRows : kTableRows), read);
    if (w_.narrow_core) {
      widen_slices(begin, end, read);
      const TableRows rows{order_, last_ + begin, 0, s.q[0], s.q[1], s.r[1], 0};
      w_.kernels->rows_forward(rows, 0, end - begin, wide_.data(), w_.core[1], out);
    } else {
      const TableRows rows{node_, last_, 0, s.q[0], s.q[1], s.r[1], read};
      w_.kernels->rows_forward(rows, begin, end, w_.core[0], w_.core[1], out);
    }
    first_computed_ = computed_;
    computed_ = first_read_ + end;
  }

  // Core 0's slices of ids [begin, end) of those read.
  void widen_slices(int64_t begin, int64_t end, int64_t read) {
    if constexpr (std::is_same_v<T, float>) {
      const int64_t width = w_.width[1], bytes = 2 * width;
      for (int64_t i = begin; i < end; ++i) {
        if (i + kNarrowRows < read) {
          const char* next = w_.narrow_core + node_[i + kNarrowRows] * bytes;
          for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(next + b);
        }
        widen(w_.narrow_core + node_[i] * bytes, w_.narrow_type, width,
              wide_.data() + (i - begin) * width);
      }
    }
  }

  void add(T factor, int64_t i, T* bag, bool first) {
    const T* row = rows_.data() + (i - first_computed_) * w_.table->dim;
    if (!first) return w_.kernels->axpy(factor, row, bag, w_.table->dim);
    for (int64_t e = 0; e < w_.table->dim; ++e) bag[e] = factor * row[e];
  }

  const Work<T>& w_;
  const int64_t t_, columns_;
  int64_t first_read_ = 0, read_ = 0, first_computed_ = 0, computed_ = 0;
  int32_t node_[kIds], last_[kIds];
  bool padding_[kIds];
  int32_t order_[kNarrowRows];
  Array<T> rows_, wide_;
};

// Bags [begin, end) of table t, by the types of ids and offsets.
template <typename T>
Fault look_up_two_cores(const Work<T>& w, int64_t t, const Arguments& args, const Tensor& indices,
                        const Tensor& offsets, int64_t begin, int64_t end, T* out) {
  const auto with = [&]<typename Index, typename Offset>(const Index* ids, const Offset* bounds) {
    return TwoCores<T>(w, t, args.columns).run(ids, bounds + t * args.batch_size, begin, end, out);
  };
  const auto with_ids = [&](const auto* ids) {
    return offsets.scalar_type() == ScalarType::Int ? with(ids, offsets.const_data_ptr<int32_t>())
                                                    : with(ids, offsets.const_data_ptr<int64_t>());
  };
  return indices.scalar_type() == ScalarType::Int ? with_ids(indices.const_data_ptr<int32_t>())
                                                  : with_ids(indices.const_data_ptr<int64_t>());
}

}  // namespace recsys_opt::tt
