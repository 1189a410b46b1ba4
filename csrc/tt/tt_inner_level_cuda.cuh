#pragma once
// The level below the top, which tables of four cores have.
#include "tt_level_cuda.cuh"

namespace recsys_opt::tt {

// Writes the products of the level's nodes.
template <typename T, bool kTensor>
void inner_forward(const Call& call, const Level<Accumulator<T>>& level);

template <typename T, bool kTensor>
void inner_backward(const Call& call, const Level<Accumulator<T>>& level);

}  // namespace recsys_opt::tt
