#include "access/curve.h"

#include <algorithm>
#include <cmath>

namespace recsys_opt::access {

std::vector<double> concave_majorant(const double* x, const double* y, int64_t count) {
  std::vector<int64_t> hull;  // corners
  for (int64_t i = 0; i < count; ++i) {
    while (hull.size() >= 2) {
      const int64_t a = hull[hull.size() - 2], b = hull.back();
      // b stays while the slope falls there.
      if ((y[b] - y[a]) * (x[i] - x[b]) > (y[i] - y[b]) * (x[b] - x[a])) break;
      hull.pop_back();
    }
    hull.push_back(i);
  }
  std::vector<double> out(static_cast<size_t>(count));
  for (size_t h = 0; h + 1 < hull.size(); ++h) {
    const int64_t a = hull[h], b = hull[h + 1];
    const double slope = x[b] > x[a] ? (y[b] - y[a]) / (x[b] - x[a]) : 0;
    for (int64_t i = a; i < b; ++i) out[i] = y[a] + slope * (x[i] - x[a]);
  }
  if (count > 0) out[count - 1] = y[count - 1];
  return out;
}

Thinned thin(const int64_t* counts, const int64_t* rows, int64_t runs, double late, int64_t exact) {
  Thinned out;
  if (runs == 0) return out;
  const double early = 1 - late;
  const auto most = std::max<int64_t>(std::min(counts[0], exact),
                                      std::llround(early * static_cast<double>(counts[0])));
  out.rows.assign(static_cast<size_t>(most) + 1, 0.0);
  out.late.assign(static_cast<size_t>(most) + 1, 0.0);
  for (int64_t r = 0; r < runs; ++r) {
    const auto n = static_cast<double>(counts[r]), weight = static_cast<double>(rows[r]);
    const double mean = n * early;
    if (counts[r] > exact) {
      const auto b = static_cast<size_t>(std::llround(mean));
      out.rows[b] += weight;
      out.late[b] += weight * (n - static_cast<double>(b));
      continue;
    }
    // The binomial distribution from its mode outwards, eight standard deviations far.
    const auto mode = std::min<int64_t>(counts[r], static_cast<int64_t>((n + 1) * early));
    const double reach = 8 * std::sqrt(n * early * late) + 8;
    const double at_mode =
        std::exp(std::lgamma(n + 1) - std::lgamma(static_cast<double>(mode) + 1) -
                 std::lgamma(n - static_cast<double>(mode) + 1) +
                 static_cast<double>(mode) * std::log(early) +
                 (n - static_cast<double>(mode)) * std::log(late));
    const auto give = [&](int64_t b, double p) {
      out.rows[b] += weight * p;
      out.late[b] += weight * p * (n - static_cast<double>(b));
    };
    double p = at_mode;
    for (int64_t b = mode; b <= counts[r] && static_cast<double>(b - mode) <= reach; ++b) {
      give(b, p);
      p *= (n - static_cast<double>(b)) / (static_cast<double>(b) + 1) * early / late;
    }
    p = at_mode;
    for (int64_t b = mode; b > 0 && static_cast<double>(mode - b) <= reach; --b) {
      p *= static_cast<double>(b) / (n - static_cast<double>(b) + 1) * late / early;
      give(b - 1, p);
    }
  }
  return out;
}

}  // namespace recsys_opt::access
