#include "planner/bound.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace recsys_opt::planner {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct PriceRange {
  double low, high;
};

PriceRange price_range(const Problem& p) {
  PriceRange range{kInfinity, 0};
  for (const Option& o : p.options) {
    const Curve& c = p.tables[o.table];
    if (o.tiers != Tiers::kSplit) continue;
    range.high = std::max(range.high, saving(o, c.rate.front()));
    for (auto r = c.rate.rbegin(); r != c.rate.rend(); ++r) {
      if (*r <= 0) continue;
      const double least = saving(o, *r);
      if (least > 0) range.low = std::min(range.low, least);
      break;
    }
  }
  return range;
}

// The best bound over prices with options of least seconds above `limit` left out.
Bound bound_within(const Problem& p, PricedClasses& at, const std::vector<double>& least,
                   double limit, PriceRange range) {
  double fast = 0;
  for (double bytes : p.devices.fast_bytes) fast += bytes;
  const double devices = p.devices.count();
  Bound best;
  const auto look = [&](double price) {
    at.set(price);
    const Pooled sum = pooled_weight(p, at, least, limit);
    const double seconds = (sum.weight - price * fast) / devices;
    if (seconds > best.seconds) best = {seconds, price};
    return sum.fast_bytes > fast;
  };
  if (!look(0) || !(range.low < range.high)) return best;
  double low = std::log(range.low / 2), high = std::log(range.high * 2);
  for (int step = 0; step < 60 && high - low > 1e-7; ++step) {
    const double middle = 0.5 * (low + high);
    (look(std::exp(middle)) ? low : high) = middle;
  }
  return best;
}

}  // namespace

Pooled pooled_weight(const Problem& p, const PricedClasses& at, const std::vector<double>& least,
                     double limit) {
  Pooled sum{0, 0};
  for (size_t t = 0; t + 1 < p.first_option.size(); ++t) {
    double best = kInfinity, bytes = 0;
    for (int32_t o = p.first_option[t]; o < p.first_option[t + 1]; ++o) {
      if (least[o] > limit) continue;
      const Split s = at.split(p.options[o]);
      const double pieces = p.options[o].pieces;
      const double weight = pieces * (s.seconds + at.price() * s.fast_bytes);
      if (weight < best) {
        best = weight;
        bytes = pieces * s.fast_bytes;
      }
    }
    sum.weight += best;
    sum.fast_bytes += bytes;
  }
  return sum;
}

std::vector<double> least_seconds(const Problem& p) {
  const Devices& d = p.devices;
  const double fast = *std::max_element(d.fast_bytes.begin(), d.fast_bytes.end());
  const double total = *std::max_element(d.total_bytes.begin(), d.total_bytes.end());
  std::vector<double> least;
  least.reserve(p.options.size());
  for (const Option& o : p.options) {
    const double bytes = p.bytes(o);
    const bool fits = bytes <= (o.tiers == Tiers::kFast ? fast : total) && o.pieces <= d.count();
    least.push_back(fits ? seconds_at_bytes(p, o, std::min(bytes, fast)) : kInfinity);
  }
  return least;
}

Bound pooled_bound(const Problem& p, const std::vector<double>& least, double known) {
  PricedClasses at(p);
  const PriceRange range = price_range(p);
  double low = 0;  // no plan is faster: every table's quickest piece takes as long
  double longest = 0;
  for (size_t t = 0; t + 1 < p.first_option.size(); ++t) {
    const auto begin = least.begin() + p.first_option[t],
               end = least.begin() + p.first_option[t + 1];
    low = std::max(low, *std::min_element(begin, end));
    for (auto s = begin; s != end; ++s) {
      if (std::isfinite(*s)) longest = std::max(longest, *s);
    }
  }
  Bound best = bound_within(p, at, least, std::max(longest, low), range);
  best.seconds = std::max(best.seconds, low);
  double high = std::isfinite(known) ? known : longest;
  if (best.seconds >= high) return best;
  // T contradicts itself where the bound without its forbidden options exceeds it.
  for (int step = 0; step < 20 && high > best.seconds * (1 + 1e-5); ++step) {
    const double middle = step == 0 ? best.seconds * (1 + 1e-9) : 0.5 * (best.seconds + high);
    const Bound found = bound_within(p, at, least, middle, range);
    if (found.seconds > middle) {
      best = {middle, found.price};
    } else {
      high = middle;
      if (step == 0) break;
    }
  }
  return best;
}

}  // namespace recsys_opt::planner
