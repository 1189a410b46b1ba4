// The backward pass of tt_embedding_bag on the CPU: it plans the batch and computes the products
// again. Slices of cores between the first and the last get their whole gradient within one chunk,
// the first and the last core theirs in the last work on a table; there updates are applied.
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/core/Dispatch_v2.h>

#include "tt_work.h"

namespace recsys_opt::tt {
namespace {

constexpr int64_t kFinishPieces = 4;  // of a table's last work

// From the gradients of the products of nodes [begin, end) of level k >= 2, one group: adds to the
// gradient of the group's slice of core k - 1, and writes grad_parents [end - begin, width of the
// parent].
template <typename T>
void multiply_chain_backward(const Work<T>& w, int k, const T* slice_transposed, int64_t nodes,
                             const T* parents, const T* grad_products, T* grad_slice,
                             T* grad_parents) {
  const Table& s = *w.table;
  const int64_t r = s.r[k - 1], r_next = s.r[k], q = s.q[k - 1];
  const int64_t m = nodes * w.product_rows(k - 1);
  for (int64_t j = 0; j < q; ++j) {
    w.kernels->gemm_transposed(parents, r, grad_products + j * r_next, q * r_next,
                               grad_slice + j * r * r_next, r_next, r, m, r_next, true);
  }
  w.kernels->gemm(grad_products, q * r_next, slice_transposed, r, grad_parents, r, m, q * r_next, r,
                  false);
}

template <typename T>
struct BackwardScratch {
  Array<T> parents, products, grad_products, transposed, row, grad_row;
  Array<T> grad_slice;  // of the group in work, for updates

  BackwardScratch(const Work<T>& w, int k)
      : parents(kBlockNodes * w.width[k - 1]),
        products(kBlockNodes * w.width[k]),
        grad_products(kBlockNodes * w.width[k]),
        transposed(k >= 2 ? w.core_slice(k - 1) : 0),
        row(w.table->dim),
        grad_row(w.table->dim),
        grad_slice(w.updates() ? w.core_slice(k - 1) : 0) {}
};

// Clears the gradient of a chunk's slices of core k - 1, those that the batch does not use among
// them.
template <typename T>
void clear_slices(Work<T>& w, int k, const Chunk& chunk) {
  if (w.updates()) return;
  const int64_t size = w.core_slice(k - 1);
  std::fill_n(w.grad[k - 1] + chunk.slice_begin * size,
              (chunk.slice_end - chunk.slice_begin) * size, T(0));
}

// Where the gradient of slice `index` of core k - 1 is summed.
template <typename T>
T* begin_slice(Work<T>& w, int k, int64_t index, BackwardScratch<T>& scratch) {
  if (!w.updates()) return w.grad[k - 1] + index * w.core_slice(k - 1);
  std::fill_n(scratch.grad_slice.data(), w.core_slice(k - 1), T(0));
  return scratch.grad_slice.data();
}

// The transposes of the q matrices of a slice, below each other: [q r', r].
template <typename T>
void transpose_slice(const Work<T>& w, int k, int64_t index, T* out) {
  const int64_t r = w.table->r[k - 1], r_next = w.table->r[k];
  const T* slice = w.core[k - 1] + index * w.core_slice(k - 1);
  for (int64_t j = 0; j < w.table->q[k - 1]; ++j) {
    w.kernels->transpose(slice + j * r * r_next, r, r_next, out + j * r * r_next);
  }
}

// Adds the gradients of node u's rows to grad_product and to the last core's gradient.
template <typename T>
void backward_rows(Work<T>& w, int64_t u, const T* product, const T* grad_out, int64_t columns,
                   T* grad_product, T* grad_last, BackwardScratch<T>& scratch) {
  const Table& s = *w.table;
  const TablePlan& plan = w.plan;
  const int top = w.top();
  const int64_t m = w.product_rows(top), q = s.q[top], r = s.r[top];
  for (int32_t i = plan.top().child_start[u]; i < plan.top().child_start[u + 1]; ++i) {
    const int64_t slice = plan.row_last[i] * w.core_slice(top);
    const T* core = w.core[top] + slice;
    if (plan.row_start[i] + kAhead < plan.lookups) {
      __builtin_prefetch(grad_out + plan.bag[plan.row_start[i] + kAhead] * columns + s.column);
    }
    const T* grad_row = grad_out + plan.bag[plan.row_start[i]] * columns + s.column;
    if (plan.row_start[i + 1] - plan.row_start[i] > 1 || w.weight(plan.row_start[i]) != T(1)) {
      std::fill_n(scratch.grad_row.data(), s.dim, T(0));
      for (int32_t c = plan.row_start[i]; c < plan.row_start[i + 1]; ++c) {
        w.kernels->axpy(w.weight(c), grad_out + plan.bag[c] * columns + s.column,
                        scratch.grad_row.data(), s.dim);
      }
      grad_row = scratch.grad_row.data();
    }
    w.kernels->row_backward(product, core, grad_row, grad_product, grad_last + slice, m, q, r);
    if (!w.grad_weights) continue;
    w.kernels->row_forward(product, core, scratch.row.data(), m, q, r);
    for (int32_t c = plan.row_start[i]; c < plan.row_start[i + 1]; ++c) {
      w.grad_weights[plan.lookup[c]] =
          w.kernels->dot(grad_out + plan.bag[c] * columns + s.column, scratch.row.data(), s.dim);
    }
  }
}

template <typename T>
void backward_chunk(Work<T>& w, const Chunk& chunk, const T* grad_out, int64_t columns) {
  const int top = w.top();
  const Level& level = w.plan.top();
  BackwardScratch<T> scratch(w, top);
  T* grad_last = w.grad[top];
  if (chunk.part > 0) grad_last = w.grad_last.data() + (chunk.part - 1) * w.core_size(top);
  std::fill_n(grad_last, w.core_size(top), T(0));
  clear_slices(w, top, chunk);
  int64_t current = -1;
  T* grad_slice = nullptr;
  for_each_block(w, top, chunk, scratch.parents, scratch.products,
                 [&](int64_t g, int64_t begin, int64_t end, const T* block) {
                   const int64_t index = level.group_index[g];
                   if (current != g) {
                     if (top > 1) transpose_slice(w, top, index, scratch.transposed.data());
                     grad_slice = begin_slice(w, top, index, scratch);
                   }
                   current = g;
                   T* grads = top == 1 ? grad_slice : scratch.grad_products.data();
                   if (top > 1) std::fill_n(grads, (end - begin) * w.width[top], T(0));
                   for (int64_t u = begin; u < end; ++u) {
                     backward_rows(w, u, block + (u - begin) * w.width[top], grad_out, columns,
                                   grads + (u - begin) * w.width[top], grad_last, scratch);
                   }
                   if (top > 1) {
                     multiply_chain_backward(w, top, scratch.transposed.data(), end - begin,
                                             scratch.parents.data(), grads, grad_slice,
                                             w.grad_parents[top].data() + begin * w.width[top - 1]);
                   }
                   if (w.updates() && end == level.group_start[g + 1]) {
                     w.update[top - 1].apply(index, grad_slice);
                   }
                 });
}

// The same for a level between the first and the top, whose products were kept.
template <typename T>
void backward_inner_chunk(Work<T>& w, int k, const Chunk& chunk) {
  const Level& level = w.plan.levels[k];
  BackwardScratch<T> scratch(w, k);
  clear_slices(w, k, chunk);
  for (int64_t g = chunk.group_begin; g < chunk.group_end; ++g) {
    const int64_t index = level.group_index[g];
    transpose_slice(w, k, index, scratch.transposed.data());
    T* grad_slice = begin_slice(w, k, index, scratch);
    for (int64_t u = level.group_start[g]; u < level.group_start[g + 1]; u += kBlockNodes) {
      const int64_t end = std::min<int64_t>(u + kBlockNodes, level.group_start[g + 1]);
      std::fill_n(scratch.grad_products.data(), (end - u) * w.width[k], T(0));
      for (int64_t v = u; v < end; ++v) {
        std::memcpy(scratch.parents.data() + (v - u) * w.width[k - 1], w.parent_product(k, v),
                    w.width[k - 1] * sizeof(T));
        for (int32_t c = level.child_start[v]; c < level.child_start[v + 1]; ++c) {
          w.kernels->axpy(T(1), w.grad_parents[k + 1].data() + level.child[c] * w.width[k],
                          scratch.grad_products.data() + (v - u) * w.width[k], w.width[k]);
        }
      }
      multiply_chain_backward(w, k, scratch.transposed.data(), end - u, scratch.parents.data(),
                              scratch.grad_products.data(), grad_slice,
                              w.grad_parents[k].data() + u * w.width[k - 1]);
    }
    if (w.updates()) w.update[k - 1].apply(index, grad_slice);
  }
}

// Piece `piece` of `pieces` of the last work on a table: core 0's gradient from level 2's, the last
// core's from its parts.
template <typename T>
void finish_backward(Work<T>& w, int64_t piece, int64_t pieces) {
  const int top = w.top();
  const int64_t size = w.core_size(top), slice_size = w.core_slice(top);
  const int64_t begin = w.table->n[top] * piece / pieces;
  const int64_t end = w.table->n[top] * (piece + 1) / pieces;
  for (int64_t part = 1; part < w.parts; ++part) {
    w.kernels->axpy(T(1), w.grad_last.data() + (part - 1) * size + begin * slice_size,
                    w.grad[top] + begin * slice_size, (end - begin) * slice_size);
  }
  for (int64_t i = begin; w.updates() && i < end; ++i) {
    if (w.last_used[i]) w.update[top].apply(i, w.grad[top] + i * slice_size);
  }
  if (top == 1) return;
  const Level& level = w.plan.levels[1];
  const int64_t first = w.table->n[0] * piece / pieces, last = w.table->n[0] * (piece + 1) / pieces;
  BackwardScratch<T> scratch(w, 1);
  clear_slices(w, 1, {0, 0, 0, 0, first, last});
  const int64_t* indices = level.group_index.data();
  for (int64_t u = std::lower_bound(indices, indices + level.nodes, first) - indices;
       u < level.nodes && indices[u] < last; ++u) {
    T* grad_slice = begin_slice(w, 1, indices[u], scratch);
    for (int32_t c = level.child_start[u]; c < level.child_start[u + 1]; ++c) {
      if (c + kAhead < level.child.size()) {
        fetch(w.grad_parents[2].data() + level.child[c + kAhead] * w.width[1], w.width[1]);
      }
      w.kernels->axpy(T(1), w.grad_parents[2].data() + level.child[c] * w.width[1], grad_slice,
                      w.width[1]);
    }
    if (w.updates()) w.update[0].apply(indices[u], grad_slice);
  }
}

}  // namespace

template <typename T>
void run_backward(Call<T>& call, const T* grad_out) {
  multiply_inner_levels(call);
  // Each part of the top level sums its own gradient of the last core: no more parts than are worth
  // that.
  const std::vector<Chunk> chunks = call.chunks(
      0, [](const Work<T>& w) { return std::min<int64_t>(16, w.plan.rows / w.table->n[w.top()]); });
  const std::vector<Chunk> inner = call.chunks(1, [](const Work<T>&) { return int64_t{64}; });
  for (Work<T>& w : call.work) {
    const int top = w.top();
    for (int k = 2; k <= top; ++k) {
      w.grad_parents[k] = Array<T>(w.plan.levels[k].nodes * w.width[k - 1]);
    }
    w.grad_last = Array<T>((w.parts - !w.updates()) * w.core_size(top));
    if (!w.updates()) continue;
    w.grad[top] = w.grad_last.data() + (w.parts - 1) * w.core_size(top);
    w.last_used = Array<uint8_t>(w.table->n[top]);
    std::fill_n(w.last_used.data(), w.table->n[top], uint8_t{0});
    for (int64_t i = 0; i < w.plan.rows; ++i) w.last_used[w.plan.row_last[i]] = 1;
  }
  for_each_task(static_cast<int64_t>(chunks.size()), [&](int64_t c) {
    backward_chunk(call.work[chunks[c].table], chunks[c], grad_out, call.args.columns);
  });
  for_each_task(static_cast<int64_t>(inner.size()),
                [&](int64_t c) { backward_inner_chunk(call.work[inner[c].table], 2, inner[c]); });
  for_each_task(call.args.size() * kFinishPieces, [&](int64_t i) {
    finish_backward(call.work[i / kFinishPieces], i % kFinishPieces, kFinishPieces);
  });
}

template void run_backward(Call<float>&, const float*);
template void run_backward(Call<double>&, const double*);

namespace {

std::vector<Tensor> tt_embedding_bag_backward_cpu(
    Tensor grad, Tensor indices, Tensor offsets, std::vector<Tensor> cores,
    std::vector<int64_t> cores_per_table, std::vector<int64_t> num_embeddings,
    std::vector<int64_t> pooling_modes, std::vector<int64_t> padding_idx,
    std::optional<Tensor> per_sample_weights, bool weights_grad) {
  const Arguments args = check_arguments(indices, offsets, cores, cores_per_table, num_embeddings,
                                         pooling_modes, padding_idx, per_sample_weights);
  check_grad(grad, args, cores[0]);
  grad = torch::stable::contiguous(grad);
  indices = torch::stable::contiguous(indices);
  offsets = torch::stable::contiguous(offsets);
  cores = contiguous(cores);
  if (per_sample_weights) per_sample_weights = torch::stable::contiguous(*per_sample_weights);
  std::vector<Tensor> grads;
  for (const Tensor& core : cores) grads.push_back(torch::stable::empty_like(core));
  if (weights_grad) grads.push_back(torch::stable::new_zeros(grad, {args.num_indices}));
  THO_DISPATCH_V2(cores[0].scalar_type(), "tt_embedding_bag_backward_cpu", AT_WRAP([&] {
                    Call<scalar_t> call(args, indices, offsets, cores, per_sample_weights, true);
                    for (Work<scalar_t>& w : call.work) {
                      for (int k = 0; k < w.table->d; ++k) {
                        w.grad[k] = grads[w.table->first_core + k].mutable_data_ptr<scalar_t>();
                      }
                    }
                    if (weights_grad) call.want_weight_gradients(grads.back());
                    run_backward(call, grad.const_data_ptr<scalar_t>());
                  }),
                  AT_FLOATING_TYPES);
  return grads;
}

}  // namespace
}  // namespace recsys_opt::tt

STABLE_TORCH_LIBRARY_IMPL(recsys_opt, CPU, m) {
  m.impl("tt_embedding_bag_backward", TORCH_BOX(&recsys_opt::tt::tt_embedding_bag_backward_cpu));
}
