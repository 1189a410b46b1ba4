#include "tt_kernels.h"
#include "tt_prefix_rows.h"
#include "tt_reduced.h"

namespace recsys_opt::tt {
namespace portable {
namespace {
constexpr int kBytes = 16;
#include "tt_prefix_rows_impl.h"
}  // namespace
}  // namespace portable

template <typename Sum>
MakeRows<Sum> portable_make_rows(const PrefixTable& table, ScalarType type) {
  return portable::choose_rows<Sum>(table, type);
}

template <typename Sum>
MakeRows<Sum> make_rows_of(const PrefixTable& table, ScalarType type) {
  const Isa widest = isa_limit();
  MakeRows<Sum> found = nullptr;
  if constexpr (std::is_same_v<Sum, float>) {
    if (widest >= Isa::kAvx512) found = avx512bf16_make_rows(table, type);
    if (!found && widest >= Isa::kAvx512) found = avx512_make_rows(table, type);
  }
  if (!found && widest >= Isa::kAvx2) found = avx2_make_rows<Sum>(table, type);
  return found ? found : portable_make_rows<Sum>(table, type);
}

MakeNarrowRows make_narrow_rows_of(const PrefixTable& table, ScalarType type) {
  return isa_limit() >= Isa::kAvx512 ? avx512bf16_make_narrow_rows(table, type) : nullptr;
}

template MakeRows<float> make_rows_of<float>(const PrefixTable&, ScalarType);
template MakeRows<double> make_rows_of<double>(const PrefixTable&, ScalarType);

}  // namespace recsys_opt::tt
