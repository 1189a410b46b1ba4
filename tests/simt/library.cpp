// The ops of the CUDA kernels as they run under the SIMT shim: on CPU tensors, in a library of
// their own. The schemas are those of csrc/library.cpp.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstring>

#include "tt/tt_cuda.cuh"

namespace {

using torch::stable::Tensor;

// A copy whose memory ends at a page that may not be touched.
Tensor guarded(Tensor tensor) {
  tensor = torch::stable::contiguous(tensor);
  const int64_t bytes = tensor.numel() * recsys_opt::tt::element_bytes(tensor.scalar_type());
  void* memory = simt::guarded(bytes);
  std::memcpy(memory, tensor.const_data_ptr(), bytes);
  std::vector<int64_t> sizes, strides;
  for (int64_t k = 0; k < tensor.dim(); ++k) {
    sizes.push_back(tensor.size(k));
    strides.push_back(tensor.stride(k));
  }
  return torch::stable::from_blob(memory, sizes, strides, tensor.device(), tensor.scalar_type(),
                                  [](void* p) { simt::release(p); });
}

// 0: threads and blocks run in ascending order; 1: descending; 2: at random
void set_order(int64_t order, int64_t seed) {
  simt::set_order(static_cast<simt::Order>(order), static_cast<uint64_t>(seed));
}

// How many buffers were found written outside since the last call.
int64_t overruns() {
  return simt::take_overruns();
}

int64_t workspace_bytes() {
  return simt::workspace_bytes();
}

}  // namespace

STABLE_TORCH_LIBRARY(recsys_opt_simt, m) {
  m.def("guarded(Tensor tensor) -> Tensor");
  m.def("set_order(int order, int seed) -> ()");
  m.def("overruns() -> int");
  m.def("workspace_bytes() -> int");
#include "schemas.inc"
}

STABLE_TORCH_LIBRARY_IMPL(recsys_opt_simt, CompositeExplicitAutograd, m) {
  m.impl("guarded", TORCH_BOX(&guarded));
  m.impl("set_order", TORCH_BOX(&set_order));
  m.impl("overruns", TORCH_BOX(&overruns));
  m.impl("workspace_bytes", TORCH_BOX(&workspace_bytes));
}
