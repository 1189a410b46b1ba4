#include <atomic>
#include <type_traits>

#include "tt_kernels.h"

namespace recsys_opt::tt {
namespace portable {
namespace {
// Of a block of a product: 6 x 2 sums, 2 + 1 operands in 16 registers.
constexpr int kRows = 6, kVectors = 2;
#include "tt_kernels_impl.h"
}  // namespace
}  // namespace portable

template <typename T>
const Kernels<T>* portable_kernels(int64_t ranks_divisor) {
  return portable::widest_kernels<T, 16 / sizeof(T)>(ranks_divisor);
}

template const Kernels<float>* portable_kernels<float>(int64_t);
template const Kernels<double>* portable_kernels<double>(int64_t);

static std::atomic<Isa> widest_isa{Isa::kAvx512};
static std::atomic<bool> bf16_allowed{false};

template <typename T>
const Kernels<T>& kernels(int64_t ranks_divisor, [[maybe_unused]] int64_t largest_rank,
                          [[maybe_unused]] int64_t m, [[maybe_unused]] int64_t q,
                          [[maybe_unused]] int64_t r) {
  const Isa widest = widest_isa;
  const Kernels<T>* found = nullptr;
  if constexpr (std::is_same_v<T, float>) {
    if (widest >= Isa::kAvx512 && bf16_allowed)
      found = avx512bf16_kernels(ranks_divisor, largest_rank, m, q, r);
  }
  if (!found && widest >= Isa::kAvx512) found = avx512_kernels<T>(ranks_divisor);
  if (!found && widest >= Isa::kAvx2) found = avx2_kernels<T>(ranks_divisor);
  return found ? *found : *portable_kernels<T>(ranks_divisor);
}

Isa limit_isa(Isa widest) {
  widest_isa = widest;
  if (widest >= Isa::kAvx512 && avx512_kernels<float>(1)) return Isa::kAvx512;
  if (widest >= Isa::kAvx2 && avx2_kernels<float>(1)) return Isa::kAvx2;
  return Isa::kPortable;
}

Isa isa_limit() {
  return widest_isa;
}

bool allow_bf16(bool allowed) {
  return bf16_allowed.exchange(allowed);
}

bool bf16_is_allowed() {
  return bf16_allowed;
}

template const Kernels<float>& kernels<float>(int64_t, int64_t, int64_t, int64_t, int64_t);
template const Kernels<double>& kernels<double>(int64_t, int64_t, int64_t, int64_t, int64_t);

}  // namespace recsys_opt::tt
