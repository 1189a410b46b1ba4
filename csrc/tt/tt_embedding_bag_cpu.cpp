// CPU kernels of tt_embedding_bag. A call plans each table (tt_plan.h), then works on chunks: runs
// of groups of the top level. The chunks depend on the batch alone, each result has one writer, and
// sums run in the plan's order, so results do not depend on the number of threads. Nothing is
// stored per lookup, and no sum is atomic.
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/core/Dispatch_v2.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <numeric>

#include "tt_embedding_bag.h"
#include "tt_kernels.h"
#include "tt_plan.h"

namespace recsys_opt::tt {
namespace {

constexpr int64_t kBlockNodes =
    16;  // prefixes in work at once: they and their gradients stay in the L1 cache
constexpr int64_t kChunkRows = 512;    // distinct rows of a chunk, about: 50 us of work at rank 32
constexpr int64_t kAhead = 8;          // lookups ahead of the current one whose rows are fetched
constexpr int64_t kBagsPerTask = 512;  // of pooling

// Runs task(i) for i in [0, count), each once, on torch's threads.
template <typename Task>
void for_each_task(int64_t count, const Task& task) {
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, count, 1, [&](int64_t, int64_t) {
    for (int64_t i = next++; i < count; i = next++) task(i);
  });
}

// Asks for n elements that will be read.
template <typename T>
void fetch(const T* x, int64_t n) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t i = 0; i < n; i += kLine) __builtin_prefetch(x + i);
}

struct Chunk {
  int64_t table;
  int64_t part;                    // of the table's chunks
  int64_t group_begin, group_end;  // of the level
  int64_t slice_begin,
      slice_end;  // of the level's core: the groups' slices and the unused ones between
};

// What one table needs besides its plan.
template <typename T>
struct Work {
  const Table* table = nullptr;
  TablePlan plan;
  const Kernels<T>* kernels = nullptr;
  const T* core[kMaxCores] = {};
  T* grad[kMaxCores] = {};     // of the cores
  const T* weights = nullptr;  // per sample, of this feature
  T* grad_weights = nullptr;
  int64_t width[kMaxCores + 1] = {};  // of a node of level k: q_0 .. q_{k-1} r_k
  Array<T> products[kMaxCores];       // [nodes, width] of the levels between the first and the top
  Array<T> grad_products[kMaxCores];
  Array<T> grad_parents[kMaxCores];  // [nodes, width of the parent]
  Array<T> rows;                     // [distinct ids, dim], where bags have several lookups
  Array<T> grad_last;                // [parts - 1, last core]: the sums of parts 1 and up
  int64_t parts = 1;                 // chunks of the top level

  int top() const { return table->d - 1; }
  int64_t product_rows(int k) const { return width[k] / table->r[k]; }
  int64_t core_slice(int k) const { return table->q[k] * table->r[k] * table->r[k + 1]; }
  int64_t core_size(int k) const { return table->n[k] * core_slice(k); }

  // The product of the parent of node u of level k: [product_rows(k - 1), r_{k-1}].
  const T* parent_product(int k, int64_t u) const {
    const Level& level = plan.levels[k];
    if (k == 2) return core[0] + level.parent_key[u] * width[1];
    return products[k - 1].data() + level.parent[u] * width[k - 1];
  }

  T weight(int64_t c) const {
    if (weights) return weights[plan.lookup[c]];
    if (table->pooling == Pooling::kMean && !plan.one_per_bag) {
      return T(1) / static_cast<T>(plan.bag_size[plan.bag[c]]);
    }
    return T(1);
  }
};

template <typename T>
struct Call {
  const Arguments& args;
  std::vector<Work<T>> work;

  Call(const Arguments& arguments, const Tensor& indices, const Tensor& offsets,
       const std::vector<Tensor>& cores, const std::optional<Tensor>& weights, bool backward)
      : args(arguments), work(arguments.size()) {
    for (int64_t t = 0; t < args.size(); ++t) {
      Work<T>& w = work[t];
      w.table = &args.tables[t];
      int64_t divisor = 0, rows = 1;
      for (int k = 0; k < w.table->d; ++k) {
        w.core[k] = cores[w.table->first_core + k].template const_data_ptr<T>();
        divisor = k > 0 ? std::gcd(divisor, w.table->r[k]) : 0;
        rows *= w.table->q[k];
        w.width[k + 1] = rows * w.table->r[k + 1];
      }
      w.kernels = &kernels<T>(divisor);
    }
    std::vector<Fault> faults(args.size());
    for_each_task(args.size(), [&](int64_t t) {
      faults[t] = make_plan(args, t, indices, offsets, backward ? 1 : 2, work[t].plan);
    });
    for (const Fault& fault : faults) {
      STD_TORCH_CHECK(fault.position < 0, "tt_embedding_bag: ", fault.message);
    }
    if (weights) {
      for (Work<T>& w : work) w.weights = weights->template const_data_ptr<T>() + w.plan.begin;
    }
  }

  // Chunks of level k of every table that has it; at least one of each.
  std::vector<Chunk> chunks(int k_from_top, int64_t most_parts(const Work<T>&)) {
    std::vector<Chunk> all;
    for (int64_t t = 0; t < args.size(); ++t) {
      Work<T>& w = work[t];
      const int k = w.top() - k_from_top;
      if (k < 1 || (k_from_top > 0 && k < 2)) continue;
      const Level& level = w.plan.levels[k];
      const int64_t cost = k_from_top > 0 ? level.nodes : w.plan.rows;
      const int64_t parts =
          std::max<int64_t>(1, std::min({cost / kChunkRows, most_parts(w), level.groups}));
      if (k_from_top == 0) w.parts = parts;
      int64_t group = 0, slice = 0;
      for (int64_t part = 0; part < parts; ++part) {
        const int64_t until = level.nodes * (part + 1) / parts;
        int64_t end = group;
        while (end < level.groups && (part + 1 == parts || level.group_start[end] < until)) ++end;
        const int64_t slice_end = end < level.groups ? level.group_index[end] : w.table->n[k - 1];
        all.push_back({t, part, group, end, slice, slice_end});
        group = end;
        slice = slice_end;
      }
    }
    return all;
  }
};

// products[u] = parent product . core slice, for nodes [begin, end) of level k >= 2, which lie in
// one group.
template <typename T>
void multiply_chain(const Work<T>& w, int k, int64_t group, int64_t begin, int64_t end, T* parents,
                    T* products) {
  const Table& s = *w.table;
  const int64_t parent_width = w.width[k - 1], r = s.r[k - 1], r_next = s.r[k], q = s.q[k - 1];
  for (int64_t u = begin; u < end; ++u) {
    std::memcpy(parents + (u - begin) * parent_width, w.parent_product(k, u),
                parent_width * sizeof(T));
  }
  const T* slice = w.core[k - 1] + w.plan.levels[k].group_index[group] * w.core_slice(k - 1);
  for (int64_t j = 0; j < q; ++j) {
    w.kernels->gemm(parents, r, slice + j * r * r_next, r_next, products + j * r_next, q * r_next,
                    (end - begin) * w.product_rows(k - 1), r, r_next, false);
  }
}

// Calls body(group, begin, end, products) for blocks of nodes; products [end - begin, width]. Level
// 1's lie in core 0.
template <typename T, typename Body>
void for_each_block(const Work<T>& w, int k, const Chunk& chunk, Array<T>& parents,
                    Array<T>& products, const Body& body) {
  const Level& level = w.plan.levels[k];
  for (int64_t g = chunk.group_begin; g < chunk.group_end; ++g) {
    for (int64_t u = level.group_start[g]; u < level.group_start[g + 1]; u += kBlockNodes) {
      const int64_t end = std::min<int64_t>(u + kBlockNodes, level.group_start[g + 1]);
      if (k == 1) {
        if (g + kAhead < chunk.group_end) {
          fetch(w.core[0] + level.group_index[g + kAhead] * w.width[1], w.width[1]);
        }
        body(g, u, end, w.core[0] + level.group_index[g] * w.width[1]);
      } else {
        multiply_chain(w, k, g, u, end, parents.data(), products.data());
        body(g, u, end, products.data());
      }
    }
  }
}

// The levels between the first and the top (four cores have one): their products are kept.
template <typename T>
void multiply_inner_levels(Call<T>& call) {
  constexpr int k = 2;
  for (Work<T>& w : call.work) {
    if (w.top() > k) w.products[k] = Array<T>(w.plan.levels[k].nodes * w.width[k]);
  }
  const std::vector<Chunk> chunks = call.chunks(1, [](const Work<T>&) { return int64_t{64}; });
  for_each_task(static_cast<int64_t>(chunks.size()), [&](int64_t c) {
    Work<T>& w = call.work[chunks[c].table];
    Array<T> parents(kBlockNodes * w.width[k - 1]), products(kBlockNodes * w.width[k]);
    for_each_block(w, k, chunks[c], parents, products,
                   [&](int64_t, int64_t begin, int64_t end, const T* block) {
                     std::memcpy(w.products[k].data() + begin * w.width[k], block,
                                 (end - begin) * w.width[k] * sizeof(T));
                   });
  });
}

template <typename T>
void forward_chunk(Work<T>& w, const Chunk& chunk, T* out, int64_t columns) {
  const Table& s = *w.table;
  const TablePlan& plan = w.plan;
  const int top = w.top();
  const int64_t m = w.product_rows(top), q = s.q[top], r = s.r[top];
  Array<T> parents(kBlockNodes * w.width[top - 1]), products(kBlockNodes * w.width[top]),
      one(s.dim);
  for_each_block(
      w, top, chunk, parents, products, [&](int64_t, int64_t begin, int64_t end, const T* block) {
        for (int64_t u = begin; u < end; ++u) {
          const T* product = block + (u - begin) * w.width[top];
          for (int32_t i = plan.top().child_start[u]; i < plan.top().child_start[u + 1]; ++i) {
            T* row = plan.one_per_bag ? one.data() : w.rows.data() + i * s.dim;
            w.kernels->row_forward(product, w.core[top] + plan.row_last[i] * w.core_slice(top), row,
                                   m, q, r);
            if (!plan.one_per_bag) continue;
            for (int32_t c = plan.row_start[i]; c < plan.row_start[i + 1]; ++c) {
              if (c + kAhead < plan.lookups) {
                __builtin_prefetch(out + plan.bag[c + kAhead] * columns + s.column, 1);
              }
              w.kernels->scale(w.weight(c), row, out + plan.bag[c] * columns + s.column, s.dim);
            }
          }
        }
      });
}

// Sums of the rows of bags [begin, end), for a table whose bags have several lookups.
template <typename T, typename Offset>
void pool_bags(const Work<T>& w, const Offset* offsets, int64_t begin, int64_t end, T* out,
               int64_t columns) {
  const int64_t dim = w.table->dim;
  for (int64_t b = begin; b < end; ++b) {
    T* bag = out + b * columns + w.table->column;
    std::fill_n(bag, dim, T(0));
    for (int64_t i = offsets[b] - w.plan.begin; i < offsets[b + 1] - w.plan.begin; ++i) {
      const int32_t row = w.plan.row_of[i];
      if (row < 0) continue;
      w.kernels->axpy(w.weights ? w.weights[i] : T(1), w.rows.data() + row * dim, bag, dim);
    }
    if (w.table->pooling == Pooling::kMean && w.plan.bag_size[b] > 1) {
      for (int64_t e = 0; e < dim; ++e) bag[e] /= static_cast<T>(w.plan.bag_size[b]);
    }
  }
}

template <typename T>
void forward(const Arguments& args, const Tensor& indices, const Tensor& offsets,
             const std::vector<Tensor>& cores, const std::optional<Tensor>& weights,
             Tensor& output) {
  Call<T> call(args, indices, offsets, cores, weights, false);
  T* out = output.mutable_data_ptr<T>();
  multiply_inner_levels(call);
  for (Work<T>& w : call.work) {
    if (!w.plan.one_per_bag) {
      w.rows = Array<T>(w.plan.rows * w.table->dim);
    } else if (w.plan.lookups < args.batch_size) {
      for (int64_t b = 0; b < args.batch_size; ++b) {
        std::fill_n(out + b * args.columns + w.table->column, w.table->dim, T(0));
      }
    }
  }
  const std::vector<Chunk> chunks = call.chunks(0, [](const Work<T>&) { return int64_t{64}; });
  for_each_task(static_cast<int64_t>(chunks.size()), [&](int64_t c) {
    forward_chunk(call.work[chunks[c].table], chunks[c], out, args.columns);
  });
  const int64_t blocks = (args.batch_size + kBagsPerTask - 1) / kBagsPerTask;
  for_each_task(args.size() * blocks, [&](int64_t i) {
    const int64_t t = i / blocks, begin = i % blocks * kBagsPerTask;
    const int64_t end = std::min(begin + kBagsPerTask, args.batch_size);
    const Work<T>& w = call.work[t];
    if (w.plan.one_per_bag) return;
    if (offsets.scalar_type() == ScalarType::Int) {
      const auto* starts = offsets.const_data_ptr<int32_t>() + t * args.batch_size;
      pool_bags(w, starts, begin, end, out, args.columns);
    } else {
      const auto* starts = offsets.const_data_ptr<int64_t>() + t * args.batch_size;
      pool_bags(w, starts, begin, end, out, args.columns);
    }
  });
}

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

// Core 0's gradient from level 2's, and the last core's from its parts.
template <typename T>
void finish_backward(Work<T>& w) {
  const int top = w.top();
  for (int64_t part = 1; part < w.parts; ++part) {
    w.kernels->axpy(T(1), w.grad_last.data() + (part - 1) * w.core_size(top), w.grad[top],
                    w.core_size(top));
  }
  if (top == 1) return;
  const Level& level = w.plan.levels[1];
  std::fill_n(w.grad[0], w.core_size(0), T(0));
  for (int64_t u = 0; u < level.nodes; ++u) {
    for (int32_t c = level.child_start[u]; c < level.child_start[u + 1]; ++c) {
      w.kernels->axpy(T(1), w.grad_parents[2].data() + level.child[c] * w.width[1],
                      w.grad[0] + level.group_index[u] * w.width[1], w.width[1]);
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
  for_each_task(args.size(), [&](int64_t t) { finish_backward(call.work[t]); });
}

std::vector<Tensor> contiguous(const std::vector<Tensor>& tensors) {
  std::vector<Tensor> result;
  for (const Tensor& tensor : tensors) result.push_back(torch::stable::contiguous(tensor));
  return result;
}

Tensor tt_embedding_bag_cpu(Tensor indices, Tensor offsets, std::vector<Tensor> cores,
                            std::vector<int64_t> cores_per_table,
                            std::vector<int64_t> num_embeddings, std::vector<int64_t> pooling_modes,
                            std::vector<int64_t> padding_idx,
                            std::optional<Tensor> per_sample_weights) {
  const Arguments args = check_arguments(indices, offsets, cores, cores_per_table, num_embeddings,
                                         pooling_modes, padding_idx, per_sample_weights);
  indices = torch::stable::contiguous(indices);
  offsets = torch::stable::contiguous(offsets);
  cores = contiguous(cores);
  if (per_sample_weights) per_sample_weights = torch::stable::contiguous(*per_sample_weights);
  Tensor out = torch::stable::new_empty(cores[0], {args.batch_size, args.columns});
  THO_DISPATCH_V2(cores[0].scalar_type(), "tt_embedding_bag_cpu", AT_WRAP([&] {
                    forward<scalar_t>(args, indices, offsets, cores, per_sample_weights, out);
                  }),
                  AT_FLOATING_TYPES);
  return out;
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

int64_t tt_limit_isa(int64_t widest) {
  STD_TORCH_CHECK(widest >= 0 && widest <= 2, "tt_limit_isa: ", widest,
                  " is not 0 (portable), 1 (AVX2) or 2 (AVX-512)");
  return static_cast<int64_t>(limit_isa(static_cast<Isa>(widest)));
}

}  // namespace
}  // namespace recsys_opt::tt

STABLE_TORCH_LIBRARY_IMPL(recsys_opt, CompositeExplicitAutograd, m) {
  m.impl("tt_limit_isa", TORCH_BOX(&recsys_opt::tt::tt_limit_isa));
}

STABLE_TORCH_LIBRARY_IMPL(recsys_opt, CPU, m) {
  m.impl("tt_embedding_bag", TORCH_BOX(&recsys_opt::tt::tt_embedding_bag_cpu));
  m.impl("tt_embedding_bag_backward", TORCH_BOX(&recsys_opt::tt::tt_embedding_bag_backward_cpu));
}
