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
  static void store(__m512 row, float* out) { _mm512_storeu_ps(out, row); }
  static void store(__m512 row, uint16_t* out) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out),
                        reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(row)));
  }
};

template <typename Tile, int STEPS>
void make_narrow_rows(const PrefixTable& table, const PrefixRows& rows, int64_t begin, int64_t end,
                      void* out, int64_t stride) {
  make_rows_into<Bf16, Tile, STEPS>(table, rows, begin, end, static_cast<uint16_t*>(out), stride);
}

template <typename Tile>
MakeNarrowRows narrow_rows_by_steps(const PrefixTable& table) {
  if (table.steps == 16) return make_narrow_rows<Tile, 16>;
  if (table.steps == 32) return make_narrow_rows<Tile, 32>;
  if (table.steps == 8) return make_narrow_rows<Tile, 8>;
  return nullptr;
}
}  // namespace
}  // namespace avx512bf16

static bool usable(ScalarType type) {
  static const bool found =
      __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq");
  return found && type == ScalarType::BFloat16;
}

MakeRows<float> avx512bf16_make_rows(const PrefixTable& table, ScalarType type) {
  return usable(type) ? avx512bf16::choose_rows<avx512bf16::Bf16>(table) : nullptr;
}

MakeNarrowRows avx512bf16_make_narrow_rows(const PrefixTable& table, ScalarType type) {
  using avx512bf16::Bf16;
  if (!usable(type) || table.dim != 16) return nullptr;
  if (table.tile[0] == 4) return avx512bf16::narrow_rows_by_steps<avx512bf16::Tile44<Bf16>>(table);
  if (table.tile[0] == 2) {
    return avx512bf16::narrow_rows_by_steps<avx512bf16::Tile28<Bf16, false>>(table);
  }
  return nullptr;
}

#else

namespace recsys_opt::tt {
MakeRows<float> avx512bf16_make_rows(const PrefixTable&, ScalarType) {
  return nullptr;
}
MakeNarrowRows avx512bf16_make_narrow_rows(const PrefixTable&, ScalarType) {
  return nullptr;
}

#endif

}  // namespace recsys_opt::tt
