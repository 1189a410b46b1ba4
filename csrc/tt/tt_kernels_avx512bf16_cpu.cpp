// Products of bf16 operands with fp32 sums: two steps of a sum at once (VDPBF16PS). Operands are
// rounded on the way into a product, to the nearest; everything between products is fp32.
#include "tt_kernels.h"

#if defined(__x86_64__) && defined(__GNUC__)
// GCC 12 warns of its own _mm512_undefined_* (bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC target("avx512bf16,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,prefer-vector-width=512")

namespace recsys_opt::tt {
namespace avx512bf16 {
namespace {
// Of a block of a product: 6 x 4 sums, 4 + 1 operands in 32 registers.
constexpr int kRows = 6, kVectors = 4;
#include "tt_kernels_impl.h"
#define TT_INLINE inline __attribute__((always_inline))
#include "tt_bf16_gemm_impl.h"
#include "tt_bf16_rows_impl.h"
#undef TT_INLINE

Kernels<float> with_bf16_products(bool rows) {
  Kernels<float> result = *kernels_of_width<float, 16>();
  result.pack = pack;
  result.pack_transposed = pack_transposed;
  result.product = bf16_product;
  result.top_product = bf16_top_product<To::kSet>;
  result.outer_product = bf16_outer_product;
  result.kept_product_bytes = int64_t{1} << 21;
  if (!rows) return result;
  result.products_per_number = 2;
  result.top_product = bf16_top_product<To::kRound>;
  result.pack_products = round_products;
  result.pack_last = pack_last;
  result.pack_last_backward = pack_last_backward;
  result.rows_backward = bf16_rows_backward;
  result.rows_forward = bf16_rows_forward;
  return result;
}

}  // namespace
}  // namespace avx512bf16

const Kernels<float>* avx512bf16_kernels(int64_t ranks_divisor, int64_t largest_rank, int64_t m,
                                         int64_t q, int64_t r) {
  static const bool usable =
      __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bf16");
  static const Kernels<float> all = avx512bf16::with_bf16_products(true);
  static const Kernels<float> but_rows = avx512bf16::with_bf16_products(false);
  if (!usable || ranks_divisor % 16 != 0) return nullptr;
  const bool rows = (q == 4 || q == 8 || q % 16 == 0) && m % 2 == 0 && m * q % 16 == 0 &&
                    m * q <= avx512bf16::kMostColumns && r % 32 == 0 &&
                    largest_rank <= 2 * avx512bf16::kPairs;
  return rows ? &all : &but_rows;
}

#else

namespace recsys_opt::tt {
const Kernels<float>* avx512bf16_kernels(int64_t, int64_t, int64_t, int64_t, int64_t) {
  return nullptr;
}

#endif

}  // namespace recsys_opt::tt
