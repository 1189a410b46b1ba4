// CUDA kernels of tt_embedding_bag: one block per bag, one launch per table. The chain of products
// of a lookup lies in shared memory; the backward pass computes it again, and adds to the gradients
// with atomics.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/headeronly/core/Dispatch_v2.h>

#include <cstdio>

#include "tt_embedding_bag.h"

namespace recsys_opt::tt {
namespace {

constexpr int kThreads = 128;
constexpr int64_t kSharedBytes = 48 << 10;

// int32 or int64 numbers.
struct Numbers {
  const void* data;
  bool narrow;

  __device__ int64_t operator[](int64_t i) const {
    return narrow ? static_cast<const int32_t*>(data)[i] : static_cast<const int64_t*>(data)[i];
  }
};

template <typename T>
struct Launch {
  Table table;
  int64_t number;  // of the table, for messages
  const T* core[kMaxCores];
  T* grad_core[kMaxCores];
  // Elements of the product of the first k cores, [q_0 .. q_{k-1}, r_k], and where it begins in
  // shared memory.
  int64_t width[kMaxCores + 1];
  int64_t begin[kMaxCores + 1];
  int64_t shared_size;
  Numbers indices;
  int64_t num_indices;
  Numbers offsets;  // of the table's first bag
  const T* weights;
  T* grad_weights;
  int64_t columns;

  __device__ const T* slice(int k, int64_t index) const {
    return core[k] + index * table.q[k] * table.r[k] * table.r[k + 1];
  }
};

struct Lookup {
  int64_t digit[kMaxCores];
};

// The bag's bounds; stops the device when they are out of range.
template <typename T>
__device__ void bag_bounds(const Launch<T>& l, int64_t bag, int64_t& begin, int64_t& end) {
  begin = l.offsets[bag];
  end = l.offsets[bag + 1];
  if (begin < 0 || end < begin || end > l.num_indices) {
    printf("tt_embedding_bag: table %lld: bag %lld is [%lld, %lld) of %lld indices\n",
           (long long)l.number, (long long)bag, (long long)begin, (long long)end,
           (long long)l.num_indices);
    __trap();
  }
}

// The digits of indices[i]. Returns false for padding; stops the device when the id is out of
// range.
template <typename T>
__device__ bool split(const Launch<T>& l, int64_t i, Lookup& lookup) {
  int64_t id = l.indices[i];
  if (id < 0 || id >= l.table.num_embeddings) {
    printf("tt_embedding_bag: indices[%lld] = %lld is outside the table's %lld rows (table %lld)\n",
           (long long)i, (long long)id, (long long)l.table.num_embeddings, (long long)l.number);
    __trap();
  }
  if (id == l.table.padding_idx) return false;
  for (int k = l.table.d - 1; k >= 0; --k) {
    lookup.digit[k] = id % l.table.n[k];
    id /= l.table.n[k];
  }
  return true;
}

// products[k]: shared memory's product of the first k cores; the first core's is the core itself.
template <typename T>
__device__ const T* product(const Launch<T>& l, const T* shared, const Lookup& lookup, int k) {
  return k == 1 ? l.slice(0, lookup.digit[0]) : shared + l.begin[k];
}

// Computes the products of the first 2 .. d cores; ends with all threads in step.
template <typename T>
__device__ void multiply_chain(const Launch<T>& l, const Lookup& lookup, T* shared) {
  for (int k = 1; k < l.table.d; ++k) {
    const int64_t q = l.table.q[k], r = l.table.r[k], r_next = l.table.r[k + 1];
    const T* left = product(l, shared, lookup, k);
    const T* right = l.slice(k, lookup.digit[k]);
    T* result = shared + l.begin[k + 1];
    for (int64_t e = threadIdx.x; e < l.width[k + 1]; e += blockDim.x) {
      const int64_t c = e % r_next, j = e / r_next % q, m = e / (r_next * q);
      T sum = 0;
      for (int64_t p = 0; p < r; ++p) sum += left[m * r + p] * right[(j * r + p) * r_next + c];
      result[e] = sum;
    }
    __syncthreads();
  }
}

// The factor of every row of a bag.
template <typename T>
__device__ T bag_scale(const Launch<T>& l, int64_t begin, int64_t end) {
  if (l.table.pooling == Pooling::kSum) return T(1);
  int64_t count = 0;
  for (int64_t i = begin; i < end; ++i) count += l.indices[i] != l.table.padding_idx;
  return T(1) / static_cast<T>(count > 0 ? count : 1);
}

// Block b: bag b. out: [B, columns], from the table's first column.
template <typename T>
__global__ void forward_kernel(Launch<T> l, T* __restrict__ out) {
  extern __shared__ __align__(16) unsigned char raw[];
  T* shared = reinterpret_cast<T*>(raw);
  T* sum = shared + l.shared_size - l.table.dim;
  const int64_t dim = l.table.dim;
  int64_t begin, end;
  bag_bounds(l, blockIdx.x, begin, end);
  const T scale = bag_scale(l, begin, end);
  for (int64_t e = threadIdx.x; e < dim; e += blockDim.x) sum[e] = 0;
  for (int64_t i = begin; i < end; ++i) {
    Lookup lookup;
    if (!split(l, i, lookup)) continue;
    multiply_chain(l, lookup, shared);
    const T weight = l.weights ? l.weights[i] : scale;
    for (int64_t e = threadIdx.x; e < dim; e += blockDim.x) {
      sum[e] += weight * shared[l.begin[l.table.d] + e];
    }
    __syncthreads();
  }
  for (int64_t e = threadIdx.x; e < dim; e += blockDim.x) out[blockIdx.x * l.columns + e] = sum[e];
}

// Block b: bag b. With L_k the product of the first k cores and E_k its gradient, E_d the row's:
//   grad core_k[j] += L_k^T . E_{k+1}[:, j],   E_k = sum over j of E_{k+1}[:, j] . core_k[j]^T
template <typename T>
__global__ void backward_kernel(Launch<T> l, const T* __restrict__ grad_out) {
  extern __shared__ __align__(16) unsigned char raw[];
  T* shared = reinterpret_cast<T*>(raw);
  const int d = l.table.d;
  const int64_t dim = l.table.dim;
  int64_t begin, end;
  bag_bounds(l, blockIdx.x, begin, end);
  const T scale = bag_scale(l, begin, end);
  const T* grad_bag = grad_out + blockIdx.x * l.columns;
  for (int64_t i = begin; i < end; ++i) {
    Lookup lookup;
    if (!split(l, i, lookup)) continue;
    multiply_chain(l, lookup, shared);
    if (l.grad_weights) {
      T sum = 0;
      for (int64_t e = threadIdx.x; e < dim; e += blockDim.x) {
        sum += grad_bag[e] * shared[l.begin[d] + e];
      }
      atomicAdd(l.grad_weights + i, sum);
    }
    __syncthreads();
    // The row itself is not needed any more: its place holds its gradient. E_k replaces L_k
    // likewise.
    const T weight = l.weights ? l.weights[i] : scale;
    for (int64_t e = threadIdx.x; e < dim; e += blockDim.x) {
      shared[l.begin[d] + e] = weight * grad_bag[e];
    }
    __syncthreads();
    for (int k = d - 1; k >= 1; --k) {
      const int64_t q = l.table.q[k], r = l.table.r[k], r_next = l.table.r[k + 1];
      const T* left = product(l, shared, lookup, k);
      const T* right = l.slice(k, lookup.digit[k]);
      const T* grad = shared + l.begin[k + 1];
      const int64_t rows = l.width[k] / r;
      T* grad_core = l.grad_core[k] + lookup.digit[k] * q * r * r_next;
      for (int64_t e = threadIdx.x; e < q * r * r_next; e += blockDim.x) {
        const int64_t c = e % r_next, p = e / r_next % r, j = e / (r_next * r);
        T sum = 0;
        for (int64_t m = 0; m < rows; ++m) {
          sum += left[m * r + p] * grad[(m * q + j) * r_next + c];
        }
        atomicAdd(grad_core + e, sum);
      }
      __syncthreads();
      T* grad_left = shared + l.begin[k];
      for (int64_t e = threadIdx.x; e < l.width[k]; e += blockDim.x) {
        const int64_t p = e % r, m = e / r;
        T sum = 0;
        for (int64_t j = 0; j < q; ++j) {
          for (int64_t c = 0; c < r_next; ++c) {
            sum += grad[(m * q + j) * r_next + c] * right[(j * r + p) * r_next + c];
          }
        }
        grad_left[e] = sum;
      }
      __syncthreads();
    }
    T* grad_first = l.grad_core[0] + lookup.digit[0] * l.width[1];
    for (int64_t e = threadIdx.x; e < l.width[1]; e += blockDim.x) {
      atomicAdd(grad_first + e, shared[l.begin[1] + e]);
    }
    __syncthreads();
  }
}

cudaStream_t current_stream(const Tensor& t) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

Numbers numbers(const Tensor& tensor, int64_t skip) {
  const bool narrow = tensor.scalar_type() == ScalarType::Int;
  if (narrow) return {tensor.const_data_ptr<int32_t>() + skip, narrow};
  return {tensor.const_data_ptr<int64_t>() + skip, narrow};
}

template <typename T>
Launch<T> make_launch(const Arguments& args, int64_t t, const Tensor& indices,
                      const Tensor& offsets, const std::vector<Tensor>& cores,
                      const std::optional<Tensor>& weights) {
  Launch<T> l{};
  l.table = args.tables[t];
  l.number = t;
  int64_t columns = 1, size = 0;
  for (int k = 0; k < l.table.d; ++k) {
    l.core[k] = cores[l.table.first_core + k].template const_data_ptr<T>();
    columns *= l.table.q[k];
    l.width[k + 1] = columns * l.table.r[k + 1];
    l.begin[k + 1] = size;
    size += l.width[k + 1];
  }
  l.shared_size = size + l.table.dim;  // and the forward kernel's sum
  STD_TORCH_CHECK(l.shared_size * static_cast<int64_t>(sizeof(T)) <= kSharedBytes,
                  "tt_embedding_bag: table ", t, " needs ", l.shared_size * sizeof(T),
                  " bytes of shared memory for a lookup, a block has ", kSharedBytes,
                  "; choose lower ranks");
  l.indices = numbers(indices, 0);
  l.num_indices = args.num_indices;
  l.offsets = numbers(offsets, t * args.batch_size);
  l.weights = weights ? weights->const_data_ptr<T>() : nullptr;
  l.columns = args.columns;
  return l;
}

template <typename T>
void forward(const Arguments& args, const Tensor& indices, const Tensor& offsets,
             const std::vector<Tensor>& cores, const std::optional<Tensor>& weights, Tensor& out) {
  for (int64_t t = 0; t < args.size(); ++t) {
    const Launch<T> l = make_launch<T>(args, t, indices, offsets, cores, weights);
    forward_kernel<T>
        <<<args.batch_size, kThreads, l.shared_size * sizeof(T), current_stream(out)>>>(
            l, out.mutable_data_ptr<T>() + l.table.column);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
}

template <typename T>
void backward(const Arguments& args, const Tensor& grad, const Tensor& indices,
              const Tensor& offsets, const std::vector<Tensor>& cores,
              const std::optional<Tensor>& weights, std::vector<Tensor>& grads, bool weights_grad) {
  for (int64_t t = 0; t < args.size(); ++t) {
    Launch<T> l = make_launch<T>(args, t, indices, offsets, cores, weights);
    for (int k = 0; k < l.table.d; ++k) {
      l.grad_core[k] = grads[l.table.first_core + k].template mutable_data_ptr<T>();
    }
    if (weights_grad) l.grad_weights = grads.back().template mutable_data_ptr<T>();
    backward_kernel<T>
        <<<args.batch_size, kThreads, l.shared_size * sizeof(T), current_stream(grad)>>>(
            l, grad.const_data_ptr<T>() + l.table.column);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
}

std::vector<Tensor> contiguous(const std::vector<Tensor>& tensors) {
  std::vector<Tensor> result;
  for (const Tensor& tensor : tensors) result.push_back(torch::stable::contiguous(tensor));
  return result;
}

Tensor tt_embedding_bag_cuda(Tensor indices, Tensor offsets, std::vector<Tensor> cores,
                             std::vector<int64_t> cores_per_table,
                             std::vector<int64_t> num_embeddings,
                             std::vector<int64_t> pooling_modes, std::vector<int64_t> padding_idx,
                             std::optional<Tensor> per_sample_weights) {
  const Arguments args = check_arguments(indices, offsets, cores, cores_per_table, num_embeddings,
                                         pooling_modes, padding_idx, per_sample_weights);
  const torch::stable::accelerator::DeviceGuard guard(cores[0].get_device_index());
  indices = torch::stable::contiguous(indices);
  offsets = torch::stable::contiguous(offsets);
  cores = contiguous(cores);
  if (per_sample_weights) per_sample_weights = torch::stable::contiguous(*per_sample_weights);
  Tensor out = torch::stable::new_empty(cores[0], {args.batch_size, args.columns});
  if (args.batch_size == 0) return out;
  THO_DISPATCH_V2(cores[0].scalar_type(), "tt_embedding_bag_cuda", AT_WRAP([&] {
                    forward<scalar_t>(args, indices, offsets, cores, per_sample_weights, out);
                  }),
                  AT_FLOATING_TYPES);
  return out;
}

std::vector<Tensor> tt_embedding_bag_backward_cuda(
    Tensor grad, Tensor indices, Tensor offsets, std::vector<Tensor> cores,
    std::vector<int64_t> cores_per_table, std::vector<int64_t> num_embeddings,
    std::vector<int64_t> pooling_modes, std::vector<int64_t> padding_idx,
    std::optional<Tensor> per_sample_weights, bool weights_grad) {
  const Arguments args = check_arguments(indices, offsets, cores, cores_per_table, num_embeddings,
                                         pooling_modes, padding_idx, per_sample_weights);
  check_grad(grad, args, cores[0]);
  const torch::stable::accelerator::DeviceGuard guard(cores[0].get_device_index());
  grad = torch::stable::contiguous(grad);
  indices = torch::stable::contiguous(indices);
  offsets = torch::stable::contiguous(offsets);
  cores = contiguous(cores);
  if (per_sample_weights) per_sample_weights = torch::stable::contiguous(*per_sample_weights);
  std::vector<Tensor> grads;
  for (const Tensor& core : cores) grads.push_back(torch::stable::new_zeros(core, core.sizes()));
  if (weights_grad) grads.push_back(torch::stable::new_zeros(grad, {args.num_indices}));
  if (args.batch_size == 0) return grads;
  THO_DISPATCH_V2(cores[0].scalar_type(), "tt_embedding_bag_backward_cuda", AT_WRAP([&] {
                    backward<scalar_t>(args, grad, indices, offsets, cores, per_sample_weights,
                                       grads, weights_grad);
                  }),
                  AT_FLOATING_TYPES);
  return grads;
}

}  // namespace
}  // namespace recsys_opt::tt

STABLE_TORCH_LIBRARY_IMPL(recsys_opt, CUDA, m) {
  m.impl("tt_embedding_bag", TORCH_BOX(&recsys_opt::tt::tt_embedding_bag_cuda));
  m.impl("tt_embedding_bag_backward", TORCH_BOX(&recsys_opt::tt::tt_embedding_bag_backward_cuda));
}
