#pragma once
// Rows of frozen tables (tt_prefix.h), compiled once per instruction set.
#include <cstdint>

#include "tt_prefix.h"

namespace recsys_opt::tt {

// Rows to make, taken apart: row i is of prefix[node[i]] and last[digit[i]]. Rows below `known` are
// known already, and what they need is asked for in advance.
struct PrefixRows {
  const int32_t* node;
  const int32_t* digit;
  int64_t known;
};

// out[(i - begin) * stride ..] = row i, for i in [begin, end). scratch: of fp16 tables, a number
// for each of a row of both cores.
template <typename Sum>
using MakeRows = void (*)(const PrefixTable& table, const PrefixRows& rows, int64_t begin,
                          int64_t end, Sum* out, int64_t stride, Sum* scratch);

// What makes a table's rows on this machine. Sum: float for tables of float, bf16 and fp16.
template <typename Sum>
MakeRows<Sum> make_rows_of(const PrefixTable& table, ScalarType type);

// The same with the rows rounded on the way into an output of the table's type; nullptr where the
// machine or the shapes have nothing for it.
using MakeNarrowRows = void (*)(const PrefixTable& table, const PrefixRows& rows, int64_t begin,
                                int64_t end, void* out, int64_t stride);
MakeNarrowRows make_narrow_rows_of(const PrefixTable& table, ScalarType type);

// By instruction set; nullptr where the machine lacks it or has nothing quicker for the shapes than
// the narrower sets.
MakeRows<float> avx512bf16_make_rows(const PrefixTable& table, ScalarType type);
MakeNarrowRows avx512bf16_make_narrow_rows(const PrefixTable& table, ScalarType type);
MakeRows<float> avx512_make_rows(const PrefixTable& table, ScalarType type);
template <typename Sum>
MakeRows<Sum> avx2_make_rows(const PrefixTable& table, ScalarType type);
template <typename Sum>
MakeRows<Sum> portable_make_rows(const PrefixTable& table, ScalarType type);

// Rows of the prefix core are asked for so many bytes ahead of their use.
constexpr int64_t kAheadBytes = 6144;

inline int64_t rows_ahead(int64_t row_bytes) {
  const int64_t rows = kAheadBytes / row_bytes;
  return rows < 2 ? 2 : rows > 24 ? 24 : rows;
}

}  // namespace recsys_opt::tt
