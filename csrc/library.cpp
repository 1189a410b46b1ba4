// Schemas of every recsys_opt op. Kernels register themselves per device in <area>/<op>_cpu.cpp and
// <area>/<op>_cuda.cu; shapes (fake kernels) and autograd are registered in recsys_opt/ops.py, and
// recsys_opt/reference.py says in plain torch what each op computes.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(recsys_opt, m) {
}
