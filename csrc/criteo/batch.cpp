#include "criteo/batch.h"

#include <array>
#include <bit>
#include <cmath>
#include <limits>

namespace criteo {
namespace {

// log(x + 1) in f32, rounded once from f64.
float log1_f32(int64_t x) {
  return static_cast<float>(std::log(static_cast<double>(static_cast<float>(x) + 1.0f)));
}

constexpr int64_t kLogTable = 4096;
const std::array<float, kLogTable>& log_table() {
  static const auto table = [] {
    std::array<float, kLogTable> t;
    for (int64_t x = 0; x < kLogTable; ++x) t[static_cast<size_t>(x)] = log1_f32(x);
    return t;
  }();
  return table;
}

}  // namespace

void Batch::reserve(int64_t text_bytes) {
  const int64_t shortest =
      (labelled_ ? 2 : 0) + kIntegers + kValues;  // bytes of a line, '\n' included
  const int64_t needed = text_bytes / shortest + 1;
  if (needed <= capacity_) return;
  capacity_ = needed;
  // Columns 3 cache lines off a multiple of a page: equal rows of 26 columns fall into different
  // cache sets.
  stride_ = needed < 1024 ? needed : (needed + 1023) / 1024 * 1024 + 48;
  const auto size = static_cast<size_t>(capacity_);
  dense_.reset(new uint32_t[size * kIntegers]);
  values_.reset(new uint32_t[static_cast<size_t>(stride_) * kValues]);
  missing_.reset(new uint32_t[size]);
  labels_.reset(new int32_t[size]);
  ids_.reset();
}

void Batch::parse(const Chunk& chunk, bool stop_at_bad) {
  reserve(chunk.size);
  rows = lines = bad_lines = 0;
  bad.clear();
  minimum = std::numeric_limits<int32_t>::max();
  Row row;
  bool stop = false;
  const char* p = chunk.text.data();
  const char* const end = p + chunk.size;
  if (chunk.first_is_long) {
    ++lines;
    reject(long_line(), stop_at_bad, stop);
    ++p;
  }
  while (p < end && !stop) {
    ++lines;
    if (const char* next = parse_line(p, labelled_, row); next != nullptr) [[likely]] {
      p = next;
    } else {
      const auto* line_end =
          static_cast<const char*>(__builtin_memchr(p, '\n', static_cast<size_t>(end - p)));
      std::string found = parse_line_strictly(p, line_end, labelled_, row);
      p = line_end + 1;
      if (!found.empty()) {
        reject(std::move(found), stop_at_bad, stop);
        continue;
      }
    }
    if (std::string found = append(row); !found.empty()) [[unlikely]]
      reject(std::move(found), stop_at_bad, stop);
  }
}

void Batch::reject(std::string found, bool stop_at_bad, bool& stop) {
  ++bad_lines;
  if (bad.size() < kBadLinesKept) bad.push_back({lines, std::move(found)});
  stop = stop_at_bad;
}

inline std::string Batch::append(const Row& row) {
  const auto r = static_cast<size_t>(rows);
  uint32_t* dense = &dense_[r * kIntegers];
  if (transform_ == DenseTransform::kDlrm) {
    const float* table = log_table().data();
    for (int i = 0; i < kIntegers; ++i) {
      const int64_t x = row.integers[i] < 0 ? 0 : row.integers[i];
      dense[i] = std::bit_cast<uint32_t>(x < kLogTable ? table[x] : log1_f32(x));
    }
  } else {
    for (int i = 0; i < kIntegers; ++i) {
      const auto x = static_cast<int32_t>(row.integers[i]);
      if (x != row.integers[i])
        return "column I" + std::to_string(i + 1) + " is " + std::to_string(row.integers[i]) +
               ", beyond the 32 bits of the torchrec transform (the dlrm transform takes 64)";
      dense[i] = static_cast<uint32_t>(x);
    }
    for (int i = 0; i < kIntegers; ++i)
      minimum = std::min(minimum, static_cast<int32_t>(row.integers[i]));
  }
  for (int c = 0; c < kValues; ++c) values_[static_cast<size_t>(c * stride_) + r] = row.values[c];
  missing_[r] = row.missing_values;
  labels_[r] = row.label;
  ++rows;
  return std::string();
}

const int32_t* Batch::hashed(const std::vector<HashIds>& hashes) {
  if (!ids_) ids_.reset(new int32_t[static_cast<size_t>(capacity_) * kValues]);
  constexpr int64_t kBlock =
      128;  // rows whose ids stay in the first-level cache while columns fill them
  for (int64_t begin = 0; begin < rows; begin += kBlock) {
    const int64_t end = std::min(rows, begin + kBlock);
    for (int c = 0; c < kValues; ++c) {
      const HashIds& hash = hashes[static_cast<size_t>(c)];
      const uint32_t* values = &values_[static_cast<size_t>(c * stride_)];
      for (int64_t r = begin; r < end; ++r)
        ids_[static_cast<size_t>(r * kValues + c)] =
            (missing_[static_cast<size_t>(r)] >> c) & 1 ? kMissingId : hash(values[r]);
    }
  }
  return ids_.get();
}

}  // namespace criteo
