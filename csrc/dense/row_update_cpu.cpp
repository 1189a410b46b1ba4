#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cmath>
#include <limits>

#include "as_contiguous.h"
#include "dense/row_update.h"
#include "dispatch.h"
#include "simd.h"

namespace recsys_opt {
namespace {

using torch::stable::Tensor;

constexpr int64_t kPrefetch = 12;  // rows asked for ahead of their update
constexpr int64_t kGrain = 512;    // lookups per task

struct Lookup {
  int64_t id;
  int64_t position;
};

// Sorts by id, equal ids by position: a radix sort, least significant digit first, which is stable.
void sort_by_id(const int64_t* ids, int64_t n, int64_t rows, Lookup* out,
                std::vector<Lookup>& spare) {
  constexpr int kDigitBits = 11;
  const int bits = std::bit_width(static_cast<uint64_t>(std::max<int64_t>(rows - 1, 1)));
  const int passes = (bits + kDigitBits - 1) / kDigitBits;
  const int digit_bits = (bits + passes - 1) / passes;
  const int64_t digits = int64_t{1} << digit_bits;
  spare.resize(n);
  // The passes alternate between the two buffers and end in `out`.
  Lookup* from = passes % 2 ? spare.data() : out;
  Lookup* to = passes % 2 ? out : spare.data();
  for (int64_t k = 0; k < n; ++k) from[k] = {ids[k], k};
  std::array<int64_t, int64_t{1} << kDigitBits> starts;
  for (int pass = 0; pass < passes; ++pass) {
    const int shift = pass * digit_bits;
    std::fill_n(starts.begin(), digits, 0);
    for (int64_t k = 0; k < n; ++k) ++starts[(from[k].id >> shift) & (digits - 1)];
    int64_t sum = 0;
    for (int64_t d = 0; d < digits; ++d) sum += std::exchange(starts[d], sum);
    for (int64_t k = 0; k < n; ++k) to[starts[(from[k].id >> shift) & (digits - 1)]++] = from[k];
    std::swap(from, to);
  }
}

template <typename T>
ALWAYS_INLINE void add_body(const T* from, int64_t dim, T* to) {
  for (int64_t d = 0; d < dim; ++d) to[d] += from[d];
}
template <typename T>
ALWAYS_INLINE void descend_body(const T* gradient, T rate, int64_t dim, T* row) {
  for (int64_t d = 0; d < dim; ++d) row[d] -= rate * gradient[d];
}
// The order of additions is fixed, whatever the width of the registers.
template <typename T>
ALWAYS_INLINE T mean_square_body(const T* x, int64_t dim) {
  T lanes[8] = {};
  int64_t d = 0;
  for (; d + 8 <= dim; d += 8)
    for (int64_t k = 0; k < 8; ++k) lanes[k] += x[d + k] * x[d + k];
  T sum = 0;
  for (int64_t k = 0; k < 8; ++k) sum += lanes[k];
  for (; d < dim; ++d) sum += x[d] * x[d];
  return sum / static_cast<T>(dim);
}

template <typename T>
struct Table {
  T* weight;
  T* state;  // null: SGD
  const T* grads;
  int64_t grad_stride, dim;
};

// Updates the rows of lookups [begin, end), whose ids are sorted; `sum` is scratch of `dim`
// numbers.
template <typename T>
ALWAYS_INLINE void update_rows_body(const Table<T>& table, const Lookup* lookups, int64_t begin,
                                    int64_t end, T lr, T eps, T* sum) {
  const int64_t dim = table.dim;
  for (int64_t k = begin; k < end;) {
    if (k + kPrefetch < end) {
      const Lookup& next = lookups[k + kPrefetch];
      const char* row = reinterpret_cast<const char*>(table.weight + next.id * dim);
      for (int64_t byte = 0; byte < dim * static_cast<int64_t>(sizeof(T)); byte += 64)
        __builtin_prefetch(row + byte, 1);
      if (table.state) __builtin_prefetch(table.state + next.id, 1);
      __builtin_prefetch(table.grads + next.position * table.grad_stride);
    }
    const int64_t id = lookups[k].id;
    const T* gradient = table.grads + lookups[k].position * table.grad_stride;
    if (++k < end && lookups[k].id == id) {
      std::copy_n(gradient, dim, sum);
      for (; k < end && lookups[k].id == id; ++k)
        add_body(table.grads + lookups[k].position * table.grad_stride, dim, sum);
      gradient = sum;
    }
    T rate = lr;
    if (table.state) {
      table.state[id] += mean_square_body(gradient, dim);
      rate = lr / (std::sqrt(table.state[id]) + eps);
    }
    descend_body(gradient, rate, dim, table.weight + id * dim);
  }
}
SIMD_CLONES void update_rows(const Table<float>& table, const Lookup* lookups, int64_t begin,
                             int64_t end, float lr, float eps, float* sum) {
  update_rows_body(table, lookups, begin, end, lr, eps, sum);
}
SIMD_CLONES void update_rows(const Table<double>& table, const Lookup* lookups, int64_t begin,
                             int64_t end, double lr, double eps, double* sum) {
  update_rows_body(table, lookups, begin, end, lr, eps, sum);
}

// All lookups of all tables, sorted by id within their table.
struct Sorted {
  std::vector<Lookup> lookups;
  std::vector<int64_t> first;  // [T + 1] where each table's lookups begin
};

Sorted sort_lookups(const std::vector<Tensor>& weights, const std::vector<Tensor>& ids) {
  const auto tables = static_cast<int64_t>(weights.size());
  Sorted s{{}, std::vector<int64_t>(tables + 1, 0)};
  for (int64_t t = 0; t < tables; ++t) s.first[t + 1] = s.first[t] + ids[t].numel();
  s.lookups.resize(s.first[tables]);
  std::vector<int64_t> bad(tables, -1);
  const int64_t grain = std::max<int64_t>(1, tables * 2048 / std::max<int64_t>(s.first[tables], 1));
  torch::stable::parallel_for(0, tables, grain, [&](int64_t begin, int64_t end) {
    std::vector<Lookup> spare;
    for (int64_t t = begin; t < end; ++t) {
      const int64_t n = ids[t].numel(), rows = weights[t].size(0);
      const int64_t* p = ids[t].const_data_ptr<int64_t>();
      for (int64_t k = 0; k < n && bad[t] < 0; ++k)
        if (p[k] < 0 || p[k] >= rows) bad[t] = k;
      if (bad[t] < 0) sort_by_id(p, n, rows, s.lookups.data() + s.first[t], spare);
    }
  });
  for (int64_t t = 0; t < tables; ++t)
    STD_TORCH_CHECK(bad[t] < 0, "row update: ids[", t, "][", bad[t],
                    "] = ", ids[t].const_data_ptr<int64_t>()[std::max<int64_t>(bad[t], 0)],
                    " is outside the ", weights[t].size(0), " rows of table ", t);
  return s;
}

template <typename T>
void update(const std::vector<Tensor>& weights, const std::vector<Tensor>* states,
            const std::vector<Tensor>& grads, const Sorted& sorted, T lr, T eps) {
  std::vector<Table<T>> tables;
  int64_t widest = 1;
  for (size_t t = 0; t < weights.size(); ++t) {
    tables.push_back({weights[t].mutable_data_ptr<T>(),
                      states ? (*states)[t].mutable_data_ptr<T>() : nullptr,
                      grads[t].const_data_ptr<T>(), grads[t].stride(0), weights[t].size(1)});
    widest = std::max(widest, weights[t].size(1));
  }
  const Lookup* lookups = sorted.lookups.data();
  torch::stable::parallel_for(0, sorted.first.back(), kGrain, [&](int64_t begin, int64_t end) {
    std::vector<T> sum(widest);
    auto t = std::upper_bound(sorted.first.begin(), sorted.first.end(), begin) -
             sorted.first.begin() - 1;
    for (; t < static_cast<int64_t>(tables.size()) && sorted.first[t] < end; ++t) {
      // A task takes the ids that begin in its range, each with all its lookups.
      const int64_t first = sorted.first[t], last = sorted.first[t + 1];
      int64_t from = std::max(begin, first), to = std::min(end, last);
      while (from > first && from < last && lookups[from].id == lookups[from - 1].id) ++from;
      while (to > first && to < last && lookups[to].id == lookups[to - 1].id) ++to;
      update_rows(tables[t], lookups, from, to, lr, eps, sum.data());
    }
  });
}

// Rows of `grads` with unit column stride; most come from the backward pass as they must be.
std::vector<Tensor> with_dense_rows(const std::vector<Tensor>& grads) {
  std::vector<Tensor> result;
  for (const Tensor& g : grads)
    result.push_back(g.stride(1) == 1 || g.size(1) == 1 ? g : as_contiguous(g));
  return result;
}

void sgd_rows_cpu(std::vector<Tensor> weights, std::vector<Tensor> ids, std::vector<Tensor> grads,
                  double lr) {
  check_row_update_args(weights, ids, grads, nullptr);
  grads = with_dense_rows(grads);
  const Sorted sorted = sort_lookups(weights, ids);
  dispatch_floating("sgd_rows_cpu", weights[0].scalar_type(), [&](auto zero) {
    using scalar_t = decltype(zero);
    update<scalar_t>(weights, nullptr, grads, sorted, static_cast<scalar_t>(lr), scalar_t(0));
  });
}

void rowwise_adagrad_rows_cpu(std::vector<Tensor> weights, std::vector<Tensor> states,
                              std::vector<Tensor> ids, std::vector<Tensor> grads, double lr,
                              double eps) {
  check_row_update_args(weights, ids, grads, &states);
  grads = with_dense_rows(grads);
  const Sorted sorted = sort_lookups(weights, ids);
  dispatch_floating("rowwise_adagrad_rows_cpu", weights[0].scalar_type(), [&](auto zero) {
    using scalar_t = decltype(zero);
    update<scalar_t>(weights, &states, grads, sorted, static_cast<scalar_t>(lr),
                     static_cast<scalar_t>(eps));
  });
}

}  // namespace
}  // namespace recsys_opt

STABLE_TORCH_LIBRARY_IMPL(recsys_opt, CPU, m) {
  m.impl("sgd_rows_", TORCH_BOX(&recsys_opt::sgd_rows_cpu));
  m.impl("rowwise_adagrad_rows_", TORCH_BOX(&recsys_opt::rowwise_adagrad_rows_cpu));
}
