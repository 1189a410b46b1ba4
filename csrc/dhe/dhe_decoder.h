#pragma once
// A table's decoder on the CPU: blocks of distinct ids from their encoding to their rows. The
// encoding of a block is made part by part, just before the first layer takes it, and is never
// written out.
#include <algorithm>
#include <vector>

#include "dhe/dhe.h"
#include "dhe/dhe_encode.h"
#include "tt/tt_kernels.h"

namespace recsys_opt::dhe {

constexpr int64_t kBlockRows = 48;  // 8 times the rows that a product takes at once
constexpr int64_t kBlockHashes =
    128;  // with the rows: 24 KB of encodings, 64 KB of the first layer

// The kernels of products with a matrix of n columns; those of a tensor train without its rounding.
template <typename T>
const tt::Kernels<T>& product_kernels(int64_t n) {
  const tt::Isa widest = tt::isa_limit();
  const tt::Kernels<T>* found = nullptr;
  if (widest >= tt::Isa::kAvx512) found = tt::avx512_kernels<T>(n);
  if (!found && widest >= tt::Isa::kAvx2) found = tt::avx2_kernels<T>(n);
  return found ? *found : *tt::portable_kernels<T>(n);
}

// Addresses of rows that lie `stride` numbers apart.
template <typename T, int64_t kRows>
struct RowsAt {
  RowsAt(T* first, int64_t stride, int64_t count) {
    for (int64_t i = 0; i < count; ++i) at[i] = first + i * stride;
  }
  T* at[kRows];
};

template <typename T>
class Decoder {
 public:
  Decoder(const Table& table, const Hashes& hashes, const std::vector<Tensor>& weights,
          const std::vector<Tensor>& biases)
      : table_(table), hashes_(hashes) {
    for (int64_t l = 0; l < table.layers; ++l) {
      weights_.push_back(weights[table.first_layer + l].template const_data_ptr<T>());
      biases_.push_back(biases[table.first_layer + l].template const_data_ptr<T>());
      kernels_.push_back(&product_kernels<T>(table.widths[l + 1]));
    }
  }

  // The outputs of all layers, side by side, for at most kBlockRows ids: rows of `stride` numbers.
  // encoding: scratch for kBlockRows * kBlockHashes numbers.
  void decode(const int64_t* ids, int64_t count, T* out, int64_t stride, T* encoding) const {
    for (int64_t i = 0; i < count; ++i) std::copy_n(biases_[0], table_.widths[1], out + i * stride);
    const int64_t k = hashes_.size(), n = table_.widths[1];
    for (int64_t begin = 0; begin < k; begin += kBlockHashes) {
      const int64_t size = std::min(kBlockHashes, k - begin);
      hashes_.encode(ids, count, begin, begin + size, encoding, size);
      multiply(0, encoding, size, weights_[0] + begin * n, size, out, stride, count);
    }
    for (int64_t l = 1; l < table_.layers; ++l) {
      T* before = out;
      out += table_.widths[l];
      for (int64_t i = 0; i < count; ++i) {
        T* row = before + i * stride;
        for (int64_t j = 0; j < table_.widths[l]; ++j) row[j] = row[j] > T(0) ? row[j] : T(0);
        std::copy_n(biases_[l], table_.widths[l + 1], out + i * stride);
      }
      multiply(l, before, stride, weights_[l], table_.widths[l], out, stride, count);
    }
  }

  const T* weight(int64_t layer) const { return weights_[layer]; }
  const Hashes& hashes() const { return hashes_; }

 private:
  // c += a . w, of `count` rows; w [k, n]
  void multiply(int64_t layer, const T* a, int64_t a_stride, const T* w, int64_t k, T* c,
                int64_t c_stride, int64_t count) const {
    const RowsAt<const T, kBlockRows> left(a, a_stride, count);
    const RowsAt<T, kBlockRows> sums(c, c_stride, count);
    kernels_[layer]->product(left.at, count, w, 1, k, table_.widths[layer + 1], sums.at, true,
                             nullptr);
  }

  const Table& table_;
  const Hashes& hashes_;
  std::vector<const T*> weights_, biases_;
  std::vector<const tt::Kernels<T>*> kernels_;
};

}  // namespace recsys_opt::dhe
