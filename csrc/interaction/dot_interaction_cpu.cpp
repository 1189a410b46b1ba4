#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <type_traits>

#include "interaction/dot_interaction.h"
#include "simd.h"

namespace recsys_opt {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kGrain = 32;  // samples per task

// Row length of the scratch matrices, whole vector registers.
int64_t padded(int64_t n) {
  return (n + 15) / 16 * 16;
}

// pairs[i (i - 1) / 2 + j] = x_i . x_j for i > j.
//   x   [V, D]
//   xt  [D, stride] scratch: x transposed, so that a row of products is a sum of scaled rows
//   z   [stride] scratch
template <typename T>
ALWAYS_INLINE void dot_pairs_body(const T* x, T* xt, T* z, T* pairs, int64_t vectors, int64_t dim,
                                  int64_t stride) {
  for (int64_t v = 0; v < vectors; ++v)
    for (int64_t d = 0; d < dim; ++d) xt[d * stride + v] = x[v * dim + d];
  for (int64_t i = 1; i < vectors; ++i) {
    // Whole blocks of 16 columns, kept in registers over d.
    for (int64_t begin = 0; begin < i; begin += 16) {
      T sum[16] = {};
      for (int64_t d = 0; d < dim; ++d) {
        const T scale = x[i * dim + d];
        const T* row = xt + d * stride + begin;
        for (int64_t j = 0; j < 16; ++j) sum[j] += scale * row[j];
      }
      for (int64_t j = 0; j < 16; ++j) z[begin + j] = sum[j];
    }
    for (int64_t j = 0; j < i; ++j) pairs[j] = z[j];
    pairs += i;
  }
}

// dx_i += sum over j of g_ij x_j, with g symmetric and given by its lower triangle.
//   g   [V, V] scratch
template <typename T>
ALWAYS_INLINE void dot_pairs_backward_body(const T* pairs, const T* x, T* g, T* dx, int64_t vectors,
                                           int64_t dim) {
  for (int64_t i = 0; i < vectors; ++i) {
    g[i * vectors + i] = 0;
    for (int64_t j = 0; j < i; ++j) {
      const T value = *pairs++;
      g[i * vectors + j] = value;
      g[j * vectors + i] = value;
    }
  }
  int64_t begin = 0;
  for (; begin + 16 <= dim; begin += 16)
    for (int64_t i = 0; i < vectors; ++i) {
      T sum[16] = {};
      for (int64_t j = 0; j < vectors; ++j) {
        const T scale = g[i * vectors + j];
        const T* row = x + j * dim + begin;
        for (int64_t d = 0; d < 16; ++d) sum[d] += scale * row[d];
      }
      for (int64_t d = 0; d < 16; ++d) dx[i * dim + begin + d] += sum[d];
    }
  for (int64_t i = 0; begin < dim && i < vectors; ++i)
    for (int64_t j = 0; j < vectors; ++j)
      for (int64_t d = begin; d < dim; ++d) dx[i * dim + d] += g[i * vectors + j] * x[j * dim + d];
}

SIMD_CLONES void dot_pairs(const float* x, float* xt, float* z, float* pairs, int64_t vectors,
                           int64_t dim, int64_t stride) {
  dot_pairs_body(x, xt, z, pairs, vectors, dim, stride);
}
SIMD_CLONES void dot_pairs(const double* x, double* xt, double* z, double* pairs, int64_t vectors,
                           int64_t dim, int64_t stride) {
  dot_pairs_body(x, xt, z, pairs, vectors, dim, stride);
}
SIMD_CLONES void dot_pairs_backward(const float* pairs, const float* x, float* g, float* dx,
                                    int64_t vectors, int64_t dim) {
  dot_pairs_backward_body(pairs, x, g, dx, vectors, dim);
}
SIMD_CLONES void dot_pairs_backward(const double* pairs, const double* x, double* g, double* dx,
                                    int64_t vectors, int64_t dim) {
  dot_pairs_backward_body(pairs, x, g, dx, vectors, dim);
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
  const int64_t stride = padded(s.vectors);
  torch::stable::parallel_for(0, s.batch, kGrain, [&](int64_t begin, int64_t end) {
    std::vector<T> x(s.vectors * s.dim), xt(s.dim * stride), z(stride), row(s.width());
    for (int64_t b = begin; b < end; ++b) {
      layout.load(b, s.dim, x.data());
      std::copy_n(x.data(), s.dim, row.data());
      dot_pairs(x.data(), xt.data(), z.data(), row.data() + s.dim, s.vectors, s.dim, stride);
      out.store(b, 0, s.width(), row.data());
    }
  });
}

template <typename T>
void backward(const Matrix& grad, const Layout& layout, const Layout& grads,
              const InteractionShape& s) {
  torch::stable::parallel_for(0, s.batch, kGrain, [&](int64_t begin, int64_t end) {
    std::vector<T> x(s.vectors * s.dim), dx(s.vectors * s.dim), g(s.vectors * s.vectors),
        row(s.width());
    for (int64_t b = begin; b < end; ++b) {
      layout.load(b, s.dim, x.data());
      grad.load(b, 0, s.width(), row.data());
      std::fill(dx.begin(), dx.end(), T(0));
      std::copy_n(row.data(), s.dim, dx.data());
      dot_pairs_backward(row.data() + s.dim, x.data(), g.data(), dx.data(), s.vectors, s.dim);
      grads.store(b, s.dim, dx.data());
    }
  });
}

std::vector<Tensor> all_contiguous(const std::vector<Tensor>& tensors) {
  std::vector<Tensor> result;
  for (const Tensor& t : tensors) {
    check_dtype(t, "sparse");
    result.push_back(torch::stable::contiguous(t));
  }
  return result;
}

Tensor dot_interaction_cpu(Tensor dense, std::vector<Tensor> sparse, std::vector<int64_t> order) {
  const InteractionShape s = check_interaction_args(dense, sparse, order);
  check_dtype(dense, "dense");
  dense = torch::stable::contiguous(dense);
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
  grad = torch::stable::contiguous(grad);
  dense = torch::stable::contiguous(dense);
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
