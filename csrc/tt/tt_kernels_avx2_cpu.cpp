#include "tt_kernels.h"

#if defined(__x86_64__) && defined(__GNUC__)
#pragma GCC target("avx2,fma")

namespace recsys_opt::tt {
namespace avx2 {
namespace {
// Of a block of a product: 6 x 2 sums, 2 + 1 operands in 16 registers.
constexpr int kRows = 6, kVectors = 2;
#include "tt_kernels_impl.h"
}  // namespace
}  // namespace avx2

template <typename T>
const Kernels<T>* avx2_kernels(int64_t ranks_divisor) {
  static const bool usable = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return usable ? avx2::widest_kernels<T, 32 / sizeof(T)>(ranks_divisor) : nullptr;
}

#else

namespace recsys_opt::tt {
template <typename T>
const Kernels<T>* avx2_kernels(int64_t) {
  return nullptr;
}

#endif

template const Kernels<float>* avx2_kernels<float>(int64_t);
template const Kernels<double>* avx2_kernels<double>(int64_t);

}  // namespace recsys_opt::tt
