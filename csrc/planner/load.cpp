#include "planner/load.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace recsys_opt::planner {

std::vector<double> price_grid(const Problem& p, double expected, double seconds) {
  constexpr double kNext = 1e-5;  // to nothing
  double high = 0;
  for (const Option& o : p.options) {
    if (o.tiers == Tiers::kSplit) high = std::max(high, saving(o, p.tables[o.table].rate.front()));
  }
  std::vector<double> prices{high * 1.001};
  if (high > 0) {
    const double fast = *std::max_element(p.devices.fast_bytes.begin(), p.devices.fast_bytes.end());
    double low = std::max(kNext * seconds / std::max(fast, 1.0), high * 1e-13);
    if (expected > 0) low = std::min(low, expected / 2);
    for (double price = high; price > low;) {
      prices.push_back(price);
      const double away = expected > 0 ? std::abs(std::log2(price / expected)) : 0;
      // The expected price itself is on the grid.
      const double next = price / (expected > 0 && away < 1.5  ? 1.06
                                   : expected <= 0 || away < 5 ? 1.12
                                                               : 1.3);
      price = price > expected * (1 + 1e-9) && next < expected ? expected : next;
    }
    prices.push_back(0);
  }
  return prices;
}

Profiles::Profiles(const Problem& p, std::vector<double> prices)
    : problem_(p), prices_(std::move(prices)), at_(prices_.size(), PricedClasses(p)) {
  for (size_t l = 0; l < prices_.size(); ++l) at_[l].set(prices_[l]);
  int32_t count = 0;
  for (const Option& o : p.options) {
    first_.push_back(count);
    stripes_.push_back(static_cast<int32_t>(o.parts));
    count += std::min(stripes_.back(), kStripes);
  }
  profiles_.resize(count);
}

const Profile& Profiles::make(int32_t option, int32_t kind) {
  Profile& profile = profiles_[first_[option] + kind];
  const Option& o = problem_.options[option];
  const Curve& whole = problem_.tables[o.table];
  const Curve stripe =
      o.parts > 1 ? whole.stripe(kind, stripes_[option]) : Curve(nullptr, nullptr, 0);
  const Curve& rows = o.parts > 1 ? stripe : whole;
  profile.total_bytes = rows.rows.back() * o.bytes_per_row;
  if (o.tiers == Tiers::kFast) profile.must_be_fast = profile.total_bytes;
  profile.weight.reserve(prices_.size());
  int64_t cells = o.tiers == Tiers::kFast ? rows.cells() : 0;
  for (size_t l = 0; l < prices_.size(); ++l) {
    if (o.tiers == Tiers::kSplit) {
      const double least = at_[l].rate(o);
      while (cells < rows.cells() && rows.rate[cells] >= least) ++cells;
    }
    const Split s = split_curve(rows, o, cells);
    profile.weight.push_back(s.seconds + prices_[l] * s.fast_bytes);
  }
  return profile;
}

// A hair more than there is: sums of what comes and goes are rounded.
Load::Load(const std::vector<double>& prices, double fast_bytes, double total_bytes)
    : fast_(fast_bytes * (1 + 1e-12) + 1e-3),
      capacity_(total_bytes * (1 + 1e-12) + 1e-3),
      level_(static_cast<int32_t>(prices.size()) - 1) {
  for (double price : prices) value_.push_back(-price * fast_bytes);
}

void Load::add(const Profile& piece) {
  for (size_t l = 0; l < value_.size(); ++l) value_[l] += piece.weight[l];
  total_ += piece.total_bytes;
  must_ += piece.must_be_fast;
  settle();
}

void Load::remove(const Profile& piece) {
  for (size_t l = 0; l < value_.size(); ++l) value_[l] -= piece.weight[l];
  total_ -= piece.total_bytes;
  must_ -= piece.must_be_fast;
  settle();
}

void Load::settle() {
  int32_t level = 0;
  seconds_ = climb([](int32_t) { return 0.0; }, &level);
  level_ = level;
  if (!has_room(0, 0)) seconds_ = std::numeric_limits<double>::infinity();
}

double Load::seconds_with(const Profile& more) const {
  if (!has_room(more)) return std::numeric_limits<double>::infinity();
  return climb([&](int32_t l) { return more.weight[l]; });
}

}  // namespace recsys_opt::planner
