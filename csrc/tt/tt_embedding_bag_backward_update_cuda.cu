// The backward pass of tt_embedding_bag on CUDA that updates the cores in place of returning their
// gradients: as soon as the gradient of a slice is complete, the block that completed it applies
// the rule (tt_update.h) to the slice. Slices that no lookup used are not touched.
#include <torch/csrc/stable/library.h>

#include "tt_backward_cuda.cuh"
#include "tt_rule_cuda.cuh"

namespace recsys_opt::tt {
namespace {

template <typename T>
struct UpdateSlice {
  using Acc = Accumulator<T>;
  Algorithm algorithm;
  const double* numbers;  // [kHyperparameters] on the device, so that a CUDA graph can replay

  using Ready = DeviceRule<Acc>;
  __device__ Ready prepare() const { return DeviceRule<Acc>::of(algorithm, numbers); }

  // Threads take elements; row-wise Adagrad adds up their squares first, in shared [blockDim].
  template <typename Sum>
  __device__ void operator()(const Ready& rule, const Slice& slice, bool touched, const Sum& sum,
                             Acc* shared) const {
    if (!touched) return;
    T* const core = static_cast<T*>(slice.table->grad[slice.core]) + slice.begin;
    void* const* const states = slice.table->state[slice.core];
    Acc* const first = static_cast<Acc*>(states[0]) + slice.begin;
    Acc* const second = static_cast<Acc*>(states[1]) + slice.begin;
    const auto gradient = [&](int e) {
      return sum(e) + rule.weight_decay * static_cast<Acc>(core[e]);
    };
    Acc row_rate = 0;
    if (algorithm == Algorithm::kRowwiseAdagrad) {
      const Acc square = mean_square(slice, gradient, shared);
      Acc* const state = static_cast<Acc*>(states[0]) + slice.index;
      const Acc next = *state + square;
      __syncthreads();  // all have read the state
      if (threadIdx.x == 0) *state = next;
      row_rate = rule.lr / (sqrt(next) + rule.eps);
    }
    for (int e = threadIdx.x; e < slice.size; e += blockDim.x) {
      const Acc g = gradient(e);
      const Acc change = rule.change(algorithm, g, first + e, second + e, row_rate);
      core[e] = static_cast<T>(static_cast<Acc>(core[e]) - change);
    }
  }

  template <typename Gradient>
  __device__ static Acc mean_square(const Slice& slice, const Gradient& gradient, Acc* shared) {
    Acc squares = 0;
    for (int e = threadIdx.x; e < slice.size; e += blockDim.x) {
      const Acc g = gradient(e);
      squares += g * g;
    }
    shared[threadIdx.x] = squares;
    __syncthreads();
    for (int half = static_cast<int>(blockDim.x) / 2; half > 0; half /= 2) {
      if (static_cast<int>(threadIdx.x) < half) shared[threadIdx.x] += shared[threadIdx.x + half];
      __syncthreads();
    }
    const Acc result = shared[0] / static_cast<Acc>(slice.size);
    __syncthreads();
    return result;
  }
};

Tensor tt_embedding_bag_backward_update_cuda(
    Tensor grad, Tensor indices, Tensor offsets, std::vector<Tensor> cores,
    std::vector<Tensor> states, std::vector<int64_t> cores_per_table,
    std::vector<int64_t> num_embeddings, std::vector<int64_t> pooling_modes,
    std::vector<int64_t> padding_idx, std::optional<Tensor> per_sample_weights, bool weights_grad,
    int64_t algorithm, Tensor hyperparameters) {
  check_devices("tt_embedding_bag_backward_update", indices, offsets, cores, per_sample_weights)
      .with("grad", grad)
      .with("states", states)
      .with("hyperparameters", hyperparameters);
  const OnDevice device(cores[0]);
  Call call(indices, offsets, cores, cores_per_table, num_embeddings, pooling_modes, padding_idx,
            per_sample_weights, device);
  check_grad(grad, call.args, cores[0]);
  const UpdateArguments update = check_update(call.args, cores, states, algorithm, hyperparameters);
  grad = torch::stable::contiguous(grad);
  Tensor weights_grads =
      torch::stable::new_zeros(grad, {weights_grad ? call.batch.num_indices : 0});
  if (call.batch.bags == 0) return weights_grads;
  for (size_t t = 0; t < call.all_tables.size(); ++t) {
    DeviceTable& table = call.all_tables[t];
    table.owner = static_cast<int>(update.owner[t]);
    for (int k = 0; k < table.d; ++k) {
      const int64_t c = table.first_core + k;
      table.grad[k] = cores[c].mutable_data_ptr();
      for (int64_t s = 0; s < update.states_per_core; ++s) {
        table.state[k][s] = states[c * update.states_per_core + s].mutable_data_ptr();
      }
    }
    if (table.owner == static_cast<int>(t)) continue;
    DeviceTable* last = &call.all_tables[table.owner];
    while (last->next_shared >= 0) last = &call.all_tables[last->next_shared];
    last->next_shared = static_cast<int>(t);
  }
  const PartialSums sums =
      run_backward(call, grad, weights_grad ? weights_grads.mutable_data_ptr() : nullptr);
  dispatch(call.type, [&](auto element, auto) {
    using T = decltype(element);
    finish_slices<T>(call, sums,
                     UpdateSlice<T>{update.algorithm,
                                    static_cast<const double*>(hyperparameters.const_data_ptr())});
  });
  return weights_grads;
}

}  // namespace
}  // namespace recsys_opt::tt

STABLE_TORCH_LIBRARY_IMPL(TT_OPS_LIBRARY, TT_OPS_DEVICE, m) {
  m.impl("tt_embedding_bag_backward_update",
         TORCH_BOX(&recsys_opt::tt::tt_embedding_bag_backward_update_cuda));
}
