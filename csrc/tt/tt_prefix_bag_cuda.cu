// tt_prefix_bag on CUDA: a thread makes one number of the output from the ids of its bag. Numbers
// of a bag lie in neighbouring threads, which read the same rows of both cores.
#include <torch/csrc/stable/library.h>

#include "one_device.h"
#include "tt_bounds_cuda.cuh"
#include "tt_cuda.cuh"
#include "tt_prefix.h"

namespace recsys_opt::tt {
namespace {

constexpr int kThreads = 256;

struct PrefixBatch {
  const PrefixTable* tables;  // [tables]
  int64_t count;
  Numbers indices;
  Numbers offsets;
  int64_t given_offsets;  // 0: one id a bag
  int64_t num_indices;
  int64_t batch_size;
  int64_t columns;
  const void* weights;   // [num_indices] or null
  BoundsRecord* record;  // nullptr: nothing is checked
};

// The bounds of bag c of the call; one outside the indices makes it empty. noting: this thread
// notes what is wrong.
inline __device__ void bag_bounds(const PrefixBatch& batch, int64_t c, bool noting,
                                  int64_t* bounds) {
  bool outside = false;
  for (int k = 0; k < 2; ++k) {
    const int64_t i = c + k;
    if (batch.given_offsets == 0) {
      bounds[k] = i;
      continue;
    }
    int64_t bound = i < batch.given_offsets ? batch.offsets[i] : batch.num_indices;
    if (batch.record && (bound < 0 || bound > batch.num_indices)) {
      if (noting && (k == 1 || c == 0)) {
        note_error(batch.record, {static_cast<int64_t>(BoundsKind::kOffset), i, bound,
                                  batch.num_indices, c / batch.batch_size});
      }
      outside = true;
    }
    if (batch.record && noting && i == 0 && bound != 0) {
      note_error(batch.record, {static_cast<int64_t>(BoundsKind::kFirstOffset), 0, bound, 0, 0});
    }
    bounds[k] = bound;
  }
  if (outside) {
    bounds[1] = bounds[0];
    return;
  }
  if (batch.record && noting && bounds[1] < bounds[0]) {
    note_error(batch.record, {static_cast<int64_t>(BoundsKind::kOffsetOrder), c + 1, bounds[1],
                              bounds[0], c / batch.batch_size});
  }
}

template <typename T>
__global__ __launch_bounds__(kThreads) void prefix_bag_kernel(
    const __grid_constant__ PrefixBatch batch, T* out) {
  using Acc = Accumulator<T>;
  constexpr int kTerms = std::is_same<T, torch::headeronly::BFloat16>::value ? 2 : 1;
  const int64_t numbers = batch.batch_size * batch.columns;
  const int64_t threads = int64_t{gridDim.x} * blockDim.x;
  for (int64_t e = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; e < numbers; e += threads) {
    const int64_t bag = e / batch.columns, column = e % batch.columns;
    int64_t t = 0;
    while (t + 1 < batch.count && batch.tables[t + 1].column <= column) ++t;
    const PrefixTable& table = batch.tables[t];
    const int64_t own = column - table.column, right = table.tiles[1] * table.tile[1];
    const int64_t j[] = {own / right, own % right};
    int64_t first[2];  // of the number's lanes in a row of a core
    for (int k = 0; k < 2; ++k) {
      first[k] = j[k] / table.tile[k] * table.steps * table.tile[k] + j[k] % table.tile[k];
    }
    int64_t bounds[2];
    bag_bounds(batch, t * batch.batch_size + bag, own == 0, bounds);
    Acc sum = 0;
    int64_t counted = 0;
    for (int64_t i = bounds[0]; i < bounds[1]; ++i) {
      const int64_t id = batch.indices[i];
      if (batch.record && (id < 0 || id >= table.num_embeddings)) {
        if (own == 0) {
          note_error(batch.record,
                     {static_cast<int64_t>(BoundsKind::kIndex), i, id, table.num_embeddings, t});
        }
        continue;
      }
      if (id == table.padding_idx) continue;
      ++counted;
      const T* x = static_cast<const T*>(table.prefix) +
                   (id / table.n[1] * table.width[0] + first[0]) * kTerms;
      const T* y = static_cast<const T*>(table.last) +
                   (id % table.n[1] * table.width[1] + first[1]) * kTerms;
      Acc product = 0;
      for (int64_t p = 0; p < table.steps; ++p) {
        for (int k = 0; k < kTerms; ++k) {
          product += static_cast<Acc>(x[p * table.tile[0] * kTerms + k]) *
                     static_cast<Acc>(y[p * table.tile[1] * kTerms + k]);
        }
      }
      const Acc factor =
          batch.weights ? static_cast<Acc>(static_cast<const T*>(batch.weights)[i]) : Acc(1);
      sum += factor * product;
    }
    if (table.pooling == Pooling::kMean && counted > 1) sum /= static_cast<Acc>(counted);
    out[e] = static_cast<T>(sum);
  }
}

// Puts tables where the kernel reads them, so many at once as travel by value.
struct SomeTables {
  static constexpr int kMost = 16;
  PrefixTable table[kMost];
};
__global__ void store_prefix_tables(const __grid_constant__ SomeTables some, int count,
                                    PrefixTable* to) {
  for (int t = threadIdx.x; t < count; t += blockDim.x) to[t] = some.table[t];
}

Numbers numbers_of(const std::optional<Tensor>& tensor) {
  if (!tensor) return {nullptr, false};
  return {tensor->const_data_ptr(), tensor->scalar_type() == ScalarType::Int};
}

template <typename T>
void look_up(const PrefixBatch& batch, Tensor& out, const OnDevice& device) {
  const int64_t numbers = batch.batch_size * batch.columns;
  const int64_t blocks =
      std::min(ceil_divide(numbers, kThreads), int64_t{device_limits().multiprocessors} * 64);
  launch(prefix_bag_kernel<T>, {blocks}, kThreads, 0, device.stream(), batch,
         static_cast<T*>(out.mutable_data_ptr()));
}

Tensor tt_prefix_bag_cuda(Tensor indices, std::optional<Tensor> offsets,
                          std::vector<Tensor> prefixes, std::vector<Tensor> lasts,
                          std::vector<int64_t> num_embeddings, std::vector<int64_t> pooling_modes,
                          std::vector<int64_t> padding_idx,
                          std::optional<Tensor> per_sample_weights, bool include_last_offset) {
  STD_TORCH_CHECK(!prefixes.empty(), "tt_prefix_bag: no tables given");
  OneDevice("tt_prefix_bag", "prefixes[0]", prefixes[0])
      .with("prefixes", prefixes)
      .with("lasts", lasts)
      .with("indices", indices)
      .with("offsets", offsets)
      .with("per_sample_weights", per_sample_weights);
  const PrefixArguments args =
      check_prefix_arguments(indices, offsets, prefixes, lasts, num_embeddings, pooling_modes,
                             padding_idx, per_sample_weights, include_last_offset);
  const OnDevice device(prefixes[0]);
  raise_noted_errors(device.index());
  indices = torch::stable::contiguous(indices);
  if (offsets) offsets = torch::stable::contiguous(*offsets);
  if (per_sample_weights) per_sample_weights = torch::stable::contiguous(*per_sample_weights);
  Tensor out = torch::stable::new_empty(prefixes[0], {args.batch_size, args.columns});
  if (args.batch_size == 0) return out;
  Workspace workspace;
  workspace.take<PrefixTable>(args.size());
  workspace.allocate(prefixes[0]);
  auto* tables = workspace.take<PrefixTable>(args.size());
  for (int64_t t = 0; t < args.size(); t += SomeTables::kMost) {
    SomeTables some{};
    const int64_t count = std::min<int64_t>(SomeTables::kMost, args.size() - t);
    for (int64_t i = 0; i < count; ++i) some.table[i] = args.tables[t + i];
    launch(store_prefix_tables, {1}, kWarp, 0, device.stream(), some, static_cast<int>(count),
           tables + t);
  }
  const bool trusted = cuda_settings().bounds == static_cast<int64_t>(BoundsCheck::kTrust);
  const PrefixBatch batch{tables,
                          args.size(),
                          numbers_of(indices),
                          numbers_of(offsets),
                          args.given_offsets,
                          args.num_indices,
                          args.batch_size,
                          args.columns,
                          per_sample_weights ? per_sample_weights->const_data_ptr() : nullptr,
                          trusted ? nullptr : bounds_record(device.index())};
  const ScalarType type = prefixes[0].scalar_type();
  if (type == ScalarType::Float) {
    look_up<float>(batch, out, device);
  } else if (type == ScalarType::Double) {
    look_up<double>(batch, out, device);
  } else if (type == ScalarType::Half) {
    look_up<torch::headeronly::Half>(batch, out, device);
  } else if (type == ScalarType::BFloat16) {
    look_up<torch::headeronly::BFloat16>(batch, out, device);
  } else {
    STD_TORCH_CHECK(false,
                    "tt_prefix_bag: the cores must be float32, float64, bfloat16 or float16");
  }
  return out;
}

}  // namespace
}  // namespace recsys_opt::tt

STABLE_TORCH_LIBRARY_IMPL(TT_OPS_LIBRARY, TT_OPS_DEVICE, m) {
  m.impl("tt_prefix_bag", TORCH_BOX(&recsys_opt::tt::tt_prefix_bag_cuda));
}
