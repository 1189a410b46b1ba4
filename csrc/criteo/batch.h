// The rows of one chunk, parsed into columns.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "criteo/chunker.h"
#include "criteo/row.h"
#include "criteo/vocabulary.h"

namespace criteo {

enum class DenseTransform {
  kDlrm,   // f32 log(x + 1), negative and missing: 0
  kRaw32,  // the integers as i32, missing 0; what lies outside 32 bits is a bad line
};

struct BadLine {
  int64_t line;  // counted from 1; in a Batch, from the chunk's start
  std::string found;
};
inline constexpr size_t kBadLinesKept = 5;

class Batch {
 public:
  Batch(bool labelled, DenseTransform transform) : labelled_(labelled), transform_(transform) {}

  // Parses a chunk; where `stop_at_bad`, up to the first bad line.
  void parse(const Chunk& chunk, bool stop_at_bad);

  // The ids of all rows, row by row, of the values hashed with hashes[column].
  const int32_t* hashed(const std::vector<HashIds>& hashes);

  int64_t rows = 0;
  int64_t lines = 0;
  int64_t bad_lines = 0;
  std::vector<BadLine> bad;  // the first kBadLinesKept
  int32_t minimum = 0;       // kRaw32: the least integer

  const uint32_t* dense() const { return dense_.get(); }  // [rows, kIntegers], f32 or i32 bits
  const int32_t* labels() const { return labels_.get(); }
  const uint32_t* values() const { return values_.get(); }  // kValues columns, stride() apart
  int64_t stride() const { return stride_; }
  const uint32_t* missing() const { return missing_.get(); }  // [rows], Row::missing_values

 private:
  void reserve(int64_t text_bytes);
  void reject(std::string found, bool stop_at_bad, bool& stop);
  std::string append(const Row& row);

  const bool labelled_;
  const DenseTransform transform_;
  int64_t capacity_ = 0;
  int64_t stride_ = 0;
  // Plain arrays: pages that no row needs are never touched.
  std::unique_ptr<uint32_t[]> dense_, values_, missing_;
  std::unique_ptr<int32_t[]> labels_, ids_;
};

}  // namespace criteo
