#pragma once
// Reads and updates of rows at random, as lookups make them.
#include <cstdint>

namespace recsys_opt::machine {

struct RowRate {
  double rows_per_s;
  int64_t rows;
};

// Rows a second that `threads` threads read from `memory` at random for about `seconds`; row r has
// the bytes [r * row_bytes, (r + 1) * row_bytes), each thread draws from its own part. update: each
// row is read, changed and written back; where the memory is a mapped file, the time until the
// system has written it counts, too. row_bytes is a multiple of 8.
RowRate row_rate(uint8_t* memory, int64_t bytes, int64_t row_bytes, int threads, double seconds,
                 bool update, bool mapped_file, uint64_t seed);

// Bytes a second of copying one half of `memory` to the other in order, each thread its own part: a
// byte copied counts once.
double copy_bytes_per_s(uint8_t* memory, int64_t bytes, int threads, double seconds);

}  // namespace recsys_opt::machine
