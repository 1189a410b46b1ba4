#include "tt_kernels.h"

#if defined(__x86_64__) && defined(__GNUC__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,prefer-vector-width=512")

namespace recsys_opt::tt {
namespace avx512 {
namespace {
// Of a block of a product: 6 x 4 sums, 4 + 1 operands in 32 registers.
constexpr int kRows = 6, kVectors = 4;
#include "tt_kernels_impl.h"
}  // namespace
}  // namespace avx512

template <typename T>
const Kernels<T>* avx512_kernels(int64_t ranks_divisor) {
  static const bool usable =
      __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  return usable ? avx512::widest_kernels<T, 64 / sizeof(T)>(ranks_divisor) : nullptr;
}

#else

namespace recsys_opt::tt {
template <typename T>
const Kernels<T>* avx512_kernels(int64_t) {
  return nullptr;
}

#endif

template const Kernels<float>* avx512_kernels<float>(int64_t);
template const Kernels<double>* avx512_kernels<double>(int64_t);

}  // namespace recsys_opt::tt
