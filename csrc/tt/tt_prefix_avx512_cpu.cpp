#include "tt_prefix_rows.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,prefer-vector-width=512")

namespace recsys_opt::tt {
namespace avx512 {
namespace {
#include "tt_prefix_avx512_impl.h"

struct Fp32 {
  using Lane = float;
  static __m512 load(const float* lanes) { return _mm512_loadu_ps(lanes); }
  static __m512 broadcast(const float* lane) { return _mm512_set1_ps(*lane); }
  static __m512 add_products(__m512 sum, __m512 a, __m512 b) { return _mm512_fmadd_ps(a, b, sum); }
  static void store(__m512 row, float* out) { _mm512_storeu_ps(out, row); }
};

struct Fp16 {
  using Lane = uint16_t;
  static __m512 load(const uint16_t* lanes) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(lanes)));
  }
  static __m512 broadcast(const uint16_t* lane) {
    return _mm512_cvtph_ps(_mm256_set1_epi16(static_cast<short>(*lane)));
  }
  static __m512 add_products(__m512 sum, __m512 a, __m512 b) { return _mm512_fmadd_ps(a, b, sum); }
  static void store(__m512 row, float* out) { _mm512_storeu_ps(out, row); }
};
}  // namespace
}  // namespace avx512

MakeRows<float> avx512_make_rows(const PrefixTable& table, ScalarType type) {
  static const bool usable =
      __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (usable && type == ScalarType::Float) return avx512::choose_rows<avx512::Fp32>(table);
  if (usable && type == ScalarType::Half) return avx512::choose_rows<avx512::Fp16>(table);
  return nullptr;
}

#else

namespace recsys_opt::tt {
MakeRows<float> avx512_make_rows(const PrefixTable&, ScalarType) {
  return nullptr;
}

#endif

}  // namespace recsys_opt::tt
