// The forward pass of tt_embedding_bag on CUDA.
#include <torch/csrc/stable/library.h>

#include "tt_bounds_cuda.cuh"
#include "tt_dispatch_cuda.cuh"
#include "tt_inner_level_cuda.cuh"
#include "tt_level_forward_cuda.cuh"

namespace recsys_opt::tt {
namespace {

constexpr int kPoolThreads = 256;

// Small batches: keys and one block per bag.
template <typename T>
void forward_direct(Call& call, Tensor& out) {
  using Acc = Accumulator<T>;
  call.lay_out([&](Workspace& workspace) { layout_plan(call, workspace, {}); });
  make_plan(call);
  const int64_t buffer = direct_buffer(call);
  launch(direct_kernel<T>, {call.batch.bags}, kDirectThreads,
         direct_shared_bytes(call, sizeof(Acc)), call.stream, call.tables, call.batch,
         static_cast<int>(buffer), static_cast<T*>(out.mutable_data_ptr()));
}

template <typename T, bool kTensor>
void forward_planned(Call& call, Tensor& out) {
  using Acc = Accumulator<T>;
  const bool inner = call.any_with(4);
  Level<Acc> top{}, below{};
  top.order = kTop;
  below.order = kInner;
  for (const DeviceTable& t : call.all_tables) {
    top.row_width = std::max<int64_t>(top.row_width, t.dim);
  }
  call.lay_out([&](Workspace& workspace) {
    layout_plan(call, workspace, inner ? std::vector<int>{kTop, kInner} : std::vector<int>{kTop});
    top.rows = workspace.take<Acc>(call.batch.num_indices * top.row_width);
    if (!inner) return;
    below.slot = workspace.take<int64_t>(call.batch.num_indices);
    below.nodes = workspace.take<Acc>(most_in_nodes(call, kInner, false));
  });
  make_plan(call);
  if (inner) {
    inner_forward<T, kTensor>(call, below);
    top.left_nodes = below.nodes;
    top.left_slot = below.slot;
  }
  top.out = out.mutable_data_ptr();
  launch_level(level_forward_kernel<T, kTensor, true>, call, top, false);
  const int64_t blocks = std::min<int64_t>(ceil_divide(call.batch.bags, kPoolThreads / 16),
                                           int64_t{call.limits.multiprocessors} * 32);
  launch(pool_kernel<T>, {blocks}, kPoolThreads, 0, call.stream, call.tables, call.batch,
         static_cast<const Acc*>(top.rows), top.row_width, static_cast<T*>(out.mutable_data_ptr()));
}

// Whether to look up without a plan. It takes no sharing of products, a block for every bag whether
// it holds anything or not, and a bag's lookups one after the other: so for few lookups, where
// neither bags nor, on average, lookups of a bag are many more.
bool goes_direct(const Call& call) {
  constexpr int64_t kBagsPerLookup = 8, kLookupsPerBag = 8;
  const int64_t most = cuda_settings().direct_lookups, lookups = call.batch.num_indices;
  return lookups <= most && call.batch.bags / kBagsPerLookup <= most &&
         lookups <= kLookupsPerBag * call.batch.bags &&
         direct_shared_bytes(call, 8) <= call.limits.shared_bytes;
}

Tensor tt_embedding_bag_cuda(Tensor indices, Tensor offsets, std::vector<Tensor> cores,
                             std::vector<int64_t> cores_per_table,
                             std::vector<int64_t> num_embeddings,
                             std::vector<int64_t> pooling_modes, std::vector<int64_t> padding_idx,
                             std::optional<Tensor> per_sample_weights) {
  check_devices("tt_embedding_bag", indices, offsets, cores, per_sample_weights);
  const OnDevice device(cores[0]);
  Call call(indices, offsets, cores, cores_per_table, num_embeddings, pooling_modes, padding_idx,
            per_sample_weights, device);
  Tensor out = torch::stable::new_empty(cores[0], {call.args.batch_size, call.args.columns});
  if (call.batch.bags == 0) return out;
  const bool direct = goes_direct(call);
  dispatch(call.type, [&](auto element, auto tensor) {
    using T = decltype(element);
    if (direct) {
      forward_direct<T>(call, out);
    } else {
      forward_planned<T, decltype(tensor)::value>(call, out);
    }
  });
  return out;
}

}  // namespace
}  // namespace recsys_opt::tt

STABLE_TORCH_LIBRARY_IMPL(TT_OPS_LIBRARY, TT_OPS_DEVICE, m) {
  m.impl("tt_embedding_bag", TORCH_BOX(&recsys_opt::tt::tt_embedding_bag_cuda));
}
