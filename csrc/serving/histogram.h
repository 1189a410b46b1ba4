// A histogram of times on a fine logarithmic scale.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <vector>

namespace recsys_opt::serving {

// 512 cells per factor of two, from a nanosecond up: a quantile is within .1 %.
class Histogram {
 public:
  Histogram() : counts_(kOctaves << kBits) {}
  void add(double seconds) {
    ++counts_[cell(seconds)];
    ++total_;
    sum_ += seconds;
    if (seconds > most_) most_ = seconds;
  }
  int64_t total() const { return total_; }
  double mean() const { return total_ ? sum_ / static_cast<double>(total_) : 0.0; }
  double most() const { return most_; }
  // NaN for an empty one.
  double quantile(double q) const {
    if (total_ == 0) return std::nan("");
    const auto rank = static_cast<int64_t>(std::ceil(q * static_cast<double>(total_)));
    int64_t seen = 0;
    for (std::size_t i = 0; i < counts_.size(); ++i) {
      if (counts_[i] == 0) continue;
      seen += counts_[i];
      if (seen >= rank) {
        const double share =
            1 - (static_cast<double>(seen - rank) + .5) / static_cast<double>(counts_[i]);
        return std::min(most_, edge(i) + share * (edge(i + 1) - edge(i)));
      }
    }
    return most_;
  }

 private:
  static constexpr int kBits = 9, kOctaves = 48;
  static constexpr uint64_t kFirst = std::bit_cast<uint64_t>(0x1p-30) >> (52 - kBits);
  static std::size_t cell(double seconds) {
    if (!(seconds > 0x1p-30)) return 0;
    const uint64_t cell = (std::bit_cast<uint64_t>(seconds) >> (52 - kBits)) - kFirst;
    return cell < (uint64_t{kOctaves} << kBits) ? cell : (kOctaves << kBits) - 1;
  }
  static double edge(std::size_t cell) {
    return cell == 0 ? 0.0 : std::bit_cast<double>((cell + kFirst) << (52 - kBits));
  }

  std::vector<int64_t> counts_;
  int64_t total_ = 0;
  double sum_ = 0, most_ = 0;
};

}  // namespace recsys_opt::serving
