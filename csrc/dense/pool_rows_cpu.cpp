#include "dense/pool_rows.h"

namespace recsys_opt {
namespace {

template <typename T>
ALWAYS_INLINE void add_row_body(const T* row, T factor, int64_t dim, T* out) {
  for (int64_t d = 0; d < dim; ++d) out[d] += factor * row[d];
}

}  // namespace

SIMD_CLONES void add_row(const float* row, float factor, int64_t dim, float* out) {
  add_row_body(row, factor, dim, out);
}
SIMD_CLONES void add_row(const double* row, double factor, int64_t dim, double* out) {
  add_row_body(row, factor, dim, out);
}

}  // namespace recsys_opt
