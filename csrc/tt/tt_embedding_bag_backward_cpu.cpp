// The backward pass of tt_embedding_bag on the CPU: it plans the batch and computes the products
// again.
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

  BackwardScratch(const Work<T>& w, int k)
      : parents(kBlockNodes * w.width[k - 1]),
        products(kBlockNodes * w.width[k]),
        grad_products(kBlockNodes * w.width[k]),
        transposed(k >= 2 ? w.core_slice(k - 1) : 0),
        row(w.table->dim),
        grad_row(w.table->dim) {}
};

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
  // Slices of core d - 2 that this batch does not use are 0; of two cores, that is core 0, and its
  // groups' too.
  const int64_t slice_size = w.core_slice(top - 1);
  std::fill_n(w.grad[top - 1] + chunk.slice_begin * slice_size,
              (chunk.slice_end - chunk.slice_begin) * slice_size, T(0));
  int64_t transposed = -1;
  for_each_block(w, top, chunk, scratch.parents, scratch.products,
                 [&](int64_t g, int64_t begin, int64_t end, const T* block) {
                   const int64_t index = level.group_index[g];
                   T* grad_slice = w.grad[top - 1] + index * slice_size;
                   T* grads = top == 1 ? grad_slice : scratch.grad_products.data();
                   if (top > 1) std::fill_n(grads, (end - begin) * w.width[top], T(0));
                   for (int64_t u = begin; u < end; ++u) {
                     backward_rows(w, u, block + (u - begin) * w.width[top], grad_out, columns,
                                   grads + (u - begin) * w.width[top], grad_last, scratch);
                   }
                   if (top == 1) return;
                   if (transposed != g) transpose_slice(w, top, index, scratch.transposed.data());
                   transposed = g;
                   multiply_chain_backward(w, top, scratch.transposed.data(), end - begin,
                                           scratch.parents.data(), grads, grad_slice,
                                           w.grad_parents[top].data() + begin * w.width[top - 1]);
                 });
}

// The same for a level between the first and the top, whose products were kept.
template <typename T>
void backward_inner_chunk(Work<T>& w, int k, const Chunk& chunk) {
  const Level& level = w.plan.levels[k];
  BackwardScratch<T> scratch(w, k);
  const int64_t slice_size = w.core_slice(k - 1);
  std::fill_n(w.grad[k - 1] + chunk.slice_begin * slice_size,
              (chunk.slice_end - chunk.slice_begin) * slice_size, T(0));
  for (int64_t g = chunk.group_begin; g < chunk.group_end; ++g) {
    const int64_t index = level.group_index[g];
    transpose_slice(w, k, index, scratch.transposed.data());
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
                              scratch.grad_products.data(), w.grad[k - 1] + index * slice_size,
                              w.grad_parents[k].data() + u * w.width[k - 1]);
    }
  }
}

// Piece `piece` of `pieces` of the last work on a table: core 0's gradient from level 2's, the last
// core's from its parts.
template <typename T>
void finish_backward(Work<T>& w, int64_t piece, int64_t pieces) {
  const int top = w.top();
  const int64_t size = w.core_size(top);
  const int64_t begin = size * piece / pieces, end = size * (piece + 1) / pieces;
  for (int64_t part = 1; part < w.parts; ++part) {
    w.kernels->axpy(T(1), w.grad_last.data() + (part - 1) * size + begin, w.grad[top] + begin,
                    end - begin);
  }
  if (top == 1) return;
  const Level& level = w.plan.levels[1];
  const int64_t first = w.table->n[0] * piece / pieces, last = w.table->n[0] * (piece + 1) / pieces;
  std::fill_n(w.grad[0] + first * w.width[1], (last - first) * w.width[1], T(0));
  const int64_t* indices = level.group_index.data();
  for (int64_t u = std::lower_bound(indices, indices + level.nodes, first) - indices;
       u < level.nodes && indices[u] < last; ++u) {
    for (int32_t c = level.child_start[u]; c < level.child_start[u + 1]; ++c) {
      if (c + kAhead < level.child.size()) {
        fetch(w.grad_parents[2].data() + level.child[c + kAhead] * w.width[1], w.width[1]);
      }
      w.kernels->axpy(T(1), w.grad_parents[2].data() + level.child[c] * w.width[1],
                      w.grad[0] + indices[u] * w.width[1], w.width[1]);
    }
  }
}

template <typename T>
void backward(const Arguments& args, const Tensor& grad, const Tensor& indices,
              const Tensor& offsets, const std::vector<Tensor>& cores,
              const std::optional<Tensor>& weights, std::vector<Tensor>& grads, bool weights_grad) {
  Call<T> call(args, indices, offsets, cores, weights, true);
  const T* grad_out = grad.const_data_ptr<T>();
  multiply_inner_levels(call);
  // Each part of the top level sums its own gradient of the last core: no more parts than are worth
  // that.
  const std::vector<Chunk> chunks = call.chunks(
      0, [](const Work<T>& w) { return std::min<int64_t>(16, w.plan.rows / w.table->n[w.top()]); });
  const std::vector<Chunk> inner = call.chunks(1, [](const Work<T>&) { return int64_t{64}; });
  for (Work<T>& w : call.work) {
    const int top = w.top();
    for (int k = 0; k < w.table->d; ++k) {
      w.grad[k] = grads[w.table->first_core + k].template mutable_data_ptr<T>();
    }
    if (weights_grad) w.grad_weights = grads.back().mutable_data_ptr<T>() + w.plan.begin;
    for (int k = 2; k <= top; ++k) {
      w.grad_parents[k] = Array<T>(w.plan.levels[k].nodes * w.width[k - 1]);
    }
    w.grad_last = Array<T>((w.parts - 1) * w.core_size(top));
  }
  for_each_task(static_cast<int64_t>(chunks.size()), [&](int64_t c) {
    backward_chunk(call.work[chunks[c].table], chunks[c], grad_out, args.columns);
  });
  for_each_task(static_cast<int64_t>(inner.size()),
                [&](int64_t c) { backward_inner_chunk(call.work[inner[c].table], 2, inner[c]); });
  for_each_task(args.size() * kFinishPieces, [&](int64_t i) {
    finish_backward(call.work[i / kFinishPieces], i % kFinishPieces, kFinishPieces);
  });
}

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
                    backward<scalar_t>(args, grad, indices, offsets, cores, per_sample_weights,
                                       grads, weights_grad);
                  }),
                  AT_FLOATING_TYPES);
  return grads;
}

}  // namespace
}  // namespace recsys_opt::tt

STABLE_TORCH_LIBRARY_IMPL(recsys_opt, CPU, m) {
  m.impl("tt_embedding_bag_backward", TORCH_BOX(&recsys_opt::tt::tt_embedding_bag_backward_cpu));
}
