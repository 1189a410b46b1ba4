#pragma once
// The inner loops of the CPU kernels, compiled once per instruction set; `kernels` picks the widest
// that the machine and the ranks allow. All matrices are row-major; a "packed" one is in whatever
// form the kernels of an instruction set like best, which no one else looks into.
#include <cstdint>

namespace recsys_opt::tt {

// Distinct rows of a batch, as its plan numbers them (tt_plan.h).
struct TableRows {
  const int32_t* node;  // [rows] the prefix's number; rows of a node lie side by side
  const int32_t* last;  // [rows] i_{d-1}
  int64_t first_node;   // whose product comes first in `products`
  int64_t m, q, r;      // a row is [m, r] . [r, q]
};

// The lookups of a batch, by row.
template <typename T>
struct Lookups {
  const int32_t* bag;
  const int32_t* row;
  const T* factors;  // [count]; nullptr: all are `factor`
  T factor;
  int64_t count;
  int64_t dim, columns;  // of a row; from one bag to the next
};

template <typename T>
struct Kernels {
  int64_t lanes;  // every rank between cores is a multiple of it

  // Products of a table's top level that are kept for the backward pass: more of them would come
  // back from memory no faster than they are multiplied.
  int64_t kept_product_bytes;

  // How many of the top level's products lie in one T: 2 where they are rounded to bf16.
  int64_t products_per_number;

  // q matrices [k, n] in the form that `product` takes, of at most q k n numbers; nullptr: it takes
  // them as they are.
  void (*pack)(const T* slice, int64_t q, int64_t k, int64_t n, T* packed);

  // The transposes of q matrices [k, n] below each other, one matrix [q n, k], in that form.
  void (*pack_transposed)(const T* slice, int64_t q, int64_t k, int64_t n, T* packed);

  // Row i of c (+)= row i of a . slice; slice: q matrices [k, n], packed, and their results side by
  // side, [q n]. Rows of a and c lie where the pointers say. ahead: a slice, not packed, to be
  // asked for on the way, or nullptr.
  void (*product)(const T* const* a, int64_t rows, const T* packed, int64_t q, int64_t k, int64_t n,
                  T* const* c, bool accumulate, const T* ahead);

  // The same for the top level: rows of c are [q n / products_per_number], as rows_forward and
  // rows_backward take them.
  void (*top_product)(const T* const* a, int64_t rows, const T* packed, int64_t q, int64_t k,
                      int64_t n, T* const* c, const T* ahead);

  // n products of a top level that are a core's own slices (two cores), in that form; nullptr: they
  // are in it.
  void (*pack_products)(const T* slice, int64_t n, T* packed);

  // slice (+)= the sum over i of the outer products of row i of a [k] and row i of b [q n].
  void (*outer_product)(const T* const* a, const T* const* b, int64_t rows, T* slice, int64_t q,
                        int64_t k, int64_t n, bool accumulate);

  // The last core [n, q, r] in the forms that rows_forward and rows_backward take; nullptr: they
  // take it as it is.
  void (*pack_last)(const T* core, int64_t n, int64_t q, int64_t r, T* packed);
  void (*pack_last_backward)(const T* core, int64_t n, int64_t q, int64_t r, T* packed);

  // For rows i of [begin, end) with x = products[rows.node[i] - rows.first_node] [m, r], packed,
  // and y = core[rows.last[i]] [q, r]:  out[i - begin] = x . y^T, [m, q]. How many rows a node and
  // how many lookups a row has no branch could foresee: this and what follows are loops without.
  void (*rows_forward)(const TableRows& rows, int64_t begin, int64_t end, const T* products,
                       const T* core, T* out);

  // The same rows, from g = grad_rows[i - begin] [m, q]:
  //   grad_products[rows.node[i] - rows.first_node] += g . y, the first row of a node: =
  //   grad_core[rows.last[i]]                       += g^T . x
  void (*rows_backward)(const TableRows& rows, int64_t begin, int64_t end, const T* products,
                        const T* core, const T* grad_rows, T* grad_products, T* grad_core);

  // out[bags.bag[c]] = factor(c) rows[bags.row[c] - first_row], for lookups c of [begin, end).
  void (*scatter)(const Lookups<T>& lookups, int64_t begin, int64_t end, int64_t first_row,
                  const T* rows, T* out);

  // rows[row - first_row] = the sum of factor(c) grad_out[bags.bag[c]] over the row's lookups c,
  // for the `count` rows whose lookups are [begin, end).
  void (*gather)(const Lookups<T>& lookups, int64_t begin, int64_t end, int64_t first_row,
                 int64_t count, const T* grad_out, T* rows);

  // y[n] += weight * x[n]
  void (*axpy)(T weight, const T* x, T* y, int64_t n);

  // x[n] . y[n]
  T (*dot)(const T* x, const T* y, int64_t n);
};

// Instruction sets, narrowest first.
enum class Isa : int64_t { kPortable = 0, kAvx2 = 1, kAvx512 = 2 };

// The kernels for a table whose ranks are all multiples of `ranks_divisor` and at most
// `largest_rank`, and whose rows are [m, r] . [r, q].
template <typename T>
const Kernels<T>& kernels(int64_t ranks_divisor, int64_t largest_rank, int64_t m, int64_t q,
                          int64_t r);

// Lets the calls to come use no wider instruction set; returns the widest of those that the machine
// has.
Isa limit_isa(Isa widest);
// The widest that calls may use; the machine may have less.
Isa isa_limit();

// Lets the calls to come round the operands of float products to bf16, where the machine has bf16
// dot products and the ranks are multiples of 16; returns what was before.
bool allow_bf16(bool allowed);
bool bf16_is_allowed();

// One set per instruction set, widest first; nullptr where the machine lacks it or no width divides
// the ranks.
template <typename T>
const Kernels<T>* avx512_kernels(int64_t ranks_divisor);
template <typename T>
const Kernels<T>* avx2_kernels(int64_t ranks_divisor);
template <typename T>
const Kernels<T>* portable_kernels(int64_t ranks_divisor);
// For rows [m, r] . [r, q].
const Kernels<float>* avx512bf16_kernels(int64_t ranks_divisor, int64_t largest_rank, int64_t m,
                                         int64_t q, int64_t r);

}  // namespace recsys_opt::tt
