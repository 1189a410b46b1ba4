#include "tt_prefix_rows.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#pragma GCC target("avx512bf16,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,prefer-vector-width=512")

namespace recsys_opt::tt {
namespace avx512bf16 {
namespace {
#include "tt_prefix_avx512_impl.h"

struct Bf16 {
  using Lane = uint32_t;  // two numbers
  static __m512 load(const uint32_t* lanes) { return _mm512_loadu_ps(lanes); }
  static __m512 broadcast(const uint32_t* lane) {
    return reinterpret_cast<__m512>(_mm512_set1_epi32(static_cast<int>(*lane)));
  }
  static __m512 add_products(__m512 sum, __m512 a, __m512 b) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
};
}  // namespace
}  // namespace avx512bf16

MakeRows<float> avx512bf16_make_rows(const PrefixTable& table, ScalarType type) {
  static const bool usable =
      __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq");
  if (!usable || type != ScalarType::BFloat16) return nullptr;
  return avx512bf16::choose_rows<avx512bf16::Bf16>(table);
}

#else

namespace recsys_opt::tt {
MakeRows<float> avx512bf16_make_rows(const PrefixTable&, ScalarType) {
  return nullptr;
}

#endif

}  // namespace recsys_opt::tt
