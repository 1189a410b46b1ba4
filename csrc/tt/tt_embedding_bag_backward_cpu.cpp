// The backward pass of tt_embedding_bag on the CPU. Slices of cores between the first and the last
// get their whole gradient within one chunk; of the first and the last core each chunk has sums of
// its own, which the last work on a table adds up. There updates are applied. SGD on the slices
// between needs no gradient at all: the rows' gradients are scaled by -lr, and all that follows is
// linear.
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/core/Dispatch_v2.h>

#include "tt_lookup.h"

namespace recsys_opt::tt {
namespace {

constexpr int64_t kMostParts = 8;     // of a level that sum by themselves
constexpr int64_t kFinishPieces = 4;  // of a table's last work

template <typename T>
struct BackwardScratch {
  BlockRows<T> rows;
  Array<T*> grad_parents;         // where the rows of the parents' gradients go
  Array<const T*> grad_products;  // the rows of `grads`
  Array<T> products, grads, transposed, table_rows, grad_rows;
  Array<T> grad_slice;  // of the group in work, for updates
  // Where products are multiplied again: the group's slice for that, and memory for it.
  const T* slice = nullptr;
  Array<T> packed;

  BackwardScratch(const Work<T>& w, int k)
      : rows(w, k),
        grad_parents(rows.parents.size()),
        grad_products(rows.parents.size()),
        products(w.block_nodes(k) * w.product_size(k)),
        grads(w.block_nodes(k) * w.width[k]),
        transposed(k >= 2 ? w.core_slice(k - 1) : 0),
        table_rows(w.grad_weights ? kTableRows * w.table->dim : 0),
        grad_rows(kTableRows * w.table->dim),
        grad_slice(w.updates() && !w.adds() ? w.core_slice(k - 1) : 0),
        packed(again(w, k) && (w.adds() || w.kernels->pack) ? w.core_slice(k - 1) : 0) {
    const int64_t n = k > 1 ? w.width[k] / w.product_rows(k - 1) : 0;
    for (int64_t i = 0; i < grad_products.size(); ++i) grad_products[i] = grads.data() + i * n;
  }

  static bool again(const Work<T>& w, int k) { return k > 1 && k == w.top() && !w.products[k]; }

  // Prepares the slice of a group for that. Terms are added to it while it is in use, so that it
  // has to be copied where it is not packed.
  void prepare_slice(const Work<T>& w, int k, int64_t group) {
    if (!again(w, k)) return;
    slice = packed_slice(w, k, group, packed);
    if (w.kernels->pack || !w.adds()) return;
    std::copy_n(slice, packed.size(), packed.data());
    slice = packed.data();
  }
};

// Where the gradient of slice `index` of core k - 1 is summed.
template <typename T>
T* slice_target(Work<T>& w, int k, int64_t index, BackwardScratch<T>& scratch) {
  if (w.adds()) return w.update[k - 1].core + index * w.core_slice(k - 1);
  if (w.updates()) return scratch.grad_slice.data();
  return w.grad[k - 1] + index * w.core_slice(k - 1);
}

// Clears the gradients of slices [begin, end) of core k, which the batch does not use.
template <typename T>
void clear_slices(Work<T>& w, int k, int64_t begin, int64_t end) {
  if (w.updates() || begin >= end) return;
  std::fill_n(w.grad[k] + begin * w.core_slice(k), (end - begin) * w.core_slice(k), T(0));
}

// The sums of part `part` of the first or the last core.
template <typename T>
T* part_sums(Work<T>& w, int core, int64_t part) {
  return part == 0 ? w.grad[core] : w.sums[core].data() + (part - 1) * w.core_size(core);
}

// Points to where the rows of the gradients of the parents of nodes [begin, end) of level k >= 2
// go: at level 2 they are added to core 0's sums, of this part; above, each node has its own.
template <typename T>
__attribute__((noinline)) void point_gradients(Work<T>& w, int k, int64_t begin, int64_t end,
                                               int64_t part, BackwardScratch<T>& scratch) {
  const int64_t m = w.product_rows(k - 1), r = w.table->r[k - 1], width = w.width[k - 1];
  T** rows = scratch.grad_parents.data();
  if (k == 2) {
    point_rows(w.level(k).parent.data() + begin, end - begin, m, part_sums(w, 0, part), width, r,
               rows);
  } else {
    T* own = w.grad_parents[k].data() + begin * width;
    for (int64_t i = 0; i < (end - begin) * m; ++i) rows[i] = own + i * r;
  }
}

// From the gradients of the products of a block of nodes of level k >= 2, `count` rows: adds to the
// gradient of the group's slice of core k - 1, and to the gradients of the parents.
template <typename T>
void multiply_block_backward(const Work<T>& w, int k, int64_t group, int64_t count,
                             bool first_of_group, T* slice, BackwardScratch<T>& scratch) {
  const int64_t r = w.table->r[k - 1], r_next = w.table->r[k], q = w.table->q[k - 1];
  w.kernels->product(scratch.grad_products.data(), count, scratch.transposed.data(), 1, q * r_next,
                     r, scratch.grad_parents.data(), k == 2, w.slice_ahead(k, group));
  w.kernels->outer_product(scratch.rows.parents.data(), scratch.grad_products.data(), count, slice,
                           q, r, r_next, w.adds() || !first_of_group);
}

// The transposes of the q matrices of a slice, below each other: [q r', r].
template <typename T>
void transpose_slice(const Work<T>& w, int k, int64_t group, T* out) {
  w.kernels->pack_transposed(w.slice(k, group), w.table->q[k - 1], w.table->r[k - 1], w.table->r[k],
                             out);
}

// The gradients of the per-sample weights of lookups [begin, end), from their rows.
template <typename T>
void weight_gradients(Work<T>& w, int64_t begin, int64_t end, int64_t first_row, const T* rows,
                      const T* grad_out, int64_t columns) {
  const TablePlan& plan = *w.plan;
  for (int64_t c = begin; c < end; ++c) {
    w.grad_weights[plan.begin + plan.lookup[c]] =
        w.kernels->dot(grad_out + plan.bag()[c] * columns + w.table->column,
                       rows + (plan.row[c] - first_row) * w.table->dim, w.table->dim);
  }
}

// From the bags' gradients: adds to the last core's, and writes those of the products of nodes
// [begin, end). products, grads: of node `begin` and the following.
template <typename T>
void backward_rows(Work<T>& w, int64_t begin, int64_t end, const T* products, const T* grad_out,
                   int64_t columns, T* grads, T* grad_last, BackwardScratch<T>& scratch) {
  const int top = w.top();
  const int32_t* starts = w.plan->row_start.data();
  const TableRows rows = w.table_rows(begin);
  const Lookups<T> lookups = w.lookups(columns, w.adds() ? -w.update[0].rule->lr : T(1));
  const int64_t until = w.level(top).child_start[end];
  for (int64_t i = w.level(top).child_start[begin]; i < until; i += kTableRows) {
    const int64_t next = std::min(i + kTableRows, until);
    w.kernels->gather(lookups, starts[i], starts[next], i, next - i, grad_out + w.table->column,
                      scratch.grad_rows.data());
    w.kernels->rows_backward(rows, i, next, products, w.last_core_backward(),
                             scratch.grad_rows.data(), grads, grad_last);
    if (!w.grad_weights) continue;
    w.kernels->rows_forward(rows, i, next, products, w.last_core(), scratch.table_rows.data());
    weight_gradients(w, starts[i], starts[next], i, scratch.table_rows.data(), grad_out, columns);
  }
}

// The products of a block of the top level: kept ones, core 0's own, or multiplied again.
template <typename T>
const T* block_products(const Work<T>& w, int64_t group, int64_t begin, int64_t end,
                        BackwardScratch<T>& scratch) {
  const int top = w.top();
  if (top == 1) return slice_products(w, group, scratch.products.data());
  const int64_t count = scratch.rows.point(w, top, begin, end, scratch.products.data());
  if (w.products[top]) return w.products[top]->data() + begin * w.product_size(top);
  multiply_block(w, top, group, scratch.slice, scratch.rows, count);
  return scratch.products.data();
}

template <typename T>
void backward_chunk(Work<T>& w, const Chunk& chunk, const T* grad_out, int64_t columns) {
  const int top = w.top();
  const Level& level = w.level(top);
  BackwardScratch<T> scratch(w, top);
  T* grad_last = part_sums(w, top, chunk.part);
  std::fill_n(grad_last, w.core_size(top), T(0));
  if (top == 2) std::fill_n(part_sums(w, 0, chunk.part), w.core_size(0), T(0));
  int64_t cleared = chunk.slice_begin;
  for_each_block(w, top, chunk, [&](int64_t g, int64_t begin, int64_t end) {
    const int64_t index = level.group_index[g];
    T* slice = slice_target(w, top, index, scratch);
    const bool first_of_group = begin == level.group_start[g];
    if (first_of_group) {
      clear_slices(w, top - 1, cleared, index);
      cleared = index + 1;
      if (top > 1) transpose_slice(w, top, g, scratch.transposed.data());
      scratch.prepare_slice(w, top, g);
    }
    const T* products = block_products(w, g, begin, end, scratch);
    T* grads = top == 1 && !w.adds() ? slice : scratch.grads.data();
    backward_rows(w, begin, end, products, grad_out, columns, grads, grad_last, scratch);
    if (top > 1) {
      point_gradients(w, top, begin, end, chunk.part, scratch);
      multiply_block_backward(w, top, g, (end - begin) * w.product_rows(top - 1), first_of_group,
                              slice, scratch);
    } else if (w.adds()) {
      w.kernels->axpy(T(1), grads, slice, w.width[1]);
    }
    if (w.updates() && !w.adds() && end == level.group_start[g + 1]) {
      w.update[top - 1].apply(index, slice);
    }
  });
  clear_slices(w, top - 1, cleared, chunk.slice_end);
}

// The same for a level between the first and the top, whose products were kept.
template <typename T>
void backward_inner_chunk(Work<T>& w, int k, const Chunk& chunk) {
  const Level& level = w.level(k);
  BackwardScratch<T> scratch(w, k);
  std::fill_n(part_sums(w, 0, chunk.part), w.core_size(0), T(0));
  int64_t cleared = chunk.slice_begin;
  for_each_block(w, k, chunk, [&](int64_t g, int64_t begin, int64_t end) {
    const int64_t index = level.group_index[g];
    T* slice = slice_target(w, k, index, scratch);
    const bool first_of_group = begin == level.group_start[g];
    if (first_of_group) {
      clear_slices(w, k - 1, cleared, index);
      cleared = index + 1;
      transpose_slice(w, k, g, scratch.transposed.data());
    }
    std::fill_n(scratch.grads.data(), (end - begin) * w.width[k], T(0));
    for (int64_t u = begin; u < end; ++u) {
      for (int32_t c = level.child_start[u]; c < level.child_start[u + 1]; ++c) {
        w.kernels->axpy(T(1), w.grad_parents[k + 1].data() + level.child[c] * w.width[k],
                        scratch.grads.data() + (u - begin) * w.width[k], w.width[k]);
      }
    }
    const int64_t count = scratch.rows.point(w, k, begin, end, scratch.products.data());
    point_gradients(w, k, begin, end, chunk.part, scratch);
    multiply_block_backward(w, k, g, count, first_of_group, slice, scratch);
    if (w.updates() && !w.adds() && end == level.group_start[g + 1]) {
      w.update[k - 1].apply(index, slice);
    }
  });
  clear_slices(w, k - 1, cleared, chunk.slice_end);
}

// Piece `piece` of `pieces` of the last work on a core with sums: adds its parts up and updates.
template <typename T>
void finish_core(Work<T>& w, int core, int64_t parts, int64_t piece, int64_t pieces) {
  const int64_t slice = w.core_slice(core), n = w.table->n[core];
  const int64_t begin = n * piece / pieces, end = n * (piece + 1) / pieces;
  T* sums = w.grad[core] + begin * slice;
  for (int64_t part = 1; part < parts; ++part) {
    w.kernels->axpy(T(1), part_sums(w, core, part) + begin * slice, sums, (end - begin) * slice);
  }
  if (w.adds()) {
    w.kernels->axpy(T(1), sums, w.update[core].core + begin * slice, (end - begin) * slice);
  } else if (w.updates()) {
    for (int64_t i = begin; i < end; ++i) {
      if (w.used[core][i]) w.update[core].apply(i, w.grad[core] + i * slice);
    }
  }
}

// Memory for the parts' sums of a core.
template <typename T>
void prepare_sums(Work<T>& w, int core, int64_t parts) {
  w.sums[core] = Array<T>((parts - !w.updates()) * w.core_size(core));
  if (w.updates()) w.grad[core] = w.sums[core].data() + (parts - 1) * w.core_size(core);
}

// Which slices of the first and the last core the batch uses.
template <typename T>
void mark_used(Work<T>& w) {
  const int top = w.top();
  for (const int core : {0, top}) {
    w.used[core] = Array<uint8_t>(w.table->n[core]);
    std::fill_n(w.used[core].data(), w.table->n[core], uint8_t{0});
  }
  for (int64_t i = 0; i < w.plan->rows; ++i) w.used[top][w.plan->row_last[i]] = 1;
  if (top == 1) return;
  for (int64_t u = 0; u < w.level(2).nodes; ++u) w.used[0][w.level(2).parent[u]] = 1;
}

}  // namespace

template <typename T>
void run_backward(Call<T>& call, const T* grad_out) {
  multiply_inner_levels(call);
  // Each part sums its own gradients of the first and the last core: no more parts than are worth
  // that.
  const auto most_parts = [](const Work<T>& w) {
    const int top = w.top();
    const int64_t first = top == 2 ? w.level(2).nodes / w.table->n[0] : 8 * kMostParts;
    return std::min(kMostParts, std::min(w.plan->rows / w.table->n[top], first) / 8);
  };
  const auto most_inner_parts = [](const Work<T>& w) {
    return std::min(kMostParts, w.level(2).nodes / w.table->n[0] / 8);
  };
  const std::vector<Chunk> chunks = call.chunks(0, most_parts);
  const std::vector<Chunk> inner = call.chunks(1, most_inner_parts);
  for (Work<T>& w : call.work) {
    const int top = w.top();
    w.pack_last_core_backward();
    if (w.grad_weights) w.pack_last_core();
    w.set_factors(w.adds() ? -w.update[0].rule->lr : T(1));
    if (top == 3) w.grad_parents[top] = Array<T>(w.level(top).nodes * w.width[top - 1]);
    prepare_sums(w, top, w.parts[top]);
    if (top > 1) prepare_sums(w, 0, w.parts[2]);
    if (w.updates() && !w.adds()) mark_used(w);
  }
  for_each_task(static_cast<int64_t>(chunks.size()), [&](int64_t c) {
    backward_chunk(call.work[chunks[c].table], chunks[c], grad_out, call.args.columns);
  });
  for_each_task(static_cast<int64_t>(inner.size()),
                [&](int64_t c) { backward_inner_chunk(call.work[inner[c].table], 2, inner[c]); });
  for_each_task(call.args.size() * kFinishPieces, [&](int64_t i) {
    Work<T>& w = call.work[i / kFinishPieces];
    const int top = w.top();
    finish_core(w, top, w.parts[top], i % kFinishPieces, kFinishPieces);
    if (top > 1) finish_core(w, 0, w.parts[2], i % kFinishPieces, kFinishPieces);
  });
}

template void run_backward(Call<float>&, const float*);
template void run_backward(Call<double>&, const double*);

namespace {

std::vector<Tensor> backward(const Lookup& lookup, const KeptLookup* kept, Tensor grad,
                             bool weights_grad) {
  check_grad(grad, lookup.args, lookup.cores[0]);
  const ScalarType compute = lookup.compute();
  grad = contiguous_as(grad, compute);
  const std::vector<Tensor> cores = contiguous(lookup.cores);
  std::vector<Tensor> grads;
  for (const Tensor& core : cores) grads.push_back(empty_on_cpu(core.sizes(), compute));
  if (weights_grad) grads.push_back(torch::stable::new_zeros(grad, {lookup.args.num_indices}));
  THO_DISPATCH_V2(compute, "tt_embedding_bag_backward_cpu", AT_WRAP([&] {
                    auto call = backward_call<scalar_t>(lookup, cores, kept);
                    for (Work<scalar_t>& w : call.work) {
                      for (int k = 0; k < w.table->d; ++k) {
                        w.grad[k] = grads[w.table->first_core + k].mutable_data_ptr<scalar_t>();
                      }
                    }
                    if (weights_grad) call.want_weight_gradients(grads.back());
                    run_backward(call, grad.const_data_ptr<scalar_t>());
                  }),
                  AT_FLOATING_TYPES);
  for (Tensor& result : grads) result = contiguous_as(result, lookup.type());
  return grads;
}

std::vector<Tensor> tt_embedding_bag_backward_cpu(
    Tensor grad, Tensor indices, Tensor offsets, std::vector<Tensor> cores,
    std::vector<int64_t> cores_per_table, std::vector<int64_t> num_embeddings,
    std::vector<int64_t> pooling_modes, std::vector<int64_t> padding_idx,
    std::optional<Tensor> per_sample_weights, bool weights_grad) {
  const Lookup lookup(indices, offsets, std::move(cores), cores_per_table, num_embeddings,
                      pooling_modes, padding_idx, per_sample_weights);
  return backward(lookup, nullptr, grad, weights_grad);
}

std::vector<Tensor> tt_lookup_backward_cpu(Tensor kept, Tensor grad, bool weights_grad) {
  const KeptLookup& forward = kept_lookup(kept);
  return backward(forward.lookup, &forward, grad, weights_grad);
}

}  // namespace
}  // namespace recsys_opt::tt

STABLE_TORCH_LIBRARY_IMPL(recsys_opt, CPU, m) {
  m.impl("tt_embedding_bag_backward", TORCH_BOX(&recsys_opt::tt::tt_embedding_bag_backward_cpu));
  m.impl("tt_lookup_backward", TORCH_BOX(&recsys_opt::tt::tt_lookup_backward_cpu));
}
