// The gradients of the decoders' weights and of the lookups' factors. The forward pass has kept the
// distinct ids and the outputs of the layers; encodings are made again, part by part.
#include <torch/csrc/stable/library.h>

#include <memory>
#include <optional>

#include "as_contiguous.h"
#include "dhe/dhe_decoder.h"
#include "dispatch.h"
#include "empty_on_cpu.h"
#include "simd.h"

namespace recsys_opt::dhe {
namespace {

constexpr const char* kOp = "dhe_embedding_bag_backward";

SIMD_CLONES void add_scaled(float factor, const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] += factor * x[i];
}
SIMD_CLONES void add_scaled(double factor, const double* x, double* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] += factor * x[i];
}

// What the backward pass of one table works on.
template <typename T>
struct Work {
  const Table* table;
  int64_t first, count;  // its ids and their number of distinct ones
  const int64_t* ids;    // [count]
  const int32_t* slots;  // by lookup
  const T* hidden;       // [count] rows of `stride` numbers
  int64_t stride;
  std::vector<T*> weight_grads, bias_grads;
  tt::Array<T> grads;  // of a layer's outputs [count, width]; in the end the first one's
};

// The gradients of the rows: a row's is the sum over its lookups.
template <typename T>
void gather(Work<T>& w, const Bags& bags, int64_t table, const T* grad, int64_t columns,
            const T* factors) {
  const int64_t dim = w.table->dim(), column = w.table->first_column;
  std::fill_n(w.grads.data(), w.count * dim, T(0));
  for (int64_t b = 0; b < bags.batch; ++b) {
    const int64_t bag = table * bags.batch + b, begin = bags.start(bag), end = bags.start(bag + 1);
    T scale(1);
    if (w.table->mean) {
      int64_t counted = 0;
      for (int64_t k = begin; k < end; ++k) counted += w.slots[k] >= 0;
      scale = T(1) / static_cast<T>(std::max<int64_t>(counted, 1));
    }
    for (int64_t k = begin; k < end; ++k)
      if (w.slots[k] >= 0)
        add_scaled(factors ? factors[k] : scale, grad + b * columns + column,
                   w.grads.data() + w.slots[k] * dim, dim);
  }
}

// weight_grads[layer] (+)= x^T g over `count` rows x [k] and g [n].
template <typename T>
void add_outer(const T* x, int64_t x_stride, int64_t k, const T* g, int64_t n, int64_t count,
               T* out, bool accumulate, const tt::Kernels<T>& kernels) {
  for (int64_t i = 0; i < count; i += kBlockRows) {
    const int64_t size = std::min(kBlockRows, count - i);
    const RowsAt<const T, kBlockRows> left(x + i * x_stride, x_stride, size);
    const RowsAt<const T, kBlockRows> right(g + i * n, n, size);
    kernels.outer_product(left.at, right.at, size, out, 1, k, n, accumulate || i > 0);
  }
}

// All but the first layer's weights; leaves the gradients of the first layer's outputs.
template <typename T>
void upper_layers(Work<T>& w, const std::vector<const T*>& weights) {
  const std::vector<int64_t>& widths = w.table->widths;
  int64_t column = w.table->kept;
  for (int64_t l = w.table->layers - 1; l >= 0; --l) {
    const int64_t k = widths[l], n = widths[l + 1];
    column -= n;  // of this layer's outputs
    std::fill_n(w.bias_grads[l], n, T(0));
    for (int64_t i = 0; i < w.count; ++i)
      add_scaled(T(1), w.grads.data() + i * n, w.bias_grads[l], n);
    if (l == 0) return;
    if (w.count == 0) std::fill_n(w.weight_grads[l], k * n, T(0));
    const T* inputs = w.hidden + column - k;
    add_outer(inputs, w.stride, k, w.grads.data(), n, w.count, w.weight_grads[l], false,
              product_kernels<T>(k, n, w.count));
    // The gradients of the inputs, g . weight^T, where the input was positive.
    tt::Array<T> transposed(n * k), below(w.count * k);
    for (int64_t i = 0; i < k; ++i)
      for (int64_t j = 0; j < n; ++j) transposed[j * k + i] = weights[l][i * n + j];
    const Matrix<T> matrix(transposed.data(), n, k, w.count);
    for (int64_t i = 0; i < w.count; i += kBlockRows) {
      const int64_t size = std::min(kBlockRows, w.count - i);
      const RowsAt<const T, kBlockRows> left(w.grads.data() + i * n, n, size);
      const RowsAt<T, kBlockRows> sums(below.data() + i * k, k, size);
      matrix.multiply(left.at, size, 0, n, sums.at, false);
      for (int64_t r = 0; r < size; ++r)
        for (int64_t j = 0; j < k; ++j)
          if (!(inputs[(i + r) * w.stride + j] > T(0))) sums.at[r][j] = T(0);
    }
    w.grads = std::move(below);
  }
}

// The first layer's weights for hashes begin .. end - 1.
template <typename T>
void first_layer(const Work<T>& w, const Hashes& hashes, int64_t begin, int64_t end, T* encoding) {
  const int64_t n = w.table->widths[1], size = end - begin;
  T* out = w.weight_grads[0] + begin * n;
  if (w.count == 0) std::fill_n(out, size * n, T(0));
  const tt::Kernels<T>& kernels = product_kernels<T>(size, n, w.count);
  for (int64_t i = 0; i < w.count; i += kBlockRows) {
    const int64_t count = std::min(kBlockRows, w.count - i);
    hashes.encode(w.ids + i, count, begin, end, encoding, size);
    add_outer(encoding, size, size, w.grads.data() + i * n, n, count, out, i > 0, kernels);
  }
}

// The gradients of the weights, then of the biases, then, where asked for, of per_sample_weights.
std::vector<Tensor> dhe_embedding_bag_backward_cpu(
    Tensor grad, Tensor indices, std::optional<Tensor> offsets, Tensor distinct, Tensor slots,
    Tensor counts, Tensor hidden, std::vector<Tensor> hashes, std::vector<Tensor> weights,
    std::vector<Tensor> biases, std::vector<int64_t> tables,
    std::optional<Tensor> per_sample_weights, bool factors_grad) {
  const Shape s =
      check_bag(kOp, indices, offsets, hashes, weights, biases, tables, per_sample_weights);
  STD_TORCH_CHECK(grad.dim() == 2 && grad.size(0) == s.batch && grad.size(1) == s.columns &&
                      grad.scalar_type() == weights[0].scalar_type(),
                  kOp, ": grad must be [", s.batch, ", ", s.columns, "] with the weights' dtype");
  STD_TORCH_CHECK(distinct.numel() == s.ids && slots.numel() == s.ids &&
                      counts.numel() == s.tables() && hidden.dim() == 2 &&
                      hidden.size(0) == s.ids && hidden.size(1) == s.widest,
                  kOp, ": distinct, slots, counts and hidden must be those of the forward pass");
  make_contiguous(grad, offsets, per_sample_weights, distinct, slots, counts, hidden);
  const Bags bags{offsets ? offsets->const_data_ptr<int64_t>() : nullptr, s.batch};
  const ScalarType type = weights[0].scalar_type();
  std::vector<Tensor> found;
  for (const std::vector<Tensor>* some : {&weights, &biases})
    for (const Tensor& tensor : *some)
      found.push_back(tensor.dim() == 2 ? empty_on_cpu({tensor.size(0), tensor.size(1)}, type)
                                        : empty_on_cpu({tensor.size(0)}, type));
  if (factors_grad) found.push_back(empty_on_cpu({s.ids}, type));
  const auto* count = counts.const_data_ptr<int64_t>();
  const auto* slot = slots.const_data_ptr<int32_t>();
  dispatch_floating(kOp, type, [&](auto zero) {
    using T = decltype(zero);
    const T* from = grad.const_data_ptr<T>();
    const T* factors = per_sample_weights ? per_sample_weights->const_data_ptr<T>() : nullptr;
    std::vector<Work<T>> work(s.tables());
    std::vector<std::unique_ptr<Hashes>> functions;
    struct Part {
      int64_t table, begin, end;
    };
    std::vector<Part> parts;
    for (int64_t t = 0; t < s.tables(); ++t) {
      const Table& table = s.table[t];
      const int64_t first = bags.first(t);
      work[t] = {&table,   first,
                 count[t], distinct.const_data_ptr<int64_t>() + first,
                 slot,     hidden.const_data_ptr<T>() + first * s.widest,
                 s.widest, {},
                 {},       tt::Array<T>(count[t] * table.dim())};
      for (int64_t l = 0; l < table.layers; ++l) {
        const int64_t layer = table.first_layer + l;
        work[t].weight_grads.push_back(found[layer].template mutable_data_ptr<T>());
        work[t].bias_grads.push_back(found[weights.size() + layer].template mutable_data_ptr<T>());
      }
      functions.push_back(
          std::make_unique<Hashes>(table.encoder, hashes[t].const_data_ptr<int64_t>()));
      for (int64_t begin = 0; begin < table.widths[0]; begin += kBlockHashes)
        parts.push_back({t, begin, std::min(begin + kBlockHashes, table.widths[0])});
    }
    torch::stable::parallel_for(0, s.tables(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const Table& table = s.table[t];
        std::vector<const T*> own;
        for (int64_t l = 0; l < table.layers; ++l)
          own.push_back(weights[table.first_layer + l].template const_data_ptr<T>());
        gather(work[t], bags, t, from, s.columns, factors);
        upper_layers(work[t], own);
      }
    });
    // Each part has weights of its own: the sums do not depend on the number of threads.
    torch::stable::parallel_for(0, static_cast<int64_t>(parts.size()), 1,
                                [&](int64_t begin, int64_t end) {
                                  tt::Array<T> encoding(kBlockRows * kBlockHashes);
                                  for (int64_t i = begin; i < end; ++i)
                                    first_layer(work[parts[i].table], *functions[parts[i].table],
                                                parts[i].begin, parts[i].end, encoding.data());
                                });
    if (!factors_grad) return;
    T* to = found.back().template mutable_data_ptr<T>();
    std::fill_n(to, s.ids, T(0));
    for (int64_t t = 0; t < s.tables(); ++t) {
      const Table& table = s.table[t];
      const T* rows = work[t].hidden + table.kept - table.dim();
      for (int64_t b = 0; b < s.batch; ++b) {
        const T* g = from + b * s.columns + table.first_column;
        const int64_t bag = t * s.batch + b;
        for (int64_t k = bags.start(bag); k < bags.start(bag + 1); ++k) {
          if (slot[k] < 0) continue;
          T sum(0);
          for (int64_t d = 0; d < table.dim(); ++d) sum += g[d] * rows[slot[k] * s.widest + d];
          to[k] = sum;
        }
      }
    }
  });
  return found;
}

}  // namespace
}  // namespace recsys_opt::dhe

STABLE_TORCH_LIBRARY_IMPL(recsys_opt, CPU, m) {
  m.impl("dhe_embedding_bag_backward", TORCH_BOX(&recsys_opt::dhe::dhe_embedding_bag_backward_cpu));
}
