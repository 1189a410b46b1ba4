#pragma once
// The launches of the backward pass, for any rule of what happens to a slice's gradient.
#include "tt_dispatch_cuda.cuh"
#include "tt_level_backward_cuda.cuh"
#include "tt_sums_cuda.cuh"

namespace recsys_opt::tt {

template <typename T, bool kTensor, typename Rule>
void run_backward(Call& call, const Tensor& grad, void* grad_weights, const Rule& rule) {
  using Acc = Accumulator<T>;
  const bool four = call.any_with(4), three = four || call.any_with(3);
  std::vector<int> orders = {kTop, kLast};
  if (three) orders.push_back(kFirst);
  if (four) orders.push_back(kInner);

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
    layout_plan(call, workspace, orders);
    top.slot = workspace.take<int>(n);
    top.products = workspace.take<Acc>(n * top.width);
    top.grad_left = workspace.take<Acc>(three ? n * top.grad_left_width : 0);
    if (four) {
      below.slot = workspace.take<int>(n);
      below.products = workspace.take<Acc>(n * below.width);
      below.grad_left = workspace.take<Acc>(n * below.grad_left_width);
    }
    for (const int o : orders) {
      partial[o] = workspace.take<Acc>(call.batch.order[o].max_units * slice_width(call, o));
    }
  });
  make_plan(call);

  top.grad = grad.const_data_ptr();
  top.grad_weights = grad_weights;
  top.partial = partial[kTop];
  top.partial_width = slice_width(call, kTop);
  if (four) {
    launch_level(level_forward_kernel<T, kTensor, false>, call, below, false);
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
    below.partial_width = slice_width(call, kInner);
    launch_level(level_backward_kernel<T, kTensor, false>, call, below, true);
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
    sums.partial_width = slice_width(call, order);
    launch(kernel, {unit_blocks(call, order)}, kSumThreads, kSumThreads * sizeof(Acc), call.stream,
           call.tables, call.batch, sums);
  };
  launch_sums(unit_sums_kernel<T, true>, kLast);
  if (three) launch_sums(unit_sums_kernel<T, false>, kFirst);

  for (const int o : orders) {
    const SliceSums slices{o, partial[o], slice_width(call, o)};
    const int64_t blocks = std::min<int64_t>(call.batch.order[o].groups,
                                             int64_t{call.limits.multiprocessors} * 16);
    launch(slices_kernel<T, Rule>, {blocks}, kSumThreads, kSumThreads * sizeof(Acc), call.stream,
           call.tables, call.batch, slices, rule);
  }
}

}  // namespace recsys_opt::tt
