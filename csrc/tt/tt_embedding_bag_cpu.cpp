// The forward pass of tt_embedding_bag on the CPU.
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/core/Dispatch_v2.h>

#include <tuple>

#include "tt_lookup.h"

namespace recsys_opt::tt {
namespace {

constexpr int64_t kBagsPerTask = 512;  // of pooling

template <typename T>
void forward_chunk(Work<T>& w, const Chunk& chunk, T* out, int64_t columns) {
  const TablePlan& plan = *w.plan;
  const int top = w.top();
  const Level& level = w.level(top);
  const int64_t width = w.product_size(top), dim = w.table->dim;
  const Lookups<T> lookups = w.lookups(columns, T(1));
  BlockRows<T> rows(w, top);
  Array<T> products(w.block_nodes(top) * width), some(kTableRows * dim);
  Array<T> packed(packed_size(w, top));
  const T* slice = nullptr;
  for_each_block(w, top, chunk, [&](int64_t g, int64_t begin, int64_t end) {
    T* block = w.products[top] ? w.products[top]->data() + begin * width : products.data();
    if (top > 1) {
      if (begin == level.group_start[g]) slice = packed_slice(w, top, g, packed);
      multiply_block(w, top, g, slice, rows, rows.point(w, top, begin, end, block));
    }
    const T* found = top > 1 ? block : slice_products(w, g, block);
    const TableRows table_rows = w.table_rows(begin);
    const int64_t until = level.child_start[end];
    for (int64_t i = level.child_start[begin]; i < until; i += kTableRows) {
      const int64_t next = std::min(i + kTableRows, until);
      T* values = plan.one_per_bag ? some.data() : w.rows.data() + i * dim;
      w.kernels->rows_forward(table_rows, i, next, found, w.last_core(), values);
      if (!plan.one_per_bag) continue;
      w.kernels->scatter(lookups, plan.row_start[i], plan.row_start[next], i, values,
                         out + w.table->column);
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
    for (int64_t i = offsets[b] - w.plan->begin; i < offsets[b + 1] - w.plan->begin; ++i) {
      const int32_t row = w.plan->row_of[i];
      if (row < 0) continue;
      w.kernels->axpy(w.weights ? w.weights[w.plan->begin + i] : T(1), w.rows.data() + row * dim,
                      bag, dim);
    }
    if (w.table->pooling == Pooling::kMean && w.plan->bag_size[b] > 1) {
      for (int64_t e = 0; e < dim; ++e) bag[e] /= static_cast<T>(w.plan->bag_size[b]);
    }
  }
}

// Fills `output`. kept: receives what the backward pass can take over.
template <typename T>
void forward(const Lookup& lookup, Tensor& output, std::optional<Tensor>* kept) {
  const Arguments& args = lookup.args;
  const Tensor& offsets = lookup.offsets;
  const std::vector<Tensor> cores = contiguous(lookup.cores);
  Call<T> call(args, lookup.indices, offsets, cores, lookup.weights);
  T* out = output.mutable_data_ptr<T>();
  multiply_inner_levels(call);
  for (Work<T>& w : call.work) {
    w.pack_last_core();
    const int top = w.top();
    const int64_t size = w.level(top).nodes * w.product_size(top);
    if (kept && top > 1 &&
        size * static_cast<int64_t>(sizeof(T)) <= w.kernels->kept_product_bytes) {
      w.products[top] = std::make_shared<Array<T>>(size);
    }
    if (w.plan->one_per_bag) w.set_factors(T(1));
    if (!w.plan->one_per_bag) {
      w.rows = Array<T>(w.plan->rows * w.table->dim);
    } else if (w.plan->lookups < args.batch_size) {
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
  const bool several = std::any_of(call.work.begin(), call.work.end(),
                                   [](const Work<T>& w) { return !w.plan->one_per_bag; });
  for_each_task(several ? args.size() * blocks : 0, [&](int64_t i) {
    const int64_t t = i / blocks, begin = i % blocks * kBagsPerTask;
    const int64_t end = std::min(begin + kBagsPerTask, args.batch_size);
    const Work<T>& w = call.work[t];
    if (w.plan->one_per_bag) return;
    if (offsets.scalar_type() == ScalarType::Int) {
      const auto* starts = offsets.const_data_ptr<int32_t>() + t * args.batch_size;
      pool_bags(w, starts, begin, end, out, args.columns);
    } else {
      const auto* starts = offsets.const_data_ptr<int64_t>() + t * args.batch_size;
      pool_bags(w, starts, begin, end, out, args.columns);
    }
  });
  if (kept) *kept = keep(lookup, call);
}

Tensor look_up(const Lookup& lookup, std::optional<Tensor>* kept) {
  const Arguments& args = lookup.args;
  Tensor out = empty_on_cpu({args.batch_size, args.columns}, lookup.compute());
  THO_DISPATCH_V2(lookup.compute(), "tt_embedding_bag_cpu",
                  AT_WRAP([&] { forward<scalar_t>(lookup, out, kept); }), AT_FLOATING_TYPES);
  return contiguous_as(out, lookup.type());
}

Tensor tt_embedding_bag_cpu(Tensor indices, Tensor offsets, std::vector<Tensor> cores,
                            std::vector<int64_t> cores_per_table,
                            std::vector<int64_t> num_embeddings, std::vector<int64_t> pooling_modes,
                            std::vector<int64_t> padding_idx,
                            std::optional<Tensor> per_sample_weights) {
  const Lookup lookup(indices, offsets, std::move(cores), cores_per_table, num_embeddings,
                      pooling_modes, padding_idx, per_sample_weights);
  return look_up(lookup, nullptr);
}

// A tensor in scratch memory, which the next call takes over: at 65,536 bags the system takes
// longer to give new memory than the bounds to be written.
Tensor scratch_tensor(int64_t size, ScalarType type) {
  const int64_t stride = 1, bytes = size * (type == ScalarType::Int ? 4 : 8);
  return torch::stable::from_blob(take_memory(bytes), {&size, 1}, {&stride, 1},
                                  torch::stable::Device(torch::headeronly::DeviceType::CPU, -1),
                                  type, [bytes](void* memory) { give_memory(memory, bytes); });
}

// The bounds of the bags: offsets with the end of the last bag; without offsets, those of the rows
// of a 2-D input, or of bags of one id each.
Tensor bounds_of(const Tensor& indices, const std::optional<Tensor>& offsets,
                 bool include_last_offset) {
  if (!offsets) {
    const int64_t bags = indices.size(0), length = indices.dim() == 2 ? indices.size(1) : 1;
    STD_TORCH_CHECK(indices.numel() < std::numeric_limits<int32_t>::max(),
                    "tt_lookup: ", indices.numel(), " indices; at most 2^31 - 2 in one call");
    Tensor bounds = scratch_tensor(bags + 1, ScalarType::Int);
    auto* data = bounds.mutable_data_ptr<int32_t>();
    for (int64_t b = 0; b <= bags; ++b) data[b] = static_cast<int32_t>(b * length);
    return bounds;
  }
  if (include_last_offset) return *offsets;
  STD_TORCH_CHECK(offsets->dim() == 1 && is_index_type(offsets->scalar_type()),
                  "tt_lookup: offsets must be 1-D int32 or int64, got ", offsets->dim(), "-D");
  const Tensor starts = as_contiguous(*offsets);
  const int64_t bags = starts.numel(), end = indices.numel();
  Tensor bounds = scratch_tensor(bags + 1, starts.scalar_type());
  THO_DISPATCH_V2(starts.scalar_type(), "tt_lookup_cpu", AT_WRAP([&] {
                    auto* data = bounds.mutable_data_ptr<scalar_t>();
                    std::copy_n(starts.const_data_ptr<scalar_t>(), bags, data);
                    data[bags] = static_cast<scalar_t>(end);
                  }),
                  ScalarType::Int, ScalarType::Long);
  return bounds;
}

// The ids, or their weights, in one dimension.
Tensor flat(const Tensor& tensor) {
  return tensor.dim() == 2 ? torch::stable::view(as_contiguous(tensor), {-1}) : tensor;
}

std::tuple<Tensor, std::optional<Tensor>> tt_lookup_cpu(
    Tensor indices, std::optional<Tensor> offsets, bool include_last_offset,
    std::vector<Tensor> cores, std::vector<int64_t> tables,
    std::optional<Tensor> per_sample_weights, bool keep) {
  STD_TORCH_CHECK(tables.size() % 4 == 0, "tt_lookup: ", tables.size(),
                  " numbers of tables; each table has 4");
  const size_t count = tables.size() / 4;
  const auto numbers = [&](size_t which) {
    return std::span<const int64_t>(tables).subspan(which * count, count);
  };
  if (per_sample_weights) per_sample_weights = flat(*per_sample_weights);
  const Lookup lookup(flat(indices), bounds_of(indices, offsets, include_last_offset),
                      std::move(cores), numbers(0), numbers(1), numbers(2), numbers(3),
                      per_sample_weights);
  std::optional<Tensor> kept;
  Tensor out = look_up(lookup, keep ? &kept : nullptr);
  return {out, kept};
}

int64_t tt_limit_isa(int64_t widest) {
  STD_TORCH_CHECK(widest >= 0 && widest <= 2, "tt_limit_isa: ", widest,
                  " is not 0 (portable), 1 (AVX2) or 2 (AVX-512)");
  return static_cast<int64_t>(limit_isa(static_cast<Isa>(widest)));
}

bool tt_allow_bf16(bool allowed) {
  return allow_bf16(allowed);
}

}  // namespace
}  // namespace recsys_opt::tt

STABLE_TORCH_LIBRARY_IMPL(recsys_opt, CompositeExplicitAutograd, m) {
  m.impl("tt_limit_isa", TORCH_BOX(&recsys_opt::tt::tt_limit_isa));
  m.impl("tt_allow_bf16", TORCH_BOX(&recsys_opt::tt::tt_allow_bf16));
}

STABLE_TORCH_LIBRARY_IMPL(recsys_opt, CPU, m) {
  m.impl("tt_embedding_bag", TORCH_BOX(&recsys_opt::tt::tt_embedding_bag_cpu));
  m.impl("tt_lookup", TORCH_BOX(&recsys_opt::tt::tt_lookup_cpu));
}
