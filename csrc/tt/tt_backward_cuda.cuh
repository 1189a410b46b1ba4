#pragma once
// The parts of the backward pass, whatever then happens to a slice's gradient: the levels and sums
// leave partial sums of every slice's gradient, and a rule takes the finished ones.
#include "tt_dispatch_cuda.cuh"
#include "tt_sums_cuda.cuh"

namespace recsys_opt::tt {

// What the levels leave, by order: partial sums of the units' slices.
struct PartialSums {
  std::vector<int> orders;
  void* of_units[kOrders] = {};
};

// Plans the batch and runs its levels and sums (tt_backward_cuda.cu).
PartialSums run_backward(Call& call, const Tensor& grad, void* grad_weights);

// Hands every slice's finished gradient to the rule.
template <typename T, typename Rule>
void finish_slices(const Call& call, const PartialSums& sums, const Rule& rule) {
  for (const int o : sums.orders) {
    const SliceSums slices{o, sums.of_units[o]};
    const int64_t blocks =
        std::min<int64_t>(call.batch.order[o].groups, int64_t{call.limits.multiprocessors} * 16);
    launch(slices_kernel<T, Rule>, {blocks}, kSumThreads, kSumThreads * sizeof(Accumulator<T>),
           call.stream, call.tables, call.batch, slices, rule);
  }
}

}  // namespace recsys_opt::tt
