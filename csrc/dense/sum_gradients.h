#pragma once
// Updates of looked-up rows on the CPU, wherever they are: the gradients of one id are summed in
// the order of their positions, then its row is updated once. Rows says where a table's rows are:
//
//   rows.prefetch(id)      asks for a row and its states
//   rows.apply(id, grad)   updates them by the row's gradient, which it overwrites
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <vector>

#include "dense/dense_bag.h"
#include "dense/id_slots.h"
#include "tt/tt_array.h"
#include "tt/tt_update.h"

namespace recsys_opt {

constexpr int64_t kUpdateAhead = 16;  // rows asked for ahead

// The features of one table, and the share of its ids that a task takes.
struct UpdatePart {
  int64_t table;  // the first of its features
  std::vector<int64_t> features;
  int64_t lookups, index, count;
};

template <typename T, typename Id>
struct GradientBatch {
  const DenseBagShape& shape;
  const Id* ids;
  const int64_t* offsets;  // null: one id per bag
  const T* factors;        // null: all 1
  const std::vector<int64_t>& mean;
  const T* grad;  // [B, columns]

  int64_t start(int64_t bag) const { return offsets ? offsets[bag] : bag; }
};

// Sums the gradients of each id of a part, in the order of positions, into row `slot` of `sums`.
void sum_gradients(const GradientBatch<float, int32_t>& batch, const UpdatePart& part,
                   IdSlots& slots, float* sums);
void sum_gradients(const GradientBatch<float, int64_t>& batch, const UpdatePart& part,
                   IdSlots& slots, float* sums);
void sum_gradients(const GradientBatch<double, int32_t>& batch, const UpdatePart& part,
                   IdSlots& slots, double* sums);
void sum_gradients(const GradientBatch<double, int64_t>& batch, const UpdatePart& part,
                   IdSlots& slots, double* sums);

// lookups[t] of the features whose table is owner[t]'s. How the work is shared changes with the
// number of threads, the order of a row's sum does not.
std::vector<UpdatePart> make_update_parts(const std::vector<int64_t>& lookups,
                                          const std::vector<int64_t>& owner);

template <typename T, typename Id>
void check_update_ids(const char* op, const GradientBatch<T, Id>& batch) {
  const DenseBagShape& s = batch.shape;
  for (int64_t t = 0; t < s.tables; ++t) {
    const int64_t first = batch.start(t * s.batch), last = batch.start((t + 1) * s.batch);
    const auto rows = static_cast<uint64_t>(s.rows[t]);
    bool fits = true;
    for (int64_t k = first; k < last; ++k)
      fits &= static_cast<uint64_t>(static_cast<int64_t>(batch.ids[k])) < rows;
    for (int64_t k = first; k < last && !fits; ++k)
      STD_TORCH_CHECK(static_cast<uint64_t>(static_cast<int64_t>(batch.ids[k])) < rows, op,
                      ": indices[", k, "] = ", batch.ids[k], " is outside the ", s.rows[t],
                      " rows of table ", t);
  }
}

// tables[f]: the rows that feature f looks up.
template <typename T, typename Id, typename Rows>
void update_rows(const GradientBatch<T, Id>& batch, const std::vector<int64_t>& owner,
                 const std::vector<Rows>& tables) {
  const DenseBagShape& s = batch.shape;
  std::vector<int64_t> lookups(s.tables);
  for (int64_t f = 0; f < s.tables; ++f)
    lookups[f] = batch.start((f + 1) * s.batch) - batch.start(f * s.batch);
  const std::vector<UpdatePart> parts = make_update_parts(lookups, owner);
  const auto count = static_cast<int64_t>(parts.size());
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, count, 1, [&](int64_t, int64_t) {
    for (int64_t i = next++; i < count; i = next++) {
      const UpdatePart& part = parts[i];
      const Rows& rows = tables[part.table];
      const int64_t dim = s.dims[part.table];
      IdSlots slots(s.rows[part.table], part.lookups, part.index, part.count);
      tt::Array<T> sums(std::min(s.rows[part.table], part.lookups) * dim);
      sum_gradients(batch, part, slots, sums.data());
      for (int64_t slot = 0; slot < slots.size(); ++slot) {
        if (slot + kUpdateAhead < slots.size()) rows.prefetch(slots.id(slot + kUpdateAhead));
        rows.apply(slots.id(slot), sums.data() + slot * dim);
      }
    }
  });
}

// Asks for a row and its states.
template <typename T>
void prefetch_row(const tt::CoreUpdate<T>& update, int64_t id) {
  const int64_t dim = update.slice_size;
  const auto touch = [](const T* numbers, int64_t count) {
    for (int64_t k = 0; k < count; k += 64 / sizeof(T)) __builtin_prefetch(numbers + k, 1);
  };
  const bool rowwise = update.rule->algorithm == tt::Algorithm::kRowwiseAdagrad;
  touch(update.core + id * dim, dim);
  for (const T* state : update.states)
    if (state) touch(state + (rowwise ? id : id * dim), rowwise ? 1 : dim);
}

}  // namespace recsys_opt
