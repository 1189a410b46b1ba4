#include "tt_dispatch_cuda.cuh"
#include "tt_inner_level_cuda.cuh"
#include "tt_level_backward_cuda.cuh"

namespace recsys_opt::tt {

template <typename T, bool kTensor>
void inner_forward(const Call& call, const Level<Accumulator<T>>& level) {
  launch_level(level_forward_kernel<T, kTensor, false>, call, level, false);
}

template <typename T, bool kTensor>
void inner_backward(const Call& call, const Level<Accumulator<T>>& level) {
  launch_level(level_backward_kernel<T, kTensor, false>, call, level, true);
}

#define TT_INNER_LEVEL(T, kTensor)                                                    \
  template void inner_forward<T, kTensor>(const Call&, const Level<Accumulator<T>>&); \
  template void inner_backward<T, kTensor>(const Call&, const Level<Accumulator<T>>&);
TT_INNER_LEVEL(float, false)
TT_INNER_LEVEL(float, true)
TT_INNER_LEVEL(double, false)
TT_INNER_LEVEL(torch::headeronly::Half, true)
TT_INNER_LEVEL(torch::headeronly::BFloat16, true)
#undef TT_INNER_LEVEL

}  // namespace recsys_opt::tt
