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
  top.width = product_width(call, kTop);
  top.grad_left_width = product_width(call, kTop, true);
  below.order = kInner;
  below.width = product_width(call, kInner);
  below.grad_left_width = product_width(call, kInner, true);
  Acc* partial[kOrders] = {};
  call.lay_out([&](Workspace& workspace) {
    const int64_t n = call.batch.num_indices;
    layout_plan(call, workspace, result.orders);
    top.slot = workspace.take<int>(n);
    top.products = workspace.take<Acc>(n * top.width);
    top.grad_left = workspace.take<Acc>(three ? n * top.grad_left_width : 0);
    if (four) {
      below.slot = workspace.take<int>(n);
      below.products = workspace.take<Acc>(n * below.width);
      below.grad_left = workspace.take<Acc>(n * below.grad_left_width);
    }
    for (const int o : result.orders) {
      result.width[o] = slice_width(call, o);
      partial[o] = workspace.take<Acc>(call.batch.order[o].max_units * result.width[o]);
      result.partial[o] = partial[o];
    }
  });
  make_plan(call);

  top.grad = grad.const_data_ptr();
  top.grad_weights = grad_weights;
  top.partial = partial[kTop];
  top.partial_width = result.width[kTop];
  if (four) {
    inner_forward<T, kTensor>(call, below);
    top.left_products = below.products;
    top.left_slot = below.slot;
    top.left_width = below.width;
  }
  launch_level(level_backward_kernel<T, kTensor, true>, call, top, true);
  const int* const top_sorted = call.batch.order[kTop].sorted;
  if (four) {
    below.upper_grad = top.grad_left;
    below.upper_width = top.grad_left_width;
    below.upper_slot = top.slot;
    below.upper_sorted = top_sorted;
    below.partial = partial[kInner];
    below.partial_width = result.width[kInner];
    inner_backward<T, kTensor>(call, below);
  }

  UnitSums<Acc> sums{};
  sums.top_slot = top.slot;
  sums.top_sorted = top_sorted;
  sums.products = top.products;
  sums.width = top.width;
  sums.grad = grad.const_data_ptr();
  sums.top_grad_left = top.grad_left;
  sums.top_grad_left_width = top.grad_left_width;
  sums.inner_slot = below.slot;
  sums.inner_sorted = call.batch.order[kInner].sorted;
  sums.inner_grad_left = below.grad_left;
  sums.inner_grad_left_width = below.grad_left_width;
  const auto launch_sums = [&](auto kernel, int order) {
    sums.order = order;
    sums.partial = partial[order];
    sums.partial_width = result.width[order];
    launch(kernel, {unit_blocks(call, order)}, kSumThreads, kSumThreads * sizeof(Acc), call.stream,
           call.tables, call.batch, sums);
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
