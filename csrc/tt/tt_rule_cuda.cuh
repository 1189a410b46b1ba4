#pragma once
// The update rules of tt_update.h on the device.
#include <cmath>

#include "cuda_intrinsics.cuh"
#include "tt_embedding_bag.h"

namespace recsys_opt::tt {

template <typename Acc>
struct DeviceRule {
  Acc lr, eps, weight_decay, take_mean, keep_square, take_square, root_correction;

  // numbers: [kHyperparameters] on the device, so that a CUDA graph can replay.
  static __device__ DeviceRule of(Algorithm algorithm, const double* numbers) {
    const bool adam = algorithm == Algorithm::kAdam;
    const double step = numbers[kStep];
    const double lr = adam ? numbers[kLr] / (1 - pow(numbers[kBeta1], step)) : numbers[kLr];
    const double correction = adam ? 1 - pow(numbers[kBeta2], step) : 1;
    return {static_cast<Acc>(lr),
            static_cast<Acc>(numbers[kEps]),
            static_cast<Acc>(numbers[kWeightDecay]),
            static_cast<Acc>(1 - numbers[kBeta1]),
            static_cast<Acc>(numbers[kBeta2]),
            static_cast<Acc>(1 - numbers[kBeta2]),
            static_cast<Acc>(sqrt(correction))};
  }

  // What a weight of gradient g loses; moves its states. row_rate: of row-wise Adagrad,
  // lr / (sqrt(state) + eps).
  __device__ Acc change(Algorithm algorithm, Acc g, Acc* first, Acc* second, Acc row_rate) const {
    switch (algorithm) {
      case Algorithm::kSgd:
        return lr * g;
      case Algorithm::kAdagrad:
        *first += g * g;
        return lr * g / (sqrt(*first) + eps);
      case Algorithm::kRowwiseAdagrad:
        return row_rate * g;
      case Algorithm::kAdam:
        *first += take_mean * (g - *first);
        *second = keep_square * *second + take_square * g * g;
        return lr * *first / (sqrt(*second) / root_correction + eps);
    }
    return Acc(0);
  }
};

}  // namespace recsys_opt::tt
