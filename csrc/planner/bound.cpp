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

// The best bound over prices with options of least seconds above `limit` left out. `guess`: a price
// near which it may be; 0: none.
Bound bound_within(const Problem& p, PricedClasses& at, const LeastSeconds& least, double limit,
                   PriceRange range, double guess) {
  constexpr double kNear = 0.05, kExact = 1e-5;
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
  if (guess > 0) {
    const double below = std::log(guess) - kNear, above = std::log(guess) + kNear;
    if (below > low) (look(std::exp(below)) ? low : high) = below;
    if (above > low && above < high) (look(std::exp(above)) ? low : high) = above;
  }
  while (high - low > kExact) {
    const double middle = 0.5 * (low + high);
    (look(std::exp(middle)) ? low : high) = middle;
  }
  return best;
}

}  // namespace

Pooled pooled_weight(const Problem& p, const PricedClasses& at, const LeastSeconds& least,
                     double limit) {
  // Options of one class split the table at the same row.
  struct Whole {
    size_t table;
    double seconds, fast_rows;
  };
  std::vector<Whole> wholes(at.classes(), {p.tables.size(), 0, 0});
  Pooled sum{0, 0};
  for (size_t t = 0; t + 1 < p.first_option.size(); ++t) {
    double best = kInfinity, bytes = 0;
    const Curve& curve = p.tables[t];
    for (int32_t i = p.first_option[t]; i < p.first_option[t + 1]; ++i) {
      if (least.hottest[i] > limit) continue;
      const Option& o = p.options[i];
      Split s;
      if (o.tiers == Tiers::kSplit) {
        Whole& whole = wholes[o.cost_class];
        if (whole.table != t) {
          const int64_t cells = curve.cells_at_least(at.rate(o));
          whole = {t, split_curve(curve, o, cells).seconds - o.communication, curve.rows[cells]};
        }
        s = {whole.fast_rows / o.parts * o.bytes_per_row,
             o.communication + whole.seconds / o.parts};
      } else {
        s = at.split(o);
      }
      s = least.capped(s, i);
      const double pieces = o.pieces;
      const double weight = pieces * at.weight(s);
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

LeastSeconds::LeastSeconds(const Problem& p) {
  const Devices& d = p.devices;
  fast_bytes = *std::max_element(d.fast_bytes.begin(), d.fast_bytes.end());
  const double total = *std::max_element(d.total_bytes.begin(), d.total_bytes.end());
  for (const Option& o : p.options) {
    const Curve& curve = p.tables[o.table];
    const double bytes = p.bytes(o);
    if (bytes > (o.tiers == Tiers::kFast ? fast_bytes : total) || o.pieces > d.count()) {
      average.push_back(kInfinity);
      hottest.push_back(kInfinity);
      continue;
    }
    const double fast = std::min(bytes, fast_bytes);
    average.push_back(seconds_at_bytes(curve, o, fast, o.parts));
    const auto stripes = static_cast<int64_t>(o.parts);
    hottest.push_back(stripes > 1 ? seconds_at_bytes(curve.stripe(0, stripes), o, fast)
                                  : average.back());
  }
}

Bound pooled_bound(const Problem& p, const LeastSeconds& least) {
  PricedClasses at(p);
  const PriceRange range = price_range(p);
  double low = 0;  // no plan is faster: every table's quickest piece takes as long
  double longest = 0;
  for (size_t t = 0; t + 1 < p.first_option.size(); ++t) {
    const auto begin = least.hottest.begin() + p.first_option[t],
               end = least.hottest.begin() + p.first_option[t + 1];
    low = std::max(low, *std::min_element(begin, end));
    for (auto s = begin; s != end; ++s) {
      if (std::isfinite(*s)) longest = std::max(longest, *s);
    }
  }
  Bound best = bound_within(p, at, least, std::max(longest, low), range, 0);
  best.seconds = std::max(best.seconds, low);
  double high = longest;
  if (best.seconds >= high) return best;
  // T contradicts itself where the bound without its forbidden options exceeds it.
  for (int step = 0; step < 40 && high > best.seconds * (1 + 1e-5); ++step) {
    const double middle = step == 0 ? best.seconds * (1 + 1e-9) : 0.5 * (best.seconds + high);
    const Bound found = bound_within(p, at, least, middle, range, best.price);
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
