#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>

#include "as_contiguous.h"
#include "dense/adagrad.h"
#include "dispatch.h"
#include "simd.h"

namespace recsys_opt {
namespace {

using torch::stable::Tensor;

constexpr int64_t kGrain = 16384;  // numbers per task

template <typename T>
ALWAYS_INLINE void step_body(T* __restrict parameter, T* __restrict state,
                             const T* __restrict gradient, int64_t n, T lr, T eps) {
  for (int64_t k = 0; k < n; ++k) {
    state[k] += gradient[k] * gradient[k];
    parameter[k] -= lr * gradient[k] / (std::sqrt(state[k]) + eps);
  }
}
SIMD_CLONES void step(float* parameter, float* state, const float* gradient, int64_t n, float lr,
                      float eps) {
  step_body(parameter, state, gradient, n, lr, eps);
}
SIMD_CLONES void step(double* parameter, double* state, const double* gradient, int64_t n,
                      double lr, double eps) {
  step_body(parameter, state, gradient, n, lr, eps);
}

void adagrad_cpu(std::vector<Tensor> parameters, std::vector<Tensor> states,
                 std::vector<Tensor> grads, double lr, double eps) {
  check_adagrad_args(parameters, states, grads);
  // first[k] is where tensor k begins when all are laid end to end.
  std::vector<int64_t> first{0};
  for (size_t k = 0; k < parameters.size(); ++k) {
    grads[k] = as_contiguous(grads[k]);
    first.push_back(first.back() + parameters[k].numel());
  }
  dispatch_floating("adagrad_", parameters[0].scalar_type(), [&](auto zero) {
    using scalar_t = decltype(zero);
    torch::stable::parallel_for(0, first.back(), kGrain, [&](int64_t begin, int64_t end) {
      size_t k = std::upper_bound(first.begin(), first.end(), begin) - first.begin() - 1;
      for (; k < parameters.size() && first[k] < end; ++k) {
        const int64_t from = std::max(begin, first[k]) - first[k];
        const int64_t to = std::min(end, first[k + 1]) - first[k];
        step(parameters[k].mutable_data_ptr<scalar_t>() + from,
             states[k].mutable_data_ptr<scalar_t>() + from,
             grads[k].const_data_ptr<scalar_t>() + from, to - from, static_cast<scalar_t>(lr),
             static_cast<scalar_t>(eps));
      }
    });
  });
}

}  // namespace
}  // namespace recsys_opt

STABLE_TORCH_LIBRARY_IMPL(recsys_opt, CPU, m) {
  m.impl("adagrad_", TORCH_BOX(&recsys_opt::adagrad_cpu));
}
