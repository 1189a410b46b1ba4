#include "synth/text.h"

#include <charconv>

#include "synth/generator.h"

namespace recsys_opt::synth {
namespace {

constexpr size_t kMostIntegerChars = 11;  // -2147483648
constexpr size_t kValueChars = 8;

// Bijective 32-bit finalizer of MurmurHash3.
uint32_t mix32(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x85ebca6bU;
  x = (x ^ (x >> 13)) * 0xc2b2ae35U;
  return x ^ (x >> 16);
}

char* write_value(uint32_t value, char* to) {
  static const char digits[] = "0123456789abcdef";
  for (int shift = 28; shift >= 0; shift -= 4) *to++ = digits[(value >> shift) & 15];
  return to;
}

}  // namespace

std::string criteo_text(const RowsIn& rows) {
  const int64_t columns = static_cast<int64_t>(rows.never_missing.size());
  const size_t longest = (1 + static_cast<size_t>(rows.dense)) * (kMostIntegerChars + 1) +
                         static_cast<size_t>(columns) * (kValueChars + 1);
  std::string text(static_cast<size_t>(rows.rows) * longest, '\0');
  char* to = text.data();
  for (int64_t r = 0; r < rows.rows; ++r) {
    to = std::to_chars(to, to + kMostIntegerChars, rows.labels[r]).ptr;
    for (int64_t d = 0; d < rows.dense; ++d) {
      *to++ = '\t';
      const int32_t value = rows.integers[r * rows.dense + d];
      if (value != kMissing) to = std::to_chars(to, to + kMostIntegerChars, value).ptr;
    }
    for (int64_t c = 0; c < columns; ++c) {
      *to++ = '\t';
      const auto id = static_cast<uint32_t>(rows.sparse[r * columns + c]);
      if (id == 0 && !rows.never_missing[static_cast<size_t>(c)]) continue;
      to = write_value(mix32(id + static_cast<uint32_t>(c + 1) * 0x9e3779b9U), to);
    }
    *to++ = '\n';
  }
  text.resize(static_cast<size_t>(to - text.data()));
  return text;
}

}  // namespace recsys_opt::synth
