#include <torch/csrc/stable/library.h>

#include "as_contiguous.h"
#include "dhe/dhe_encode.h"
#include "dhe/dhe_normal.h"
#include "dispatch.h"
#include "empty_on_cpu.h"
#include "simd.h"

namespace recsys_opt::dhe {
namespace {

constexpr int64_t kMostExactPrime = 94906265;  // whose square is below 2^53
constexpr int64_t kPart = 64;                  // hashes at a time

// What is left of x >= 0 by a whole d, given 1 / d; x and the quotient are whole, below 2^53 and
// 2^31. The quotient may be one off.
ALWAYS_INLINE double remainder_of(double x, double d, double inverse) {
  const double quotient = static_cast<double>(static_cast<int32_t>(x * inverse));
  const double left = x - quotient * d;
  const double raised = left < 0 ? left + d : left;
  return raised >= d ? raised - d : raised;
}

template <typename T>
ALWAYS_INLINE void hash_exactly(const Encoder& e, const double* a, const double* b, double x,
                                int64_t count, double scale, double shift, T* out) {
  const auto p = static_cast<double>(e.prime), m = static_cast<double>(e.buckets);
  const double per_p = 1.0 / p, per_m = 1.0 / m;
  for (int64_t j = 0; j < count; ++j) {
    const double h = remainder_of(remainder_of(a[j] * x + b[j], p, per_p), m, per_m);
    out[j] = static_cast<T>(h * scale + shift);
  }
}

SIMD_CLONES void hash_all(const Encoder& e, const double* a, const double* b, double x,
                          int64_t count, double scale, double shift, float* out) {
  hash_exactly(e, a, b, x, count, scale, shift, out);
}
SIMD_CLONES void hash_all(const Encoder& e, const double* a, const double* b, double x,
                          int64_t count, double scale, double shift, double* out) {
  hash_exactly(e, a, b, x, count, scale, shift, out);
}

// Pairs of numbers evenly spread in (0, 1) become normally distributed ones.
template <typename T>
ALWAYS_INLINE void pairs_to_normal(const double* even, int64_t count, T* out) {
  double first[kPart / 2], second[kPart / 2];
  for (int64_t i = 0; i < count / 2; ++i)
    to_normal(even[2 * i], even[2 * i + 1], first[i], second[i]);
  for (int64_t i = 0; i < count / 2; ++i) {
    out[2 * i] = static_cast<T>(first[i]);
    out[2 * i + 1] = static_cast<T>(second[i]);
  }
}

SIMD_CLONES void normal_all(const double* even, int64_t count, float* out) {
  pairs_to_normal(even, count, out);
}
SIMD_CLONES void normal_all(const double* even, int64_t count, double* out) {
  pairs_to_normal(even, count, out);
}

}  // namespace

Hashes::Hashes(const Encoder& encoder, const int64_t* coefficients)
    : encoder_(encoder), coefficients_(coefficients) {
  if (encoder.prime > kMostExactPrime) return;
  exact_ = tt::Array<double>(2 * encoder.hashes);
  for (int64_t j = 0; j < 2 * encoder.hashes; ++j)
    exact_[j] = static_cast<double>(coefficients[j] % encoder.prime);
}

template <typename T>
void Hashes::encode_any(const int64_t* ids, int64_t count, int64_t begin, int64_t end, T* out,
                        int64_t stride) const {
  const auto m = static_cast<double>(encoder_.buckets);
  const bool normal = encoder_.gaussian;
  const double scale = normal ? 1.0 / m : 2.0 / (m - 1.0), shift = normal ? 0.5 / m : -1.0;
  for (int64_t i = 0; i < count; ++i) {
    T* row = out + i * stride;
    const int64_t x = ids[i] % encoder_.prime;
    for (int64_t j = begin; j < end; j += kPart) {
      const int64_t size = std::min(kPart, end - j);
      double even[kPart];
      if (exact_.size() > 0) {
        const double* a = exact_.data() + j;
        const auto number = static_cast<double>(x);
        if (!normal) {
          hash_all(encoder_, a, a + encoder_.hashes, number, size, scale, shift, row + j - begin);
          continue;
        }
        hash_all(encoder_, a, a + encoder_.hashes, number, size, scale, shift, even);
      } else {
        for (int64_t l = 0; l < size; ++l) {
          const int64_t sum = coefficients_[j + l] % encoder_.prime * x +
                              coefficients_[encoder_.hashes + j + l] % encoder_.prime;
          even[l] = static_cast<double>(sum % encoder_.prime % encoder_.buckets) * scale + shift;
        }
      }
      if (normal)
        normal_all(even, size, row + j - begin);
      else
        for (int64_t l = 0; l < size; ++l) row[j - begin + l] = static_cast<T>(even[l]);
    }
  }
}

void Hashes::encode(const int64_t* ids, int64_t count, int64_t begin, int64_t end, float* out,
                    int64_t stride) const {
  encode_any(ids, count, begin, end, out, stride);
}
void Hashes::encode(const int64_t* ids, int64_t count, int64_t begin, int64_t end, double* out,
                    int64_t stride) const {
  encode_any(ids, count, begin, end, out, stride);
}

namespace {

Tensor dhe_encode_cpu(Tensor ids, Tensor hashes, int64_t num_embeddings, int64_t prime,
                      int64_t buckets, int64_t encoding, Tensor like,
                      std::optional<Tensor> positions, int64_t table) {
  STD_TORCH_CHECK(ids.dim() == 1 && ids.scalar_type() == ScalarType::Long,
                  "dhe_encode: ids must be 1-D int64");
  const Encoder encoder = check_encoder("dhe_encode", hashes, prime, buckets, encoding);
  check_positions("dhe_encode", positions, ids);
  make_contiguous(ids, hashes);
  if (positions) make_contiguous(*positions);
  const int64_t count = ids.numel();
  const int64_t* id = ids.const_data_ptr<int64_t>();
  const int64_t* place = positions ? positions->const_data_ptr<int64_t>() : nullptr;
  for (int64_t i = 0; i < count; ++i)
    STD_TORCH_CHECK(0 <= id[i] && id[i] < num_embeddings, "dhe_encode: ids[", place ? place[i] : i,
                    "] = ", id[i], " is outside the ", num_embeddings, " rows of table ", table);
  Tensor out = empty_on_cpu({count, encoder.hashes}, like.scalar_type());
  const Hashes functions(encoder, hashes.const_data_ptr<int64_t>());
  dispatch_floating("dhe_encode", like.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    T* to = out.mutable_data_ptr<T>();
    torch::stable::parallel_for(0, count, 64, [&](int64_t begin, int64_t end) {
      functions.encode(id + begin, end - begin, 0, encoder.hashes, to + begin * encoder.hashes,
                       encoder.hashes);
    });
  });
  return out;
}

}  // namespace
}  // namespace recsys_opt::dhe

STABLE_TORCH_LIBRARY_IMPL(recsys_opt, CPU, m) {
  m.impl("dhe_encode", TORCH_BOX(&recsys_opt::dhe::dhe_encode_cpu));
}
