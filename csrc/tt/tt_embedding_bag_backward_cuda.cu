// The backward pass of tt_embedding_bag on CUDA: it plans the batch and computes the products
// again.
#include <torch/csrc/stable/library.h>

#include "tt_backward_cuda.cuh"

namespace recsys_opt::tt {
namespace {

std::vector<Tensor> tt_embedding_bag_backward_cuda(
    Tensor grad, Tensor indices, Tensor offsets, std::vector<Tensor> cores,
    std::vector<int64_t> cores_per_table, std::vector<int64_t> num_embeddings,
    std::vector<int64_t> pooling_modes, std::vector<int64_t> padding_idx,
    std::optional<Tensor> per_sample_weights, bool weights_grad) {
  check_devices("tt_embedding_bag_backward", indices, offsets, cores, per_sample_weights)
      .with("grad", grad);
  const OnDevice device(cores[0]);
  Call call(indices, offsets, cores, cores_per_table, num_embeddings, pooling_modes, padding_idx,
            per_sample_weights, device);
  check_grad(grad, call.args, cores[0]);
  grad = torch::stable::contiguous(grad);
  std::vector<Tensor> grads;
  for (const Tensor& core : call.cores) grads.push_back(torch::stable::empty_like(core));
  if (weights_grad) grads.push_back(torch::stable::new_zeros(grad, {call.batch.num_indices}));
  if (call.batch.bags == 0) {
    for (Tensor& tensor : grads) torch::stable::zero_(tensor);
    return grads;
  }
  for (DeviceTable& table : call.all_tables) {
    for (int k = 0; k < table.d; ++k) {
      table.grad[k] = grads[table.first_core + k].mutable_data_ptr();
    }
  }
  const PartialSums sums =
      run_backward(call, grad, weights_grad ? grads.back().mutable_data_ptr() : nullptr);
  dispatch(call.type, [&](auto element, auto) {
    using T = decltype(element);
    finish_slices<T>(call, sums, WriteGradient<T>{});
  });
  return grads;
}

}  // namespace
}  // namespace recsys_opt::tt

STABLE_TORCH_LIBRARY_IMPL(TT_OPS_LIBRARY, TT_OPS_DEVICE, m) {
  m.impl("tt_embedding_bag_backward", TORCH_BOX(&recsys_opt::tt::tt_embedding_bag_backward_cuda));
}
