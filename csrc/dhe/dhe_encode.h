#pragma once
// The encoding of ids on the CPU; see dhe.h.
#include <cstdint>

#include "dhe/dhe.h"
#include "tt/tt_array.h"

namespace recsys_opt::dhe {

// A table's hash functions, ready for use.
class Hashes {
 public:
  Hashes(const Encoder& encoder, const int64_t* coefficients);

  int64_t size() const { return encoder_.hashes; }

  // The encodings of `count` ids, from hash `begin` to before `end`, both even: a row of `stride`
  // numbers for each.
  void encode(const int64_t* ids, int64_t count, int64_t begin, int64_t end, float* out,
              int64_t stride) const;
  void encode(const int64_t* ids, int64_t count, int64_t begin, int64_t end, double* out,
              int64_t stride) const;

 private:
  template <typename T>
  void encode_any(const int64_t* ids, int64_t count, int64_t begin, int64_t end, T* out,
                  int64_t stride) const;

  Encoder encoder_;
  const int64_t* coefficients_;
  // As doubles, whose products are exact and of which the processor divides several at once; empty
  // where the prime is too large for that.
  tt::Array<double> exact_;
};

}  // namespace recsys_opt::dhe
