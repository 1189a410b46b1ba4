#include "dense/sum_gradients.h"
#include "simd.h"

namespace recsys_opt {
namespace {

constexpr int64_t kPartLookups = 4096;  // fewer are no work to share
constexpr int64_t kPartsPerThread = 4;  // of one table's ids, where it is larger than the others

template <typename T>
ALWAYS_INLINE void copy_body(const T* __restrict from, T factor, int64_t dim, T* __restrict to) {
  for (int64_t d = 0; d < dim; ++d) to[d] = factor * from[d];
}
template <typename T>
ALWAYS_INLINE void add_body(const T* __restrict from, T factor, int64_t dim, T* __restrict to) {
  for (int64_t d = 0; d < dim; ++d) to[d] += factor * from[d];
}

// Sums the gradients of each id of a part, in the order of positions, into row `slot` of `sums`.
template <typename T, typename Id>
ALWAYS_INLINE void sum_gradients_body(const GradientBatch<T, Id>& batch, const UpdatePart& part,
                                      int64_t dim, IdSlots& slots, T* sums) {
  const DenseBagShape& s = batch.shape;
  for (const int64_t f : part.features) {
    const T* grad = batch.grad + s.first_column[f];
    for (int64_t b = 0; b < s.batch; ++b, grad += s.columns) {
      const int64_t bag = f * s.batch + b, first = batch.start(bag), last = batch.start(bag + 1);
      if (b + kUpdateAhead < s.batch) __builtin_prefetch(grad + kUpdateAhead * s.columns);
      const T scale =
          batch.mean[f] && last > first + 1 ? T(1) / static_cast<T>(last - first) : T(1);
      for (int64_t k = first; k < last; ++k) {
        const int64_t id = batch.ids[k];
        if (!slots.owns(id)) continue;
        const auto [slot, fresh] = slots.find(id);
        const T factor = batch.factors ? batch.factors[k] : scale;
        if (fresh)
          copy_body(grad, factor, dim, sums + slot * dim);
        else
          add_body(grad, factor, dim, sums + slot * dim);
      }
    }
  }
}
// The usual widths as constants: their rows are a few registers.
template <typename T, typename Id>
ALWAYS_INLINE void sum_gradients_of_width(const GradientBatch<T, Id>& batch, const UpdatePart& part,
                                          IdSlots& slots, T* sums) {
  const int64_t dim = batch.shape.dims[part.table];
  switch (dim) {
    case 16:
      return sum_gradients_body(batch, part, 16, slots, sums);
    case 64:
      return sum_gradients_body(batch, part, 64, slots, sums);
    default:
      return sum_gradients_body(batch, part, dim, slots, sums);
  }
}

}  // namespace

SIMD_CLONES void sum_gradients(const GradientBatch<float, int32_t>& batch, const UpdatePart& part,
                               IdSlots& slots, float* sums) {
  sum_gradients_of_width(batch, part, slots, sums);
}
SIMD_CLONES void sum_gradients(const GradientBatch<float, int64_t>& batch, const UpdatePart& part,
                               IdSlots& slots, float* sums) {
  sum_gradients_of_width(batch, part, slots, sums);
}
SIMD_CLONES void sum_gradients(const GradientBatch<double, int32_t>& batch, const UpdatePart& part,
                               IdSlots& slots, double* sums) {
  sum_gradients_of_width(batch, part, slots, sums);
}
SIMD_CLONES void sum_gradients(const GradientBatch<double, int64_t>& batch, const UpdatePart& part,
                               IdSlots& slots, double* sums) {
  sum_gradients_of_width(batch, part, slots, sums);
}

std::vector<UpdatePart> make_update_parts(const std::vector<int64_t>& lookups,
                                          const std::vector<int64_t>& owner) {
  const auto count = static_cast<int64_t>(lookups.size());
  std::vector<UpdatePart> tables(count);
  int64_t all = 0;
  for (int64_t f = 0; f < count; ++f) {
    UpdatePart& part = tables[owner[f]];
    part.table = owner[f];
    part.features.push_back(f);
    part.lookups += lookups[f];
    all += lookups[f];
  }
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t share = std::max(kPartLookups, all / (kPartsPerThread * threads));
  std::vector<UpdatePart> parts;
  for (UpdatePart& part : tables) {
    if (part.lookups == 0) continue;
    part.count = threads == 1 ? 1 : std::min(threads, (part.lookups + share - 1) / share);
    for (part.index = 0; part.index < part.count; ++part.index) parts.push_back(part);
  }
  return parts;
}

}  // namespace recsys_opt
