// dhe_encode on CUDA: hashes and encodings in one kernel, in exact 64-bit integers.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "dhe/dhe.h"
#include "dispatch.h"
#include "hot_rows/launch_cuda.h"

namespace recsys_opt::dhe {
namespace {

using hot_rows::Bounds;
using tt::BoundsKind;
using tt::Grid;
using tt::launch;
using tt::OnDevice;

constexpr int kThreads = 128;
constexpr int64_t kMostBlocks = 4096;  // in x; blocks take several ids where there are more

struct Functions {
  const int64_t* a;
  const int64_t* b;
  int64_t hashes, rows;
  uint64_t prime, buckets;
  bool gaussian;
};

// Where the ids stand in the call that they come from, for what is noted of bad ones.
struct Places {
  const int64_t* positions;  // nullptr: 0, 1, ...
  int64_t table;
};

__device__ double hash(const Functions& f, uint64_t x, int64_t j) {
  const uint64_t a = static_cast<uint64_t>(f.a[j]) % f.prime,
                 b = static_cast<uint64_t>(f.b[j]) % f.prime;
  return static_cast<double>((a * x + b) % f.prime % f.buckets);
}

// A block computes encodings of one id at a time, blockIdx.y a part of its hashes; a thread makes
// two neighbours, as Box and Muller need them. An id out of range has an encoding of zeros.
template <typename T>
__global__ void encode(Functions f, const int64_t* __restrict__ ids, int64_t count,
                       T* __restrict__ out, Places places, Bounds bounds) {
  const int64_t j = 2 * (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x);
  if (j >= f.hashes) return;
  const bool two = j + 1 < f.hashes;
  const auto m = static_cast<double>(f.buckets);
  for (int64_t i = blockIdx.x; i < count; i += gridDim.x) {
    T* row = out + i * f.hashes + j;
    const int64_t id = ids[i];
    double first = 0, second = 0;
    // One thread of those that meet a bad id notes it.
    const int64_t place = j == 0 && places.positions ? places.positions[i] : i;
    const bool there = j == 0 ? bounds.holds(BoundsKind::kIndex, place, id, f.rows, places.table)
                              : bounds.mode == tt::BoundsCheck::kTrust || (id >= 0 && id < f.rows);
    if (there) {
      const uint64_t x = static_cast<uint64_t>(id) % f.prime;
      first = hash(f, x, j);
      second = two ? hash(f, x, j + 1) : 0;
      if (f.gaussian) {
        const double radius = sqrt(-2.0 * log((first + 0.5) / m));
        const double angle = 2.0 * 3.14159265358979323846 * ((second + 0.5) / m);
        first = radius * cos(angle);
        second = radius * sin(angle);
      } else {
        first = first * (2.0 / (m - 1.0)) - 1.0;
        second = second * (2.0 / (m - 1.0)) - 1.0;
      }
    }
    row[0] = static_cast<T>(first);
    if (two) row[1] = static_cast<T>(second);
  }
}

Tensor dhe_encode_cuda(Tensor ids, Tensor hashes, int64_t num_embeddings, int64_t prime,
                       int64_t buckets, int64_t encoding, Tensor like,
                       std::optional<Tensor> positions, int64_t table) {
  STD_TORCH_CHECK(ids.dim() == 1 && ids.scalar_type() == ScalarType::Long,
                  "dhe_encode: ids must be 1-D int64");
  OneDevice("dhe_encode", "ids", ids)
      .with("hashes", hashes)
      .with("like", like)
      .with("positions", positions);
  check_positions("dhe_encode", positions, ids);
  const Encoder encoder = check_encoder("dhe_encode", hashes, prime, buckets, encoding);
  make_contiguous(ids, hashes);
  const int64_t count = ids.numel();
  Tensor out = torch::stable::new_empty(like, {count, encoder.hashes});
  if (count == 0) return out;
  if (positions) make_contiguous(*positions);
  const Places places{positions ? positions->const_data_ptr<int64_t>() : nullptr, table};
  const OnDevice device(ids);
  const Bounds bounds = Bounds::begin(device.index());
  const auto* a = hashes.const_data_ptr<int64_t>();
  const Functions functions{a,
                            a + encoder.hashes,
                            encoder.hashes,
                            num_embeddings,
                            static_cast<uint64_t>(prime),
                            static_cast<uint64_t>(buckets),
                            encoder.gaussian};
  const int64_t pairs = (encoder.hashes + 1) / 2;
  const Grid grid{std::min(kMostBlocks, count), (pairs + kThreads - 1) / kThreads};
  const auto* id = ids.const_data_ptr<int64_t>();
  dispatch_floating("dhe_encode", like.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    launch(encode<T>, grid, kThreads, 0, device.stream(), functions, id, count,
           out.mutable_data_ptr<T>(), places, bounds);
  });
  return out;
}

}  // namespace
}  // namespace recsys_opt::dhe

STABLE_TORCH_LIBRARY_IMPL(TT_OPS_LIBRARY, TT_OPS_DEVICE, m) {
  m.impl("dhe_encode", TORCH_BOX(&recsys_opt::dhe::dhe_encode_cuda));
}
