#pragma once
// What the forward and the backward pass on the CPU share. A call plans each table (tt_plan.h),
// then works on chunks: runs of groups of a level. The chunks depend on the batch alone, each
// result has one writer, and sums run in the plan's order, so results do not depend on the number
// of threads. Nothing is stored per lookup, and no sum is atomic.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <numeric>
#include <optional>
#include <vector>

#include "tt_embedding_bag.h"
#include "tt_kernels.h"
#include "tt_plan.h"
#include "tt_update.h"

namespace recsys_opt::tt {

// Prefixes in work at once: they and their gradients stay in the L1 cache.
constexpr int64_t kBlockNodes = 16;
// Distinct rows of a chunk, about: 50 us of work at rank 32.
constexpr int64_t kChunkRows = 512;
// Lookups ahead of the current one whose rows are fetched.
constexpr int64_t kAhead = 8;

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
  int64_t slice_begin, slice_end;  // of the level's core: the groups' and the unused ones between
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
  Array<T> grad_parents[kMaxCores];   // [nodes, width of the parent]
  Array<T> rows;                      // [distinct ids, dim], where bags have several lookups
  Array<T> grad_last;  // [parts - 1, last core]: the sums of parts 1 and up; updates: then part 0's
  CoreUpdate<T> update[kMaxCores];  // of the cores; without rules, gradients go to `grad`
  Array<uint8_t> last_used;  // updates: [n of the last core] whether the batch uses the slice
  int64_t parts = 1;         // chunks of the top level

  int top() const { return table->d - 1; }
  int64_t product_rows(int k) const { return width[k] / table->r[k]; }
  int64_t core_slice(int k) const { return table->q[k] * table->r[k] * table->r[k + 1]; }
  int64_t core_size(int k) const { return table->n[k] * core_slice(k); }

  bool updates() const { return update[0].rule != nullptr; }

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

  // Has run_backward fill grads [indices].
  void want_weight_gradients(Tensor& grads) {
    for (Work<T>& w : work) w.grad_weights = grads.mutable_data_ptr<T>() + w.plan.begin;
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

// The backward pass of a call that was made for it, from grad_out [bags, columns]: fills `grad` of
// the tables without update rules, updates the cores of the others.
template <typename T>
void run_backward(Call<T>& call, const T* grad_out);

inline std::vector<Tensor> contiguous(const std::vector<Tensor>& tensors) {
  std::vector<Tensor> result;
  for (const Tensor& tensor : tensors) result.push_back(torch::stable::contiguous(tensor));
  return result;
}

}  // namespace recsys_opt::tt
