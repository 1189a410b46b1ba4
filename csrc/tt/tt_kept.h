#pragma once
// The plan and the products of a forward pass, as a tensor that the backward pass is given: so it
// neither sorts the ids nor multiplies the prefixes again. The tensor's bytes are a C++ object,
// which is destroyed with it; a copy of the bytes is refused.
#include <variant>
#include <vector>

#include "tt_work.h"

namespace recsys_opt::tt {

struct KeptBatch {
  const KeptBatch* self;  // tells the object from a copy of its bytes
  Arguments args;
  std::variant<std::vector<Kept<float>>, std::vector<Kept<double>>> tables;
};

template <typename T>
Tensor keep(const Call<T>& call) {
  std::vector<Kept<T>> tables(call.work.begin(), call.work.end());
  auto* batch = new KeptBatch{nullptr, call.args, std::move(tables)};
  batch->self = batch;
  constexpr int64_t kBytes = sizeof(KeptBatch), kStride = 1;
  return torch::stable::from_blob(batch, {&kBytes, 1}, {&kStride, 1},
                                  torch::stable::Device(torch::headeronly::DeviceType::CPU, -1),
                                  ScalarType::Byte,
                                  [](void* memory) { delete static_cast<KeptBatch*>(memory); });
}

// Whether a plan for one table is a plan for the other.
inline bool same_table(const Table& a, const Table& b) {
  return a.d == b.d && std::equal(a.n, a.n + a.d, b.n) && std::equal(a.q, a.q + a.d, b.q) &&
         std::equal(a.r, a.r + a.d + 1, b.r) && a.num_embeddings == b.num_embeddings &&
         a.padding_idx == b.padding_idx && a.pooling == b.pooling;
}

// What the forward pass of the same arguments kept.
template <typename T>
const std::vector<Kept<T>>& kept_tables(const Tensor& kept, const Arguments& args) {
  const auto* batch = static_cast<const KeptBatch*>(kept.const_data_ptr());
  const bool ours = kept.numel() == sizeof(KeptBatch) && kept.scalar_type() == ScalarType::Byte &&
                    batch->self == batch;
  const auto* tables = ours ? std::get_if<std::vector<Kept<T>>>(&batch->tables) : nullptr;
  STD_TORCH_CHECK(
      tables && batch->args.num_indices == args.num_indices &&
          batch->args.batch_size == args.batch_size &&
          std::equal(args.tables.begin(), args.tables.end(), batch->args.tables.begin(),
                     batch->args.tables.end(), same_table),
      "tt_embedding_bag_backward: `kept` is not of a forward pass with these arguments");
  return *tables;
}

}  // namespace recsys_opt::tt
