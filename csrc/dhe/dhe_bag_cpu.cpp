#include <torch/csrc/stable/library.h>

#include <atomic>
#include <memory>
#include <tuple>

#include "as_contiguous.h"
#include "dense/id_slots.h"
#include "dense/pool_rows.h"
#include "dhe/dhe_decoder.h"
#include "dispatch.h"
#include "empty_on_cpu.h"

namespace recsys_opt::dhe {
namespace {

constexpr const char* kOp = "dhe_embedding_bag";
constexpr int32_t kPadding = -1;  // the slot of an id that counts for nothing

// A table's distinct ids, in the order in which they come first. Returns the first lookup outside
// the table, or kNoLookup.
template <typename Id>
int64_t number_ids(const Table& table, const Id* ids, int64_t begin, int64_t end, int32_t* slots,
                   int64_t* distinct, int64_t* count) {
  IdSlots found(table.rows, std::max<int64_t>(end - begin, 1), 0, 1);
  for (int64_t k = begin; k < end; ++k) {
    const auto id = static_cast<int64_t>(ids[k]);
    if (id < 0 || id >= table.rows) return k;
    if (id == table.padding) {
      slots[k] = kPadding;
      continue;
    }
    const auto [slot, is_new] = found.find(id);
    if (is_new) distinct[begin + slot] = id;
    slots[k] = static_cast<int32_t>(slot);
  }
  *count = found.size();
  return kNoLookup;
}

template <typename T>
ALWAYS_INLINE void pool_bag(const T* rows, int64_t stride, const int32_t* slots, const T* factors,
                            int64_t begin, int64_t end, bool mean, int64_t dim, T* out) {
  if (end - begin == 1 && slots[begin] >= 0 && factors == nullptr) {
    std::copy_n(rows + slots[begin] * stride, dim, out);
    return;
  }
  std::fill_n(out, dim, T(0));
  int64_t counted = 0;
  for (int64_t k = begin; k < end; ++k) {
    if (slots[k] < 0) continue;
    const T* row = rows + slots[k] * stride;
    const T factor = factors ? factors[k] : T(1);
    for (int64_t d = 0; d < dim; ++d) out[d] += factor * row[d];
    ++counted;
  }
  if (mean && counted > 1)
    for (int64_t d = 0; d < dim; ++d) out[d] /= static_cast<T>(counted);
}

SIMD_CLONES void pool(const float* rows, int64_t stride, const int32_t* slots, const float* factors,
                      int64_t begin, int64_t end, bool mean, int64_t dim, float* out) {
  pool_bag(rows, stride, slots, factors, begin, end, mean, dim, out);
}
SIMD_CLONES void pool(const double* rows, int64_t stride, const int32_t* slots,
                      const double* factors, int64_t begin, int64_t end, bool mean, int64_t dim,
                      double* out) {
  pool_bag(rows, stride, slots, factors, begin, end, mean, dim, out);
}

// (out, distinct, slots, counts, hidden); the last four hold what the backward pass needs, or
// nothing. hidden: row u of table t is first(t) + u, the outputs of its layers side by side.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> dhe_embedding_bag_cpu(
    Tensor indices, std::optional<Tensor> offsets, std::vector<Tensor> hashes,
    std::vector<Tensor> weights, std::vector<Tensor> biases, std::vector<int64_t> tables,
    std::optional<Tensor> per_sample_weights, bool keep) {
  const Shape s =
      check_bag(kOp, indices, offsets, hashes, weights, biases, tables, per_sample_weights);
  make_contiguous(indices, offsets, per_sample_weights);
  if (offsets)
    check_dense_bag_offsets(offsets->const_data_ptr<int64_t>(), s.tables() * s.batch, s.ids, kOp);
  const Bags bags{offsets ? offsets->const_data_ptr<int64_t>() : nullptr, s.batch};
  const ScalarType type = weights[0].scalar_type();
  Tensor out = empty_on_cpu({s.batch, s.columns}, type);
  Tensor distinct = empty_on_cpu({s.ids}, ScalarType::Long);
  Tensor slots = empty_on_cpu({s.ids}, ScalarType::Int);
  Tensor counts = empty_on_cpu({s.tables()}, ScalarType::Long);
  auto* ids = distinct.mutable_data_ptr<int64_t>();
  auto* slot = slots.mutable_data_ptr<int32_t>();
  auto* count = counts.mutable_data_ptr<int64_t>();

  std::atomic<int64_t> bad{kNoLookup};
  with_integers(indices, [&](const auto* index) {
    torch::stable::parallel_for(0, s.tables(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t)
        keep_smallest(bad, number_ids(s.table[t], index, bags.first(t), bags.first(t + 1), slot,
                                      ids, count + t));
    });
    if (const int64_t k = bad.load(); k != kNoLookup) {
      int64_t t = 0;
      while (k >= bags.first(t + 1)) ++t;
      STD_TORCH_CHECK(false, kOp, ": indices[", k, "] = ", index[k], " is outside the ",
                      s.table[t].rows, " rows of table ", t);
    }
  });

  // Where a table's rows begin in `hidden`, and the blocks of rows that are decoded at a time.
  struct Block {
    int64_t table, first, count;
  };
  std::vector<int64_t> first_row(s.tables());
  std::vector<Block> blocks;
  int64_t total = 0;
  for (int64_t t = 0; t < s.tables(); ++t) {
    first_row[t] = keep ? bags.first(t) : total;
    total += count[t];
    for (int64_t u = 0; u < count[t]; u += kBlockRows)
      blocks.push_back({t, u, std::min(kBlockRows, count[t] - u)});
  }

  Tensor hidden = empty_on_cpu({keep ? s.ids : 0, s.widest}, type);
  dispatch_floating(kOp, type, [&](auto zero) {
    using T = decltype(zero);
    tt::Array<T> scratch(keep ? 0 : total * s.widest);
    T* rows = keep ? hidden.mutable_data_ptr<T>() : scratch.data();
    if (keep) {  // what no id needs is 0: equal calls have equal results
      std::fill_n(rows, s.ids * s.widest, T(0));
      for (int64_t t = 0; t < s.tables(); ++t)
        std::fill(ids + bags.first(t) + count[t], ids + bags.first(t + 1), 0);
      std::fill(ids + bags.first(s.tables()), ids + s.ids, 0);
      std::fill(slot + bags.first(s.tables()), slot + s.ids, kPadding);
    }
    std::vector<std::unique_ptr<Hashes>> functions;
    std::vector<Decoder<T>> decoders;
    for (int64_t t = 0; t < s.tables(); ++t) {
      functions.push_back(
          std::make_unique<Hashes>(s.table[t].encoder, hashes[t].const_data_ptr<int64_t>()));
      decoders.emplace_back(s.table[t], *functions.back(), weights, biases, count[t]);
    }
    torch::stable::parallel_for(
        0, static_cast<int64_t>(blocks.size()), 1, [&](int64_t begin, int64_t end) {
          tt::Array<T> encoding(kBlockRows * kBlockHashes);
          for (int64_t i = begin; i < end; ++i) {
            const auto& [t, first, size] = blocks[i];
            decoders[t].decode(ids + bags.first(t) + first, size,
                               rows + (first_row[t] + first) * s.widest, s.widest, encoding.data());
          }
        });
    const T* factors = per_sample_weights ? per_sample_weights->const_data_ptr<T>() : nullptr;
    T* to = out.mutable_data_ptr<T>();
    torch::stable::parallel_for(0, s.batch, kPoolBlock, [&](int64_t begin, int64_t end) {
      for (int64_t t = 0; t < s.tables(); ++t) {
        const Table& table = s.table[t];
        const T* last = rows + first_row[t] * s.widest + table.kept - table.dim();
        for (int64_t b = begin; b < end; ++b) {
          const int64_t bag = t * s.batch + b;
          pool(last, s.widest, slot, factors, bags.start(bag), bags.start(bag + 1), table.mean,
               table.dim(), to + b * s.columns + table.first_column);
        }
      }
    });
  });
  if (keep) return {out, distinct, slots, counts, hidden};
  return {out, empty_on_cpu({0}, ScalarType::Long), empty_on_cpu({0}, ScalarType::Int),
          empty_on_cpu({0}, ScalarType::Long), hidden};
}

}  // namespace
}  // namespace recsys_opt::dhe

STABLE_TORCH_LIBRARY_IMPL(recsys_opt, CPU, m) {
  m.impl("dhe_embedding_bag", TORCH_BOX(&recsys_opt::dhe::dhe_embedding_bag_cpu));
}
