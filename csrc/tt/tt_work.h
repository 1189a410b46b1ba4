#pragma once
// What the forward and the backward pass on the CPU share. A call plans each table (tt_plan.h),
// then works on chunks: runs of groups of a level. The chunks depend on the batch alone, each
// result has one writer, and sums run in the plan's order, so results do not depend on the number
// of threads. No vector is stored per lookup (of tables with one id a bag), and no sum is atomic.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <numeric>
#include <optional>
#include <vector>

#include "tt_embedding_bag.h"
#include "tt_kernels.h"
#include "tt_plan.h"
#include "tt_reduced.h"
#include "tt_update.h"

namespace recsys_opt::tt {

// Rows of products in work at once: they and their gradients stay in the L1 cache.
constexpr int64_t kBlockRows = 24;
// Rows of the table in work at once.
constexpr int64_t kTableRows = 64;
// Groups ahead of the one in work whose slice is asked for: at rank 32 memory takes longer to bring
// a slice than one group takes.
constexpr int64_t kGroupsAhead = 2;
// Distinct rows of a chunk, about: 50 us of work at rank 32.
constexpr int64_t kChunkRows = 640;

// Runs task(i) for i in [0, count), each once, on torch's threads.
template <typename Task>
void for_each_task(int64_t count, const Task& task) {
  if (count == 1) return task(0);
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, count, 1, [&](int64_t, int64_t) {
    for (int64_t i = next++; i < count; i = next++) task(i);
  });
}

struct Chunk {
  int64_t table;
  int64_t part;                    // of the table's chunks
  int64_t group_begin, group_end;  // of the level
  int64_t slice_begin, slice_end;  // of the level's core: the groups' and the unused ones between
};

// What the backward pass can take over from the forward pass of the same batch.
template <typename T>
struct Kept {
  std::shared_ptr<const TablePlan> plan;
  // [nodes, width] of level k; the top level's only where that is quicker than to multiply again,
  // and in the form of the kernels that made them.
  std::shared_ptr<Array<T>> products[kMaxCores];
  int64_t products_per_number = 1;  // of the top level's
};

// The used slices of a bf16 or fp16 core, as wide numbers; the rest is not set.
template <typename T>
struct Widened {
  Array<T> core;
  std::vector<char> used;  // [n]
};

// What one table needs besides its plan.
template <typename T>
struct Work : Kept<T> {
  const Table* table = nullptr;
  const Kernels<T>* kernels = nullptr;
  const T* core[kMaxCores] = {};
  Widened<T> widened[kMaxCores];      // bf16 and fp16 cores: what `core` points to
  int64_t width[kMaxCores + 1] = {};  // of a node of level k: q_0 .. q_{k-1} r_k
  const T* weights = nullptr;         // per sample
  // The last core, where the kernels of rows take it packed: forward, and backward.
  Array<T> packed_last, packed_backward;
  Array<T> factors;  // [lookups] of the rows, in the plan's order; empty: 1
  Array<T> rows;     // [distinct ids, dim], where bags have several lookups

  // The backward pass.
  T* grad[kMaxCores] = {};  // of the cores
  T* grad_weights = nullptr;
  CoreUpdate<T> update[kMaxCores];   // of the cores; without rules, gradients go to `grad`
  Array<T> grad_parents[kMaxCores];  // [nodes, width of the parent] of levels 3 and up
  int64_t parts[kMaxCores] = {};     // chunks of level k, each with sums of its own
  Array<T> sums[kMaxCores];          // [parts - 1, core] of the first and the last core: part 0's
                                     // is `grad`; updates: that comes last here
  Array<uint8_t> used[kMaxCores];    // updates: [n] whether the batch uses the slice, of these two

  int top() const { return table->d - 1; }
  int64_t product_rows(int k) const { return width[k] / table->r[k]; }
  // How far products of level k lie apart.
  int64_t product_size(int k) const {
    return k == top() ? width[k] / kernels->products_per_number : width[k];
  }
  int64_t core_slice(int k) const { return table->q[k] * table->r[k] * table->r[k + 1]; }
  int64_t core_size(int k) const { return table->n[k] * core_slice(k); }
  const Level& level(int k) const { return this->plan->levels[k]; }

  bool updates() const { return update[0].rule != nullptr; }
  // A rule that is a sum needs no finished gradient: its terms go to the core one by one.
  bool adds() const { return updates() && update[0].rule->adds(); }

  // The last core for rows_forward, and for rows_backward.
  const T* last_core() const { return packed_last.size() ? packed_last.data() : core[top()]; }
  const T* last_core_backward() const {
    return packed_backward.size() ? packed_backward.data() : core[top()];
  }
  void pack_last_core() { pack_last(kernels->pack_last, packed_last); }
  void pack_last_core_backward() { pack_last(kernels->pack_last_backward, packed_backward); }
  void pack_last(void (*pack)(const T*, int64_t, int64_t, int64_t, T*), Array<T>& packed) {
    if (!pack) return;
    const int k = top();
    packed = Array<T>(core_size(k));
    pack(core[k], table->n[k], table->q[k], table->r[k], packed.data());
  }

  // Whether the batch uses slice i of core k, for all i.
  std::vector<char> used_slices(int k) const {
    const TablePlan& p = *this->plan;
    std::vector<char> result(table->n[k], 0);
    if (k == top()) {
      for (int64_t i = 0; i < p.rows; ++i) result[p.row_last[i]] = 1;
    } else if (k == 0 && top() > 1) {
      for (int64_t u = 0; u < level(2).nodes; ++u) result[level(2).parent[u]] = 1;
    } else {
      for (int64_t g = 0; g < level(k + 1).groups; ++g) result[level(k + 1).group_index[g]] = 1;
    }
    return result;
  }

  // Nodes of a group that are multiplied at once.
  int64_t block_nodes(int k) const {
    return std::max<int64_t>(1, kBlockRows / product_rows(k > 1 ? k - 1 : k));
  }

  // The slice of core k - 1 of a group of level k, and the one that is asked for meanwhile.
  const T* slice(int k, int64_t group) const {
    return core[k - 1] + level(k).group_index[group] * core_slice(k - 1);
  }
  const T* slice_ahead(int k, int64_t group) const {
    const int64_t ahead = group + kGroupsAhead;
    return ahead < level(k).groups ? slice(k, ahead) : nullptr;
  }

  TableRows table_rows(int64_t first_node) const {
    const int k = top();
    return {this->plan->row_node.data(),
            this->plan->row_last.data(),
            first_node,
            product_rows(k),
            table->q[k],
            table->r[k]};
  }

  Lookups<T> lookups(int64_t columns, T factor) const {
    return {this->plan->bag(),
            this->plan->row.data(),
            factors.size() ? factors.data() : nullptr,
            factor,
            this->plan->lookups,
            table->dim,
            columns};
  }

  // The factors of the rows, each times `scale`.
  void set_factors(T scale) {
    const TablePlan& p = *this->plan;
    const bool mean = table->pooling == Pooling::kMean && !p.one_per_bag;
    if (!weights && !mean) return;
    factors = Array<T>(p.lookups);
    for (int64_t c = 0; c < p.lookups; ++c) {
      factors[c] = scale * (weights ? weights[p.begin + p.lookup[c]]
                                    : T(1) / static_cast<T>(p.bag_size[p.bag()[c]]));
    }
  }
};

inline void check_faults(const std::vector<Fault>& faults) {
  for (const Fault& fault : faults) {
    STD_TORCH_CHECK(fault.position < 0, "tt_embedding_bag: ", fault.message);
  }
}

template <typename T>
struct Call {
  const Arguments& args;
  std::vector<Work<T>> work;

  // Plans the batch, or takes over what its forward pass kept.
  Call(const Arguments& arguments, const Tensor& indices, const Tensor& offsets,
       const std::vector<Tensor>& cores, const std::optional<Tensor>& weights,
       const std::vector<Kept<T>>* kept = nullptr)
      : args(arguments), work(arguments.size()) {
    for (int64_t t = 0; t < args.size(); ++t) {
      Work<T>& w = work[t];
      w.table = &args.tables[t];
      int64_t divisor = 0, largest = 1, rows = 1;
      for (int k = 0; k < w.table->d; ++k) {
        const Tensor& core = cores[w.table->first_core + k];
        if (!is_reduced(core.scalar_type())) w.core[k] = core.template const_data_ptr<T>();
        divisor = k > 0 ? std::gcd(divisor, w.table->r[k]) : 0;
        largest = std::max(largest, w.table->r[k]);
        rows *= w.table->q[k];
        w.width[k + 1] = rows * w.table->r[k + 1];
      }
      const int top = w.top();
      w.kernels =
          &kernels<T>(divisor, largest, w.product_rows(top), w.table->q[top], w.table->r[top]);
      if (kept) static_cast<Kept<T>&>(w) = (*kept)[t];
      if (w.products_per_number != w.kernels->products_per_number) w.products[top] = nullptr;
      w.products_per_number = w.kernels->products_per_number;
    }
    if (!kept) make_plans(indices, offsets);
    if (is_reduced(cores[0].scalar_type())) widen_cores(cores);
    if (weights) {
      for (Work<T>& w : work) w.weights = weights->template const_data_ptr<T>();
    }
  }

  // Has run_backward fill grads [indices].
  void want_weight_gradients(Tensor& grads) {
    for (Work<T>& w : work) w.grad_weights = grads.mutable_data_ptr<T>();
  }

  // Chunks of every table's level `k_from_top` below its top, where it is multiplied; at least one
  // of each.
  std::vector<Chunk> chunks(int k_from_top, int64_t most_parts(const Work<T>&)) {
    std::vector<Chunk> all;
    for (int64_t t = 0; t < args.size(); ++t) {
      Work<T>& w = work[t];
      const int k = w.top() - k_from_top;
      if (k < (k_from_top > 0 ? 2 : 1)) continue;
      const Level& level = w.level(k);
      const int64_t cost = k_from_top > 0 ? level.nodes : w.plan->rows;
      const int64_t parts =
          std::max<int64_t>(1, std::min({cost / kChunkRows, most_parts(w), level.groups}));
      w.parts[k] = parts;
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

 private:
  void widen_cores(const std::vector<Tensor>& cores) {
    if constexpr (std::is_same_v<T, float>) {
      for_each_task(args.size() * kMaxCores, [&](int64_t i) {
        Work<T>& w = work[i / kMaxCores];
        const int k = static_cast<int>(i % kMaxCores);
        if (k > w.top()) return;
        const Tensor& core = cores[w.table->first_core + k];
        Widened<T>& wide = w.widened[k];
        wide = {Array<T>(w.core_size(k)), w.used_slices(k)};
        for (int64_t slice = 0; slice < w.table->n[k]; ++slice) {
          if (!wide.used[slice]) continue;
          widen_slice(core, slice, w.core_slice(k), wide.core.data());
        }
        w.core[k] = wide.core.data();
      });
    }
  }

  void make_plans(const Tensor& indices, const Tensor& offsets) {
    std::vector<Fault> faults(args.size());
    for_each_task(args.size(), [&](int64_t t) {
      auto plan = std::make_shared<TablePlan>();
      faults[t] = make_plan(args, t, indices, offsets, *plan);
      work[t].plan = std::move(plan);
    });
    check_faults(faults);
  }
};

// rows[count m] = where the m rows of each of `count` nodes of `all` lie, `width` numbers a node
// and r a row.
template <typename T>
void point_rows(const int32_t* nodes, int64_t count, int64_t m, T* all, int64_t width, int64_t r,
                T** rows) {
  if (m == 2) {  // the usual case, with a loop less
    for (int64_t u = 0; u < count; ++u) {
      rows[2 * u] = all + nodes[u] * width;
      rows[2 * u + 1] = all + nodes[u] * width + r;
    }
    return;
  }
  for (int64_t u = 0; u < count; ++u) {
    for (int64_t i = 0; i < m; ++i) *rows++ = all + nodes[u] * width + i * r;
  }
}

// Where the rows of a block of nodes lie.
template <typename T>
struct BlockRows {
  Array<const T*> parents;  // of the nodes' parents' products
  Array<T*> products;

  BlockRows(const Work<T>& w, int k)
      : parents(k > 1 ? w.block_nodes(k) * w.product_rows(k - 1) : 0), products(parents.size()) {}

  // Nodes [begin, end) of level k >= 2. Returns the number of rows.
  __attribute__((noinline)) int64_t point(const Work<T>& w, int k, int64_t begin, int64_t end,
                                          T* product) {
    const int64_t m = w.product_rows(k - 1), r = w.table->r[k - 1], n = w.product_size(k) / m;
    const int64_t width = w.width[k - 1];
    const T* all = k == 2 ? w.core[0] : w.products[k - 1]->data();
    point_rows(w.level(k).parent.data() + begin, end - begin, m, all, width, r, parents.data());
    T** product_row = products.data();
    for (int64_t i = 0; i < (end - begin) * m; ++i) product_row[i] = product + i * n;
    return (end - begin) * m;
  }
};

// Calls body(group, begin, end) for blocks of nodes of one group.
template <typename T, typename Body>
void for_each_block(const Work<T>& w, int k, const Chunk& chunk, const Body& body) {
  const Level& level = w.level(k);
  const int64_t most = w.block_nodes(k);
  for (int64_t g = chunk.group_begin; g < chunk.group_end; ++g) {
    for (int64_t u = level.group_start[g]; u < level.group_start[g + 1]; u += most) {
      body(g, u, std::min<int64_t>(u + most, level.group_start[g + 1]));
    }
  }
}

// The slice of core k - 1 of a group of level k, as `product` takes it.
template <typename T>
const T* packed_slice(const Work<T>& w, int k, int64_t group, Array<T>& packed) {
  const Table& s = *w.table;
  if (!w.kernels->pack) return w.slice(k, group);
  w.kernels->pack(w.slice(k, group), s.q[k - 1], s.r[k - 1], s.r[k], packed.data());
  return packed.data();
}
template <typename T>
int64_t packed_size(const Work<T>& w, int k) {
  return k > 1 && w.kernels->pack ? w.core_slice(k - 1) : 0;
}

// products[u] = parent product . core slice, for nodes [begin, end) of level k >= 2, which lie in
// one group; their rows were pointed to.
template <typename T>
void multiply_block(const Work<T>& w, int k, int64_t group, const T* slice,
                    const BlockRows<T>& rows, int64_t count) {
  const Table& s = *w.table;
  if (k == w.top()) {
    w.kernels->top_product(rows.parents.data(), count, slice, s.q[k - 1], s.r[k - 1], s.r[k],
                           rows.products.data(), w.slice_ahead(k, group));
  } else {
    w.kernels->product(rows.parents.data(), count, slice, s.q[k - 1], s.r[k - 1], s.r[k],
                       rows.products.data(), false, w.slice_ahead(k, group));
  }
}

// The products of a table of two cores: a slice of the first, packed where the kernels ask for it.
template <typename T>
const T* slice_products(const Work<T>& w, int64_t group, T* packed) {
  const T* slice = w.core[0] + w.level(1).group_index[group] * w.width[1];
  if (!w.kernels->pack_products) return slice;
  w.kernels->pack_products(slice, w.width[1], packed);
  return packed;
}

// The levels between the first and the top (four cores have one): their products are kept.
template <typename T>
void multiply_inner_levels(Call<T>& call) {
  constexpr int k = 2;
  const std::vector<Chunk> chunks = call.chunks(1, [](const Work<T>&) { return int64_t{64}; });
  for (Work<T>& w : call.work) {
    if (w.top() > k && !w.products[k]) {
      w.products[k] = std::make_shared<Array<T>>(w.level(k).nodes * w.width[k]);
    }
  }
  for_each_task(static_cast<int64_t>(chunks.size()), [&](int64_t c) {
    Work<T>& w = call.work[chunks[c].table];
    BlockRows<T> rows(w, k);
    Array<T> packed(packed_size(w, k));
    const T* slice = nullptr;
    for_each_block(w, k, chunks[c], [&](int64_t g, int64_t begin, int64_t end) {
      if (begin == w.level(k).group_start[g]) slice = packed_slice(w, k, g, packed);
      const int64_t count =
          rows.point(w, k, begin, end, w.products[k]->data() + begin * w.width[k]);
      multiply_block(w, k, g, slice, rows, count);
    });
  });
}

// The backward pass of a call, from grad_out [bags, columns]: fills `grad` of the tables without
// update rules, updates the cores of the others.
template <typename T>
void run_backward(Call<T>& call, const T* grad_out);

inline std::vector<Tensor> contiguous(const std::vector<Tensor>& tensors) {
  std::vector<Tensor> result;
  for (const Tensor& tensor : tensors) result.push_back(as_contiguous(tensor));
  return result;
}

}  // namespace recsys_opt::tt
