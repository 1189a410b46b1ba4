// The launches of the backward pass up to the partial sums of the slices' gradients.
#include "tt_backward_cuda.cuh"
#include "tt_inner_level_cuda.cuh"
#include "tt_level_backward_cuda.cuh"

namespace recsys_opt::tt {
namespace {

template <typename T, bool kTensor>
PartialSums run(Call& call, const Tensor& grad, void* grad_weights) {
  using Acc = Accumulator<T>;
  const bool four = call.any_with(4), three = four || call.any_with(3);
  PartialSums result;
  result.orders = {kTop, kLast};
  if (three) result.orders.push_back(kFirst);
  if (four) result.orders.push_back(kInner);

  Level<Acc> top{}, below{};
  top.order = kTop;
  below.order = kInner;
  top.backward = below.backward = true;
  Acc* of_units[kOrders] = {};
  call.lay_out([&](Workspace& workspace) {
    const int64_t n = call.batch.num_indices;
    layout_plan(call, workspace, result.orders);
    top.slot = workspace.take<int64_t>(n);
    top.nodes = workspace.take<Acc>(most_in_nodes(call, kTop, true));
    if (four) {
      below.slot = workspace.take<int64_t>(n);
      below.nodes = workspace.take<Acc>(most_in_nodes(call, kInner, true));
    }
    for (const int o : result.orders) {
      of_units[o] = workspace.take<Acc>(most_in_sums(call, o));
      result.of_units[o] = of_units[o];
    }
  });
  make_plan(call);

  top.grad = grad.const_data_ptr();
  top.grad_weights = grad_weights;
  top.sums = of_units[kTop];
  if (four) {
    inner_forward<T, kTensor>(call, below);
    top.left_nodes = below.nodes;
    top.left_slot = below.slot;
  }
  launch_level(level_backward_kernel<T, kTensor, true>, call, top, true);
  if (four) {
    below.upper_nodes = top.nodes;
    below.upper_slot = top.slot;
    below.sums = of_units[kInner];
    inner_backward<T, kTensor>(call, below);
  }

  UnitSums<Acc> sums{};
  sums.top_slot = top.slot;
  sums.top_nodes = top.nodes;
  sums.grad = grad.const_data_ptr();
  sums.inner_slot = below.slot;
  sums.inner_nodes = below.nodes;
  const auto launch_sums = [&](auto kernel, int order) {
    sums.order = order;
    sums.sums = of_units[order];
    launch(kernel, {unit_blocks(call, order)}, kSumThreads, sum_shared_bytes(sizeof(Acc)),
           call.stream, call.tables, call.batch, sums);
  };
  launch_sums(unit_sums_kernel<T, true>, kLast);
  if (three) launch_sums(unit_sums_kernel<T, false>, kFirst);
  return result;
}

}  // namespace

PartialSums run_backward(Call& call, const Tensor& grad, void* grad_weights) {
  PartialSums result;
  dispatch(call.type, [&](auto element, auto tensor) {
    result = run<decltype(element), decltype(tensor)::value>(call, grad, grad_weights);
  });
  return result;
}

}  // namespace recsys_opt::tt
