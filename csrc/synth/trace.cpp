#include "synth/trace.h"

#include <bit>
#include <cmath>
#include <numeric>
#include <stdexcept>
#include <string>

#include "synth/hash.h"

namespace recsys_opt::synth {

TraceTable::TraceTable(int64_t rows, uint64_t seed, uint64_t table,
                       const std::vector<int64_t>& width, const std::vector<double>& mass,
                       double coverage, double pooling_factor)
    : rows_(rows), coverage_(coverage), width_(width), cells_(mass) {
  if (width.size() != mass.size())
    throw std::invalid_argument("trace: width and mass must be as long as each other");
  if (!(coverage >= 0 && coverage <= 1))
    throw std::invalid_argument("trace: coverage must be between 0 and 1");
  if (!(pooling_factor >= 1))
    throw std::invalid_argument("trace: pooling_factor must be at least 1");
  int64_t next = 0;
  for (const int64_t w : width) {
    if (w < 1) throw std::invalid_argument("trace: a cell is empty");
    first_.push_back(next);
    next += w;
  }
  if (next > rows)
    throw std::invalid_argument("trace: cells hold " + std::to_string(next) + " rows of " +
                                std::to_string(rows));
  const uint64_t key = stream_key(seed, table);
  length_key_ = stream_key(key, 1);
  value_key_ = stream_key(key, 2);
  log_continue_ = pooling_factor > 1 ? std::log(1 - 1 / pooling_factor) : 0;
  const auto n = static_cast<uint64_t>(rows);
  multiplier_ = n == 1 ? 0 : 1 + hash(key, 3) % (n - 1);
  while (n > 1 && std::gcd(multiplier_, n) != 1) multiplier_ = multiplier_ % (n - 1) + 1;
  shift_ = hash(key, 4) % n;
}

void TraceTable::lengths(int64_t batch, int64_t samples, int32_t* out) const {
  const uint64_t key = stream_key(length_key_, static_cast<uint64_t>(batch));
  for (int64_t i = 0; i < samples; ++i) {
    const uint64_t h = hash(key, static_cast<uint64_t>(i));
    if (unit(h) >= coverage_) {
      out[i] = 0;
    } else if (log_continue_ == 0) {
      out[i] = 1;
    } else {
      const double u = 1 - unit(mix(h));  // in (0, 1]
      out[i] = 1 + static_cast<int32_t>(std::min(std::log(u) / log_continue_, 1e6));
    }
  }
}

void TraceTable::values(int64_t batch, int64_t count, int64_t* out) const {
  const uint64_t key = stream_key(value_key_, static_cast<uint64_t>(batch));
  const auto n = static_cast<uint64_t>(rows_);
  for (int64_t i = 0; i < count; ++i) {
    double within;
    const uint32_t cell = cells_.find(unit(hash(key, static_cast<uint64_t>(i))), &within);
    const auto rank = static_cast<uint64_t>(first_[cell]) +
                      static_cast<uint64_t>(within * static_cast<double>(width_[cell]));
    out[i] = static_cast<int64_t>((rank * multiplier_ + shift_) % n);
  }
}

std::vector<int64_t> reuse_histogram(const int64_t* values, int64_t count, int64_t rows) {
  std::vector<uint32_t> touched(static_cast<size_t>(rows));
  for (int64_t i = 0; i < count; ++i) {
    if (values[i] < 0 || values[i] >= rows)
      throw std::invalid_argument("values[" + std::to_string(i) +
                                  "] = " + std::to_string(values[i]) + " is outside the table's " +
                                  std::to_string(rows) + " rows");
    ++touched[static_cast<size_t>(values[i])];
  }
  std::vector<int64_t> bins(kReuseBins);
  for (const uint32_t times : touched)
    if (times > 0) ++bins[std::min<int>(std::bit_width(times - 1), kReuseBins - 1)];
  return bins;
}

}  // namespace recsys_opt::synth
