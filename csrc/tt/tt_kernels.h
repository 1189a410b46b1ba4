#pragma once
// The inner loops of the CPU kernels, compiled once per instruction set; `kernels` picks the widest
// that the machine and the ranks allow. All matrices are row-major.
#include <cstdint>

namespace recsys_opt::tt {

// Distinct rows of a batch, as its plan numbers them (tt_plan.h), by their prefixes.
struct TableRows {
  const int32_t* start;  // [nodes + 1] where a node's rows begin
  const int32_t* last;   // [rows] i_{d-1}
  int64_t m, q, r;       // a row is [m, r] . [r, q]
};

// The lookups of a batch, by row, and the bags they are of.
template <typename T>
struct Lookups {
  const int32_t* start;  // [rows + 1] where a row's lookups begin
  const int32_t* bag;    // [count]
  const T* factors;      // [count]; nullptr: all are `factor`
  T factor;
  int64_t count;
  int64_t dim, columns;  // of a row; from one bag to the next
};

template <typename T>
struct Kernels {
  int64_t lanes;  // every rank between cores is a multiple of it

  // q matrices [k, n] in the form that `product` takes, of at most q k n numbers; nullptr: it takes
  // them as they are.
  void (*pack)(const T* slice, int64_t q, int64_t k, int64_t n, T* packed);

  // The transposes of q matrices [k, n] below each other, one matrix [q n, k], in that form.
  void (*pack_transposed)(const T* slice, int64_t q, int64_t k, int64_t n, T* packed);

  // Row i of c (+)= row i of a . slice; slice: q matrices [k, n], packed, and their results side by
  // side, [q n]. Rows of a and c lie where the pointers say. next: the slice, not packed, to be
  // used next, or nullptr.
  void (*product)(const T* const* a, int64_t rows, const T* packed, int64_t q, int64_t k, int64_t n,
                  T* const* c, bool accumulate, const T* next);

  // slice (+)= the sum over i of the outer products of row i of a [k] and row i of b [q n].
  void (*outer_product)(const T* const* a, const T* const* b, int64_t rows, T* slice, int64_t q,
                        int64_t k, int64_t n, bool accumulate);

  // The last core [n, q, r] in the form that the row kernels take; nullptr: they take it as it is.
  void (*pack_last)(const T* core, int64_t n, int64_t q, int64_t r, T* packed);

  // The rows of nodes [begin, end), with x = products[node - begin] [m, r] and
  // y = core[rows.last[row]] [q, r]: x . y^T, [m, q]. The first is out[0].
  void (*rows_forward)(const TableRows& rows, int64_t begin, int64_t end, const T* products,
                       const T* core, T* out);

  // The same, with out[bag] = factor times the row, for every lookup of each row.
  void (*bags_forward)(const TableRows& rows, const Lookups<T>& lookups, int64_t begin, int64_t end,
                       const T* products, const T* core, T* out);

  // For the same rows, from g = their gradients [m, q], of which grad_rows[0] is the first:
  //   grad_products[node - begin]  = the sum over the node's rows of g . y
  //   grad_core[rows.last[row]]   += g^T . x
  void (*rows_backward)(const TableRows& rows, int64_t begin, int64_t end, const T* products,
                        const T* core, const T* grad_rows, T* grad_products, T* grad_core);

  // grad_rows[row - begin] = the sum of factor times grad_out[bag] over the row's lookups, for rows
  // [begin, end).
  void (*gather)(const Lookups<T>& lookups, int64_t begin, int64_t end, const T* grad_out,
                 T* grad_rows);

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

// Lets the calls to come round the operands of float products to bf16, where the machine has bf16
// dot products and the ranks are multiples of 16; returns what was before.
bool allow_bf16(bool allowed);

// One set per instruction set, widest first; nullptr where the machine lacks it or no width divides
// the ranks.
template <typename T>
const Kernels<T>* avx512_kernels(int64_t ranks_divisor);
template <typename T>
const Kernels<T>* avx2_kernels(int64_t ranks_divisor);
template <typename T>
const Kernels<T>* portable_kernels(int64_t ranks_divisor);
const Kernels<float>* avx512bf16_kernels(int64_t ranks_divisor);

}  // namespace recsys_opt::tt
