#pragma once
// Runs CUDA kernels on the host, one block at a time, each thread of the block as a fibre. For
// tests: the order in which threads and blocks run can be chosen, shared memory and new buffers are
// poisoned with NaN patterns, and buffers end at a page that may not be touched.
//
// Threads run one after the other up to their next barrier or warp operation, so a missing barrier
// makes results depend on the order: tests run all of them and compare bits. A copy_async() takes
// effect at copies_wait(), so a missing wait is seen too.
#include <cstddef>
#include <cstdint>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __restrict__
#define __launch_bounds__(...)

using cudaStream_t = void*;

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

extern dim3 threadIdx, blockIdx, blockDim, gridDim;

void __syncthreads();
inline void __threadfence_system() {}
template <typename T>
T atomicAdd(T* address, T value) {
  const T old = *address;
  *address = old + value;
  return old;
}
template <typename T>
T atomicMin(T* address, T value) {
  const T old = *address;
  *address = value < old ? value : old;
  return old;
}
template <typename T>
T atomicAdd_system(T* address, T value) {
  return atomicAdd(address, value);
}

namespace simt {

constexpr int kMultiprocessors = 3;  // few, so that persistent blocks take several turns
constexpr int64_t kSharedBytes = 100 << 10;
constexpr int64_t kSharedByDefault = 48 << 10;

enum class Order { kForward, kBackward, kRandom };
void set_order(Order order, uint64_t seed);

// Launches of a kernel may then take so much shared memory; as on a device it is the kernel's, so
// to ask again would race with other threads' launches: it is refused.
void allow_shared(const void* kernel, int64_t bytes);
void run(const void* kernel, dim3 grid, int threads, int64_t shared_bytes,
         const std::function<void()>& body);

unsigned char* shared_memory();
void copy_async(void* shared, const void* global, int bytes);
void copies_wait();
uint32_t to_tf32(float x);
void mma_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
unsigned ballot(bool predicate);
unsigned match(unsigned value);
int shift_up(int value, int delta);
void clear(void* memory, int64_t bytes);

// Memory between two pages that may not be touched, ending (to 16 bytes) at the upper one, filled
// with NaN patterns. release() counts it where the bytes between the end and that page were
// changed.
void* guarded(int64_t bytes);
void release(void* memory);
int64_t take_overruns();  // since the last call

void note_workspace(int64_t bytes);  // of a call
int64_t workspace_bytes();           // of the last one

}  // namespace simt
