#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <type_traits>

#include "as_contiguous.h"
#include "interaction/dot_interaction.h"
#include "simd.h"

namespace recsys_opt {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kGrain = 32;  // samples per task

// 64 bytes of numbers: one AVX-512 register, or two or four smaller ones.
template <typename T>
struct Lanes {
  typedef T Vector __attribute__((vector_size(64)));
  typedef T Unaligned __attribute__((vector_size(64), aligned(sizeof(T)), may_alias));
  static constexpr int64_t count = 64 / sizeof(T);
};
constexpr int64_t kRows =
    4;  // rows of a product that are summed at the same time, to hide the latency

constexpr int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// out[i + r][column ..] = sum over k of a[i + r][k] b[k][column ..] for r < kRows and one vector of
// columns.
template <typename T>
ALWAYS_INLINE void product_tile(const T* a, int64_t a_stride, const T* b, int64_t b_stride,
                                int64_t inner, T* out, int64_t out_stride) {
  using Vector = typename Lanes<T>::Vector;
  using Unaligned = typename Lanes<T>::Unaligned;
  Vector sum[kRows] = {};
  for (int64_t k = 0; k < inner; ++k) {
    const Vector row = *reinterpret_cast<const Unaligned*>(b + k * b_stride);
    for (int64_t r = 0; r < kRows; ++r) sum[r] += a[r * a_stride + k] * row;
  }
  for (int64_t r = 0; r < kRows; ++r) *reinterpret_cast<Unaligned*>(out + r * out_stride) = sum[r];
}

// Scratch of one thread. Rows are padded to whole tiles with zeros, so that the loops have no
// remainders.
template <typename T>
struct Scratch {
  int64_t vectors, dim, rows, x_stride, v_stride;
  std::vector<T> x;         // [rows, x_stride] the vectors of one sample
  std::vector<T> xt;        // [dim, v_stride] transposed
  std::vector<T> products;  // [rows, v_stride] x_i . x_j, or the gradient of that
  std::vector<T> dx;        // [rows, x_stride]
  std::vector<T> row;       // [width] a row of the output or of its gradient
  std::vector<T> packed;    // [V, D] what is loaded and stored

  explicit Scratch(const InteractionShape& s)
      : vectors(s.vectors),
        dim(s.dim),
        rows(round_up(s.vectors, kRows)),
        x_stride(round_up(s.dim, Lanes<T>::count)),
        v_stride(round_up(s.vectors, Lanes<T>::count)),
        x(rows * x_stride),
        xt(dim * v_stride),
        products(rows * v_stride),
        dx(rows * x_stride),
        row(s.width()),
        packed(s.vectors * s.dim) {}
};

// pairs[i (i - 1) / 2 + j] = x_i . x_j for i > j.
template <typename T>
ALWAYS_INLINE void dot_pairs_body(Scratch<T>& s, T* pairs) {
  const T* x = s.packed.data();
  T* xt = s.xt.data();
  T* products = s.products.data();
  T* padded = s.x.data();
  for (int64_t v = 0; v < s.vectors; ++v)
    for (int64_t d = 0; d < s.dim; ++d) {
      padded[v * s.x_stride + d] = x[v * s.dim + d];
      xt[d * s.v_stride + v] = x[v * s.dim + d];
    }
  for (int64_t i = 0; i < s.rows; i += kRows)
    for (int64_t j = 0; j < i + kRows && j < s.v_stride; j += Lanes<T>::count)
      product_tile(padded + i * s.x_stride, s.x_stride, xt + j, s.v_stride, s.dim,
                   products + i * s.v_stride + j, s.v_stride);
  for (int64_t i = 1; i < s.vectors; pairs += i++)
    for (int64_t j = 0; j < i; ++j) pairs[j] = products[i * s.v_stride + j];
}

// packed_i = sum over j of g_ij x_j, with g symmetric, 0 on the diagonal, and given by its lower
// triangle.
template <typename T>
ALWAYS_INLINE void dot_pairs_backward_body(Scratch<T>& s, const T* pairs) {
  T* g = s.products.data();
  T* x = s.x.data();
  T* dx = s.dx.data();
  for (int64_t v = 0; v < s.vectors; ++v)
    for (int64_t d = 0; d < s.dim; ++d) x[v * s.x_stride + d] = s.packed[v * s.dim + d];
  for (int64_t i = 0; i < s.vectors; pairs += i++) {
    g[i * s.v_stride + i] = 0;
    for (int64_t j = 0; j < i; ++j) {
      g[i * s.v_stride + j] = pairs[j];
      g[j * s.v_stride + i] = pairs[j];
    }
  }
  for (int64_t i = 0; i < s.rows; i += kRows)
    for (int64_t d = 0; d < s.x_stride; d += Lanes<T>::count)
      product_tile(g + i * s.v_stride, s.v_stride, x + d, s.x_stride, s.vectors,
                   dx + i * s.x_stride + d, s.x_stride);
  for (int64_t v = 0; v < s.vectors; ++v)
    for (int64_t d = 0; d < s.dim; ++d) s.packed[v * s.dim + d] = dx[v * s.x_stride + d];
}

SIMD_CLONES void dot_pairs(Scratch<float>& s, float* pairs) {
  dot_pairs_body(s, pairs);
}
SIMD_CLONES void dot_pairs(Scratch<double>& s, double* pairs) {
  dot_pairs_body(s, pairs);
}
SIMD_CLONES void dot_pairs_backward(Scratch<float>& s, const float* pairs) {
  dot_pairs_backward_body(s, pairs);
}
SIMD_CLONES void dot_pairs_backward(Scratch<double>& s, const double* pairs) {
  dot_pairs_backward_body(s, pairs);
}

template <typename To, typename From>
ALWAYS_INLINE void convert_body(const From* from, To* to, int64_t n) {
  for (int64_t k = 0; k < n; ++k) to[k] = static_cast<To>(from[k]);
}
SIMD_CLONES void convert(const float* from, float* to, int64_t n) {
  convert_body(from, to, n);
}
SIMD_CLONES void convert(const double* from, double* to, int64_t n) {
  convert_body(from, to, n);
}
SIMD_CLONES void convert(const float* from, double* to, int64_t n) {
  convert_body(from, to, n);
}
SIMD_CLONES void convert(const double* from, float* to, int64_t n) {
  convert_body(from, to, n);
}
SIMD_CLONES void convert(const c10::BFloat16* from, float* to, int64_t n) {
  convert_body(from, to, n);
}
SIMD_CLONES void convert(const c10::BFloat16* from, double* to, int64_t n) {
  convert_body(from, to, n);
}
SIMD_CLONES void convert(const float* from, c10::BFloat16* to, int64_t n) {
  convert_body(from, to, n);
}
SIMD_CLONES void convert(const double* from, c10::BFloat16* to, int64_t n) {
  convert_body(from, to, n);
}

// A matrix of float, double or bfloat16 whose rows are read and written in the type of the
// computation.
struct Matrix {
  void* data;
  int64_t row_stride;
  ScalarType type;

  explicit Matrix(const Tensor& t)
      : data(t.data_ptr()), row_stride(t.size(1)), type(t.scalar_type()) {}

  template <typename T>
  void load(int64_t row, int64_t column, int64_t n, T* to) const {
    const int64_t at = row * row_stride + column;
    if (type == ScalarType::Float) return convert(static_cast<const float*>(data) + at, to, n);
    if (type == ScalarType::Double) return convert(static_cast<const double*>(data) + at, to, n);
    convert(static_cast<const c10::BFloat16*>(data) + at, to, n);
  }
  template <typename T>
  void store(int64_t row, int64_t column, int64_t n, const T* from) const {
    const int64_t at = row * row_stride + column;
    if (type == ScalarType::Float) return convert(from, static_cast<float*>(data) + at, n);
    if (type == ScalarType::Double) return convert(from, static_cast<double*>(data) + at, n);
    convert(from, static_cast<c10::BFloat16*>(data) + at, n);
  }
};

// Where the vectors of one sample are: vector 0 is dense, the others are column blocks of the
// pieces.
struct Layout {
  std::vector<Matrix> matrices;  // dense, then the pieces
  struct Block {
    int32_t matrix;
    int64_t column;
  };
  std::vector<Block> blocks;  // [V]
  // Each piece's runs of columns whose vectors are neighbours too: usually one per piece.
  struct Run {
    int32_t matrix;
    int64_t column, vector, count;
  };
  std::vector<Run> runs;

  Layout(const Tensor& dense, const std::vector<Tensor>& sparse, const std::vector<int64_t>& order,
         int64_t dim) {
    matrices.emplace_back(dense);
    std::vector<Block> columns;
    for (size_t p = 0; p < sparse.size(); ++p) {
      matrices.emplace_back(sparse[p]);
      for (int64_t c = 0; c < sparse[p].size(1); c += dim)
        columns.push_back({static_cast<int32_t>(p + 1), c});
    }
    runs.push_back({0, 0, 0, 1});
    for (size_t v = 0; v < order.size(); ++v) {
      const Block b = columns[order[v]];
      Run& last = runs.back();
      if (last.matrix == b.matrix && last.column + last.count * dim == b.column)
        ++last.count;
      else
        runs.push_back({b.matrix, b.column, static_cast<int64_t>(v) + 1, 1});
    }
  }
  template <typename T>
  void load(int64_t sample, int64_t dim, T* x) const {
    for (const Run& r : runs)
      matrices[r.matrix].load(sample, r.column, r.count * dim, x + r.vector * dim);
  }
  template <typename T>
  void store(int64_t sample, int64_t dim, const T* x) const {
    for (const Run& r : runs)
      matrices[r.matrix].store(sample, r.column, r.count * dim, x + r.vector * dim);
  }
};

void check_dtype(const Tensor& t, const char* what) {
  const ScalarType type = t.scalar_type();
  STD_TORCH_CHECK(
      type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::BFloat16,
      "dot_interaction: ", what, " must be float32, float64 or bfloat16");
}

template <typename T>
void forward(const Layout& layout, const Matrix& out, const InteractionShape& s) {
  torch::stable::parallel_for(0, s.batch, kGrain, [&](int64_t begin, int64_t end) {
    Scratch<T> scratch(s);
    for (int64_t b = begin; b < end; ++b) {
      layout.load(b, s.dim, scratch.packed.data());
      std::copy_n(scratch.packed.data(), s.dim, scratch.row.data());
      dot_pairs(scratch, scratch.row.data() + s.dim);
      out.store(b, 0, s.width(), scratch.row.data());
    }
  });
}

template <typename T>
void backward(const Matrix& grad, const Layout& layout, const Layout& grads,
              const InteractionShape& s) {
  torch::stable::parallel_for(0, s.batch, kGrain, [&](int64_t begin, int64_t end) {
    Scratch<T> scratch(s);
    for (int64_t b = begin; b < end; ++b) {
      layout.load(b, s.dim, scratch.packed.data());
      grad.load(b, 0, s.width(), scratch.row.data());
      dot_pairs_backward(scratch, scratch.row.data() + s.dim);
      for (int64_t d = 0; d < s.dim; ++d) scratch.packed[d] += scratch.row[d];
      grads.store(b, s.dim, scratch.packed.data());
    }
  });
}

std::vector<Tensor> all_contiguous(const std::vector<Tensor>& tensors) {
  std::vector<Tensor> result;
  for (const Tensor& t : tensors) {
    check_dtype(t, "sparse");
    result.push_back(as_contiguous(t));
  }
  return result;
}

Tensor dot_interaction_cpu(Tensor dense, std::vector<Tensor> sparse, std::vector<int64_t> order) {
  const InteractionShape s = check_interaction_args(dense, sparse, order);
  check_dtype(dense, "dense");
  dense = as_contiguous(dense);
  sparse = all_contiguous(sparse);
  Tensor out = torch::stable::new_empty(dense, {s.batch, s.width()});
  const Layout layout(dense, sparse, order, s.dim);
  if (dense.scalar_type() == ScalarType::Double)
    forward<double>(layout, Matrix(out), s);
  else
    forward<float>(layout, Matrix(out), s);
  return out;
}

std::vector<Tensor> dot_interaction_backward_cpu(Tensor grad, Tensor dense,
                                                 std::vector<Tensor> sparse,
                                                 std::vector<int64_t> order) {
  const InteractionShape s = check_interaction_args(dense, sparse, order);
  check_dtype(dense, "dense");
  check_dtype(grad, "grad");
  STD_TORCH_CHECK(grad.dim() == 2 && grad.size(0) == s.batch && grad.size(1) == s.width(),
                  "dot_interaction_backward: grad must be [", s.batch, ", ", s.width(), "]");
  grad = as_contiguous(grad);
  dense = as_contiguous(dense);
  sparse = all_contiguous(sparse);
  std::vector<Tensor> grads{torch::stable::new_empty(dense, dense.sizes())};
  std::vector<Tensor> pieces;
  for (const Tensor& t : sparse) pieces.push_back(torch::stable::new_empty(t, t.sizes()));
  const Layout layout(dense, sparse, order, s.dim), to(grads[0], pieces, order, s.dim);
  if (dense.scalar_type() == ScalarType::Double)
    backward<double>(Matrix(grad), layout, to, s);
  else
    backward<float>(Matrix(grad), layout, to, s);
  grads.insert(grads.end(), pieces.begin(), pieces.end());
  return grads;
}

}  // namespace
}  // namespace recsys_opt

STABLE_TORCH_LIBRARY_IMPL(recsys_opt, CPU, m) {
  m.impl("dot_interaction", TORCH_BOX(&recsys_opt::dot_interaction_cpu));
  m.impl("dot_interaction_backward", TORCH_BOX(&recsys_opt::dot_interaction_backward_cpu));
}
