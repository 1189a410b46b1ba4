#include "tt_prefix_rows.h"
#include "tt_reduced.h"

#if defined(__x86_64__) && defined(__GNUC__)
#pragma GCC target("avx2,fma")

namespace recsys_opt::tt {
namespace avx2 {
namespace {
constexpr int kBytes = 32;
#include "tt_prefix_rows_impl.h"
}  // namespace
}  // namespace avx2

template <typename Sum>
MakeRows<Sum> avx2_make_rows(const PrefixTable& table, ScalarType type) {
  static const bool usable = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return usable ? avx2::choose_rows<Sum>(table, type) : nullptr;
}

#else

namespace recsys_opt::tt {
template <typename Sum>
MakeRows<Sum> avx2_make_rows(const PrefixTable&, ScalarType) {
  return nullptr;
}

#endif

template MakeRows<float> avx2_make_rows<float>(const PrefixTable&, ScalarType);
template MakeRows<double> avx2_make_rows<double>(const PrefixTable&, ScalarType);

}  // namespace recsys_opt::tt
