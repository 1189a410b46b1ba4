#pragma once
// What one machine can do at most: the roof under which kernels are judged. Every rate is the best
// of five tries of about `seconds` each, on `threads` threads that start together.
#include <cstdint>

namespace recsys_opt::machine {

// Floating-point operations a second of fused multiply-adds in registers (an FMA counts 2).
double fp32_flops_per_s(int threads, double seconds);

// The same of bf16 dot products with fp32 sums; 0 where the processor has no such instruction.
double bf16_flops_per_s(int threads, double seconds);

// Bytes a second of reading `bytes` in order, again and again, each thread its own part.
double read_bytes_per_s(int64_t bytes, int threads, double seconds);

// Bytes a second of reading rows of `row_bytes` (a multiple of 64) at random from a table of
// `table_bytes`, fetched ahead as a good lookup does.
double gather_bytes_per_s(int64_t table_bytes, int64_t row_bytes, int threads, double seconds);

}  // namespace recsys_opt::machine
