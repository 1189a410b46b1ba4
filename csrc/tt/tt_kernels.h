#pragma once
// The inner loops of the CPU kernels, compiled once per instruction set; `kernels` picks the widest
// that the machine and the ranks allow. All matrices are row-major.
#include <cstdint>

namespace recsys_opt::tt {

template <typename T>
struct Kernels {
  int64_t lanes;  // every rank between cores is a multiple of it

  // c[m, n] = a[m, k] . b[k, n]  (+ c).  x_row: elements from one row of x to the next.
  void (*gemm)(const T* a, int64_t a_row, const T* b, int64_t b_row, T* c, int64_t c_row, int64_t m,
               int64_t k, int64_t n, bool accumulate);

  // c[m, n] = a[k, m]^T . b[k, n]  (+ c)
  void (*gemm_transposed)(const T* a, int64_t a_row, const T* b, int64_t b_row, T* c, int64_t c_row,
                          int64_t m, int64_t k, int64_t n, bool accumulate);

  // out[columns, rows] = in[rows, columns]^T
  void (*transpose)(const T* in, int64_t rows, int64_t columns, T* out);

  // row[m, q] = prefix[m, r] . core[q, r]^T
  void (*row_forward)(const T* prefix, const T* core, T* row, int64_t m, int64_t q, int64_t r);

  // grad_prefix[m, r] += grad_row[m, q] . core[q, r]
  // grad_core[q, r]   += grad_row[m, q]^T . prefix[m, r]
  void (*row_backward)(const T* prefix, const T* core, const T* grad_row, T* grad_prefix,
                       T* grad_core, int64_t m, int64_t q, int64_t r);

  // y[n] = weight * x[n]
  void (*scale)(T weight, const T* x, T* y, int64_t n);

  // y[n] += weight * x[n]
  void (*axpy)(T weight, const T* x, T* y, int64_t n);

  // x[n] . y[n]
  T (*dot)(const T* x, const T* y, int64_t n);
};

// Instruction sets, narrowest first.
enum class Isa : int64_t { kPortable = 0, kAvx2 = 1, kAvx512 = 2 };

// The kernels for ranks that are all multiples of `ranks_divisor`.
template <typename T>
const Kernels<T>& kernels(int64_t ranks_divisor);

// Lets the calls to come use no wider instruction set; returns the widest of those that the machine
// has.
Isa limit_isa(Isa widest);

// One set per instruction set, widest first; nullptr where the machine lacks it or no width divides
// the ranks.
template <typename T>
const Kernels<T>* avx512_kernels(int64_t ranks_divisor);
template <typename T>
const Kernels<T>* avx2_kernels(int64_t ranks_divisor);
template <typename T>
const Kernels<T>* portable_kernels(int64_t ranks_divisor);

}  // namespace recsys_opt::tt
