// A distribution over ids as runs ("cells") of equally likely ids, drawn by the inverse of its
// step-wise linear distribution function: contiguous in u, which the functional dependences rely
// on.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <vector>

namespace recsys_opt::synth {

class StepTable {
 public:
  StepTable() = default;

  // `mass` [cells] >= 0, of any positive sum.
  explicit StepTable(const std::vector<double>& mass) {
    double sum = 0;
    for (double m : mass) {
      if (!(m >= 0)) throw std::invalid_argument("a cell's mass is negative or not a number");
      sum += m;
    }
    if (!(sum > 0)) throw std::invalid_argument("a distribution's masses sum to 0");
    steps_.resize(mass.size());
    double start = 0;
    for (size_t i = 0; i < mass.size(); ++i) {
      steps_[i] = {start, mass[i] > 0 ? sum / mass[i] : 0.0};
      start += mass[i] / sum;
    }
    const size_t last_positive =
        mass.rend() - std::find_if(mass.rbegin(), mass.rend(), [](double m) { return m > 0; }) - 1;
    last_ = static_cast<uint32_t>(last_positive);
    // guide_[g]: the cell in which u = g / guides lies; a scan forward from there finds u's own.
    size_t guides = 64;
    while (guides < 2 * mass.size() && guides < 4096) guides *= 2;
    guide_.resize(guides);
    uint32_t cell = 0;
    for (size_t g = 0; g < guides; ++g) {
      const double u = static_cast<double>(g) / static_cast<double>(guides);
      while (cell < last_ && steps_[cell + 1].start <= u) ++cell;
      guide_[g] = cell;
    }
    scale_ = static_cast<double>(guides);
  }

  // The cell of u in [0, 1), and where in the cell u lies, in [0, 1).
  uint32_t find(double u, double* within) const {
    uint32_t cell = guide_[static_cast<size_t>(u * scale_)];
    while (cell < last_ && steps_[cell + 1].start <= u) ++cell;
    const double part = (u - steps_[cell].start) * steps_[cell].inverse_mass;
    *within = std::clamp(part, 0.0, 0x1.fffffffffffffp-1);
    return cell;
  }

  bool empty() const { return steps_.empty(); }

 private:
  struct Step {
    double start;
    double inverse_mass;
  };
  std::vector<Step> steps_;
  std::vector<uint32_t> guide_;
  double scale_ = 0;
  uint32_t last_ = 0;
};

}  // namespace recsys_opt::synth
