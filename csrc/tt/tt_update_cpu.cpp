#include <cmath>

#include "simd.h"
#include "tt_update.h"

namespace recsys_opt::tt {
namespace {

template <typename T>
ALWAYS_INLINE void decay_body(T rate, const T* slice, T* grad, int64_t n) {
  for (int64_t e = 0; e < n; ++e) grad[e] += rate * slice[e];
}
template <typename T>
ALWAYS_INLINE void descend_body(T rate, const T* grad, T* slice, int64_t n) {
  for (int64_t e = 0; e < n; ++e) slice[e] -= rate * grad[e];
}
// The order of additions is fixed, whatever the width of the registers.
template <typename T>
ALWAYS_INLINE T mean_square_body(const T* x, int64_t n) {
  T lanes[16] = {};
  int64_t e = 0;
  for (; e + 16 <= n; e += 16) {
    for (int64_t k = 0; k < 16; ++k) lanes[k] += x[e + k] * x[e + k];
  }
  T sum = 0;
  for (int64_t k = 0; k < 16; ++k) sum += lanes[k];
  for (; e < n; ++e) sum += x[e] * x[e];
  return sum / static_cast<T>(n);
}
template <typename T>
ALWAYS_INLINE void adagrad_body(const Rule<T>& rule, const T* __restrict grad, T* __restrict slice,
                                T* __restrict state, int64_t n) {
  const T lr = rule.lr, eps = rule.eps;
  for (int64_t e = 0; e < n; ++e) {
    state[e] += grad[e] * grad[e];
    slice[e] -= lr * grad[e] / (std::sqrt(state[e]) + eps);
  }
}
template <typename T>
ALWAYS_INLINE void adam_body(const Rule<T>& rule, const T* __restrict grad, T* __restrict slice,
                             T* __restrict mean, T* __restrict square, int64_t n) {
  const T lr = rule.lr, eps = rule.eps, root_correction = rule.root_correction;
  const T take_mean = rule.take_mean, keep = rule.keep_square, take_square = rule.take_square;
  for (int64_t e = 0; e < n; ++e) {
    mean[e] += take_mean * (grad[e] - mean[e]);
    square[e] = keep * square[e] + take_square * grad[e] * grad[e];
    slice[e] -= lr * mean[e] / (std::sqrt(square[e]) / root_correction + eps);
  }
}

template <typename T>
ALWAYS_INLINE void apply_body(const CoreUpdate<T>& update, int64_t index, T* grad) {
  const Rule<T>& rule = *update.rule;
  const int64_t n = update.slice_size;
  T* slice = update.core + index * n;
  if (rule.weight_decay != 0) decay_body(rule.weight_decay, slice, grad, n);
  switch (rule.algorithm) {
    case Algorithm::kSgd:
      return descend_body(rule.lr, grad, slice, n);
    case Algorithm::kAdagrad:
      return adagrad_body(rule, grad, slice, update.states[0] + index * n, n);
    case Algorithm::kRowwiseAdagrad: {
      T& state = update.states[0][index];
      state += mean_square_body(grad, n);
      return descend_body(rule.lr / (std::sqrt(state) + rule.eps), grad, slice, n);
    }
    case Algorithm::kAdam:
      return adam_body(rule, grad, slice, update.states[0] + index * n,
                       update.states[1] + index * n, n);
  }
}
SIMD_CLONES void apply_slice(const CoreUpdate<float>& update, int64_t index, float* grad) {
  apply_body(update, index, grad);
}
SIMD_CLONES void apply_slice(const CoreUpdate<double>& update, int64_t index, double* grad) {
  apply_body(update, index, grad);
}

}  // namespace

template <typename T>
Rule<T> make_rule(Algorithm algorithm, const double* h) {
  const bool adam = algorithm == Algorithm::kAdam;
  const double lr = adam ? h[kLr] / (1 - std::pow(h[kBeta1], h[kStep])) : h[kLr];
  const double correction = adam ? 1 - std::pow(h[kBeta2], h[kStep]) : 1;
  return {algorithm,
          static_cast<T>(lr),
          static_cast<T>(h[kEps]),
          static_cast<T>(h[kWeightDecay]),
          static_cast<T>(1 - h[kBeta1]),
          static_cast<T>(h[kBeta2]),
          static_cast<T>(1 - h[kBeta2]),
          static_cast<T>(std::sqrt(correction))};
}

template <typename T>
void CoreUpdate<T>::apply(int64_t index, T* grad) const {
  apply_slice(*this, index, grad);
}

template Rule<float> make_rule(Algorithm, const double*);
template Rule<double> make_rule(Algorithm, const double*);
template struct CoreUpdate<float>;
template struct CoreUpdate<double>;

}  // namespace recsys_opt::tt
