#pragma once
// A table's decoder on the CPU: blocks of distinct ids from their encoding to their rows. The
// encoding of a block is made part by part, just before the first layer takes it, and is never
// written out.
#include <algorithm>
#include <type_traits>
#include <vector>

#include "dhe/dhe.h"
#include "dhe/dhe_encode.h"
#include "tt/tt_array.h"
#include "tt/tt_kernels.h"

namespace recsys_opt::dhe {

constexpr int64_t kBlockRows = 48;  // 8 times the rows that a product takes at once
constexpr int64_t kBlockHashes =
    128;  // with the rows: 24 KB of encodings, 64 KB of the first layer

// Distinct ids from which on rounding and packing a table's weights pays.
constexpr int64_t kLeastPacked = 16;

// The kernels of products with a matrix [k, n] for `count` rows. Where calls may round their
// operands to bf16 (tt::allow_bf16) and can, they take the matrix packed.
template <typename T>
const tt::Kernels<T>& product_kernels(int64_t k, int64_t n, int64_t count) {
  const tt::Isa widest = tt::isa_limit();
  const tt::Kernels<T>* found = nullptr;
  if constexpr (std::is_same_v<T, float>) {
    if (widest >= tt::Isa::kAvx512 && tt::bf16_is_allowed() && k % 16 == 0 && count >= kLeastPacked)
      found = tt::avx512bf16_kernels(n, 0, 0, 0, 0);
  }
  if (!found && widest >= tt::Isa::kAvx512) found = tt::avx512_kernels<T>(n);
  if (!found && widest >= tt::Isa::kAvx2) found = tt::avx2_kernels<T>(n);
  return found ? *found : *tt::portable_kernels<T>(n);
}

// A matrix [k, n] as its products take it.
template <typename T>
class Matrix {
 public:
  Matrix(const T* values, int64_t k, int64_t n, int64_t count)
      : kernels_(product_kernels<T>(k, n, count)), values_(values), n_(n) {
    if (!kernels_.pack) return;
    packed_ = tt::Array<T>(k / 2 * n);
    kernels_.pack(values, 1, k, n, packed_.data());
  }

  // Row i of c (+)= row i of a . the matrix's rows `begin` to before `end`, of `count` rows.
  void multiply(const T* const* a, int64_t count, int64_t begin, int64_t end, T* const* c,
                bool accumulate) const {
    const T* from = packed_.size() > 0 ? packed_.data() + begin / 2 * n_ : values_ + begin * n_;
    kernels_.product(a, count, from, 1, end - begin, n_, c, accumulate, nullptr);
  }

 private:
  const tt::Kernels<T>& kernels_;
  const T* values_;
  int64_t n_;
  tt::Array<T> packed_;
};

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
  // count: how many ids there are to decode
  Decoder(const Table& table, const Hashes& hashes, const std::vector<Tensor>& weights,
          const std::vector<Tensor>& biases, int64_t count)
      : table_(table), hashes_(hashes) {
    for (int64_t l = 0; l < table.layers; ++l) {
      weights_.emplace_back(weights[table.first_layer + l].template const_data_ptr<T>(),
                            table.widths[l], table.widths[l + 1], count);
      biases_.push_back(biases[table.first_layer + l].template const_data_ptr<T>());
    }
  }

  // The outputs of all layers, side by side, for at most kBlockRows ids: rows of `stride` numbers.
  // encoding: scratch for kBlockRows * kBlockHashes numbers.
  void decode(const int64_t* ids, int64_t count, T* out, int64_t stride, T* encoding) const {
    for (int64_t i = 0; i < count; ++i) std::copy_n(biases_[0], table_.widths[1], out + i * stride);
    const int64_t k = hashes_.size();
    for (int64_t begin = 0; begin < k; begin += kBlockHashes) {
      const int64_t size = std::min(kBlockHashes, k - begin);
      hashes_.encode(ids, count, begin, begin + size, encoding, size);
      multiply(0, encoding, size, begin, begin + size, out, stride, count);
    }
    for (int64_t l = 1; l < table_.layers; ++l) {
      T* before = out;
      out += table_.widths[l];
      for (int64_t i = 0; i < count; ++i) {
        T* row = before + i * stride;
        for (int64_t j = 0; j < table_.widths[l]; ++j) row[j] = row[j] > T(0) ? row[j] : T(0);
        std::copy_n(biases_[l], table_.widths[l + 1], out + i * stride);
      }
      multiply(l, before, stride, 0, table_.widths[l], out, stride, count);
    }
  }

  const Hashes& hashes() const { return hashes_; }

 private:
  // c += a . rows `begin` to before `end` of a layer's weights, of `count` rows
  void multiply(int64_t layer, const T* a, int64_t a_stride, int64_t begin, int64_t end, T* c,
                int64_t c_stride, int64_t count) const {
    const RowsAt<const T, kBlockRows> left(a, a_stride, count);
    const RowsAt<T, kBlockRows> sums(c, c_stride, count);
    weights_[layer].multiply(left.at, count, begin, end, sums.at, true);
  }

  const Table& table_;
  const Hashes& hashes_;
  std::vector<Matrix<T>> weights_;
  std::vector<const T*> biases_;
};

}  // namespace recsys_opt::dhe
