#pragma once
// The arguments of a lookup on the CPU, checked; and what its forward pass keeps for the backward
// pass, which then neither sorts the ids nor multiplies the prefixes again.
#include <variant>
#include <vector>

#include "empty_on_cpu.h"
#include "tt_work.h"

namespace recsys_opt::tt {

struct Lookup {
  Arguments args;
  Tensor indices, offsets;        // contiguous
  std::vector<Tensor> cores;      // as given
  std::optional<Tensor> weights;  // of the samples; contiguous, of the type that is computed with

  Lookup(const Tensor& ids, const Tensor& bounds, std::vector<Tensor> given,
         std::span<const int64_t> cores_per_table, std::span<const int64_t> num_embeddings,
         std::span<const int64_t> pooling_modes, std::span<const int64_t> padding_idx,
         const std::optional<Tensor>& per_sample_weights)
      : args(check_arguments(ids, bounds, given, cores_per_table, num_embeddings, pooling_modes,
                             padding_idx, per_sample_weights)),
        indices(as_contiguous(ids)),
        offsets(as_contiguous(bounds)),
        cores(std::move(given)) {
    if (per_sample_weights) weights = contiguous_as(*per_sample_weights, compute());
  }

  ScalarType type() const { return cores[0].scalar_type(); }
  ScalarType compute() const { return compute_type(type()); }
};

// What the forward pass kept, as a tensor: its bytes are this object, which is destroyed with it. A
// copy of the bytes is refused.
struct KeptLookup {
  const KeptLookup* self;
  Lookup lookup;
  ScalarType type;  // of the cores
  std::variant<std::vector<Kept<float>>, std::vector<Kept<double>>> tables;
};

template <typename T>
Tensor keep(const Lookup& lookup, const Call<T>& call) {
  auto* kept = new KeptLookup{nullptr, lookup, lookup.type(),
                              std::vector<Kept<T>>(call.work.begin(), call.work.end())};
  kept->self = kept;
  constexpr int64_t kBytes = sizeof(KeptLookup), kStride = 1;
  return torch::stable::from_blob(kept, {&kBytes, 1}, {&kStride, 1},
                                  torch::stable::Device(torch::headeronly::DeviceType::CPU, -1),
                                  ScalarType::Byte,
                                  [](void* memory) { delete static_cast<KeptLookup*>(memory); });
}

// Whether the tensors are still as they were checked: a module that is moved, or `core.data = ...`,
// gives them other memory.
inline bool still_fits(const KeptLookup& kept) {
  const std::optional<Tensor>& weights = kept.lookup.weights;
  if (weights && (!weights->is_cpu() || weights->scalar_type() != compute_type(kept.type) ||
                  weights->numel() != kept.lookup.args.num_indices || !weights->is_contiguous())) {
    return false;
  }
  for (const Table& table : kept.lookup.args.tables) {
    for (int k = 0; k < table.d; ++k) {
      const Tensor& core = kept.lookup.cores[table.first_core + k];
      if (!core.is_cpu() || core.scalar_type() != kept.type || core.dim() != 4 ||
          core.size(0) != table.n[k] || core.size(1) != table.q[k] || core.size(2) != table.r[k] ||
          core.size(3) != table.r[k + 1]) {
        return false;
      }
    }
  }
  return true;
}

inline const KeptLookup& kept_lookup(const Tensor& tensor) {
  const auto* kept = static_cast<const KeptLookup*>(tensor.const_data_ptr());
  STD_TORCH_CHECK(tensor.numel() == sizeof(KeptLookup) &&
                      tensor.scalar_type() == ScalarType::Byte && kept->self == kept,
                  "tt_lookup: `kept` is not what a forward pass kept, but a copy of its bytes");
  STD_TORCH_CHECK(still_fits(*kept),
                  "tt_lookup: the cores, or per_sample_weights, have another shape, type or device "
                  "than in the forward pass");
  return *kept;
}

// The call of a backward pass: planned anew, or as far as the forward pass has come.
template <typename T>
Call<T> backward_call(const Lookup& lookup, const std::vector<Tensor>& cores,
                      const KeptLookup* kept) {
  return Call<T>(lookup.args, lookup.indices, lookup.offsets, cores, lookup.weights,
                 kept ? &std::get<std::vector<Kept<T>>>(kept->tables) : nullptr);
}

}  // namespace recsys_opt::tt
