#pragma once
// What the kernels use of the machine, behind small functions: asynchronous copies, tensor cores,
// warp operations, shared memory, launches. Compiled by nvcc they are CUDA; with RECSYS_OPT_SIMT
// defined they are plain C++ that runs on the host (tests/simt), so that the kernels' logic is
// tested without a GPU.
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <limits>
#include <mutex>
#include <set>
#include <type_traits>
#include <utility>

#ifdef RECSYS_OPT_SIMT
#include "simt.h"
#else
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#endif

// Where the ops are registered. On the host for every kind of tensor, so that checks of devices see
// those that are not on one.
#ifdef RECSYS_OPT_SIMT
#define TT_OPS_LIBRARY recsys_opt_simt
#define TT_OPS_DEVICE CompositeExplicitAutograd
#else
#define TT_OPS_LIBRARY recsys_opt
#define TT_OPS_DEVICE CUDA
#endif

namespace recsys_opt::tt {

constexpr int kWarp = 32;

// --- memory ---

// The block's dynamic shared memory, 16-byte aligned.
inline __device__ unsigned char* dynamic_shared() {
#ifdef RECSYS_OPT_SIMT
  return simt::shared_memory();
#else
  extern __shared__ __align__(16) unsigned char shared_memory[];
  return shared_memory;
#endif
}

// Copies kBytes (4, 8 or 16, both sides aligned to them) from global to shared memory, done after
// the next copies_wait() and barrier.
template <int kBytes>
inline __device__ void copy_async(void* shared, const void* global) {
#ifdef RECSYS_OPT_SIMT
  simt::copy_async(shared, global, kBytes);
#elif __CUDA_ARCH__ >= 800
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(address), "l"(global), "n"(kBytes)
               : "memory");
#else
  using Chunk =
      typename std::conditional<kBytes == 16, int4,
                                typename std::conditional<kBytes == 8, int2, int>::type>::type;
  *static_cast<Chunk*>(shared) = *static_cast<const Chunk*>(global);
#endif
}

// Waits for this thread's copies; the other threads see them after a barrier.
inline __device__ void copies_wait() {
#ifdef RECSYS_OPT_SIMT
  simt::copies_wait();
#elif __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// --- tensor cores ---

// A float as the tensor cores read it: tf32, 10 bits of mantissa, rounded to nearest.
inline __device__ uint32_t to_tf32(float x) {
#ifdef RECSYS_OPT_SIMT
  return simt::to_tf32(x);
#else
  uint32_t result;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(result) : "f"(x));
  return result;
#endif
}

// c[16, 8] += a[16, 8] . b[8, 8] by one warp, accumulated in fp32. With g = lane / 4, l = lane % 4:
//   a: (g, l), (g + 8, l), (g, l + 4), (g + 8, l + 4)     b: (l, g), (l + 4, g)
//   c: (g, 2 l), (g, 2 l + 1), (g + 8, 2 l), (g + 8, 2 l + 1)
inline __device__ void mma_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef RECSYS_OPT_SIMT
  simt::mma_tf32(c, a, b);
#else
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// --- warps; all 32 lanes call these together ---

inline __device__ unsigned warp_ballot(bool predicate) {
#ifdef RECSYS_OPT_SIMT
  return simt::ballot(predicate);
#else
  return __ballot_sync(0xffffffffu, predicate);
#endif
}

// The lanes whose value is the same as this lane's.
inline __device__ unsigned warp_match(unsigned value) {
#ifdef RECSYS_OPT_SIMT
  return simt::match(value);
#else
  return __match_any_sync(0xffffffffu, value);
#endif
}

// The value of the lane `delta` below; one's own where there is none.
inline __device__ int warp_shift_up(int value, int delta) {
#ifdef RECSYS_OPT_SIMT
  return simt::shift_up(value, delta);
#else
  return __shfl_up_sync(0xffffffffu, value, delta);
#endif
}

inline __device__ int count_bits(unsigned x) {
#ifdef RECSYS_OPT_SIMT
  return __builtin_popcount(x);
#else
  return __popc(x);
#endif
}

// --- the host's side ---

struct DeviceLimits {
  int multiprocessors;
  int64_t shared_bytes;  // of a block, by choice
};

inline DeviceLimits device_limits() {
#ifdef RECSYS_OPT_SIMT
  return {simt::kMultiprocessors, simt::kSharedBytes};
#else
  int device = 0, count = 0, bytes = 0;
  STD_CUDA_CHECK(cudaGetDevice(&device));
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return {count, bytes};
#endif
}

constexpr int64_t kSharedByDefault = 48 << 10;  // dynamic shared memory that needs no leave

// Lets the kernel have as much dynamic shared memory as a block can get. The attribute belongs to
// the kernel and the device, not to a launch: set for each launch, it could be lowered by another
// thread before this one's launch. So it is set once, to the most.
inline void allow_shared_memory(const void* kernel) {
  static std::mutex mutex;
  static std::set<std::pair<const void*, int>> allowed;
  int device = 0;
#ifndef RECSYS_OPT_SIMT
  STD_CUDA_CHECK(cudaGetDevice(&device));
#endif
  const std::lock_guard lock(mutex);
  if (allowed.count({kernel, device})) return;
#ifdef RECSYS_OPT_SIMT
  simt::allow_shared(kernel, simt::kSharedBytes);
#else
  cudaFuncAttributes attributes;
  STD_CUDA_CHECK(cudaFuncGetAttributes(&attributes, kernel));
  const auto most = device_limits().shared_bytes - static_cast<int64_t>(attributes.sharedSizeBytes);
  STD_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(most)));
#endif
  allowed.emplace(kernel, device);
}

struct Grid {
  int64_t x;
  int64_t y = 1;
};

// Launches `kernel` on `stream`; nothing is launched for an empty grid.
template <typename... P>
void launch(void (*kernel)(P...), Grid grid, int threads, int64_t shared_bytes, cudaStream_t stream,
            const std::type_identity_t<P>&... arguments) {
  if (grid.x <= 0 || grid.y <= 0) return;
  STD_TORCH_CHECK(grid.x <= std::numeric_limits<int32_t>::max() && grid.y <= 65535,
                  "recsys_opt: one call needs ", grid.x, " x ", grid.y,
                  " blocks, a CUDA launch has at most 2^31 - 1 x 65535; call it for fewer bags or "
                  "tables at a time");
  const dim3 blocks(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y));
  const void* const address = reinterpret_cast<const void*>(kernel);
  if (shared_bytes > kSharedByDefault) allow_shared_memory(address);
#ifdef RECSYS_OPT_SIMT
  simt::run(address, blocks, threads, shared_bytes, [&] { kernel(arguments...); });
#else
  void* pointers[] = {const_cast<void*>(static_cast<const void*>(&arguments))...};
  STD_CUDA_CHECK(cudaLaunchKernel(address, blocks, dim3(threads), pointers,
                                  static_cast<size_t>(shared_bytes), stream));
#endif
}

inline void clear_async(void* memory, int64_t bytes, cudaStream_t stream) {
#ifdef RECSYS_OPT_SIMT
  simt::clear(memory, bytes);
#else
  STD_CUDA_CHECK(cudaMemsetAsync(memory, 0, static_cast<size_t>(bytes), stream));
#endif
}

// Makes a tensor's device current while it lives, and knows the caller's stream there.
class OnDevice {
 public:
#ifdef RECSYS_OPT_SIMT
  explicit OnDevice(const torch::stable::Tensor&) {}
  int index() const { return 0; }
  cudaStream_t stream() const { return nullptr; }
#else
  explicit OnDevice(const torch::stable::Tensor& t)
      : index_(t.get_device_index()), guard_(t.get_device_index()) {}
  int index() const { return index_; }
  cudaStream_t stream() const {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream));
    return static_cast<cudaStream_t>(stream);
  }

 private:
  int index_;
  torch::stable::accelerator::DeviceGuard guard_;
#endif
};

}  // namespace recsys_opt::tt
