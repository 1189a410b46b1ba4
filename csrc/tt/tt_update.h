#pragma once
// Update rules that the backward pass applies to one slice of a core, G_k(i) = cores[k][i], as soon
// as the slice's gradient is complete. Slices that the batch does not use are not touched;
// gradients of a whole core are stored for the first and the last core alone (and for tables that
// share their cores). g is the gradient, w the slice, both [q r r'] numbers:
//
//   weight decay       g += weight_decay w, before the rule
//   SGD                w -= lr g
//   Adagrad            s += g^2;        w -= lr g / (sqrt(s) + eps)
//   row-wise Adagrad   s += mean(g^2);  w -= lr g / (sqrt(s) + eps)      one s for the slice
//   Adam               m += (1 - beta1) (g - m);  v = beta2 v + (1 - beta2) g^2
//                      w -= lr / (1 - beta1^step) m / (sqrt(v / (1 - beta2^step)) + eps)
#include <cstdint>
#include <vector>

#include "tt_embedding_bag.h"

namespace recsys_opt::tt {

template <typename T>
struct Rule {
  Algorithm algorithm;
  T lr;  // Adam: over 1 - beta1^step
  T eps, weight_decay;
  T take_mean, keep_square, take_square;  // Adam: 1 - beta1, beta2, 1 - beta2
  T root_correction;                      // Adam: sqrt(1 - beta2^step)

  // w -= lr (g_1 + g_2 + ...) may be done term by term.
  bool adds() const { return algorithm == Algorithm::kSgd && weight_decay == T(0); }
};

template <typename T>
Rule<T> make_rule(Algorithm algorithm, const double* hyperparameters);

// One core and its states. Row-wise: states[0] has one number per slice.
template <typename T>
struct CoreUpdate {
  const Rule<T>* rule = nullptr;  // nullptr: gradients are stored, nothing is updated
  T* core = nullptr;
  T* states[2] = {};
  int64_t slice_size = 0;

  // Updates slice `index` from its gradient, which it overwrites.
  void apply(int64_t index, T* grad) const;
};

}  // namespace recsys_opt::tt
