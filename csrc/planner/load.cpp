#include "planner/load.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace recsys_opt::planner {

std::vector<double> price_grid(const Problem& p, double expected) {
  double high = 0;
  for (const Option& o : p.options) {
    if (o.tiers == Tiers::kSplit) high = std::max(high, saving(o, p.tables[o.table].rate.front()));
  }
  const double low = high * 1e-13;
  std::vector<double> prices{std::numeric_limits<double>::infinity()};
  if (high > 0) {
    const double middle = expected > low && expected < high ? expected : std::sqrt(low * high);
    for (double price = high; price > low;) {
      prices.push_back(price);
      const double away = std::abs(std::log2(price / middle));
      price /= expected > 0 && away < 1.5 ? 1.06 : away < 5 ? 1.3 : 2.0;
    }
  }
  prices.push_back(0);
  return prices;
}

Profiles::Profiles(const Problem& p, const std::vector<double>& prices)
    : problem_(p), at_(prices.size(), PricedClasses(p)), profiles_(p.options.size()) {
  for (size_t l = 0; l < prices.size(); ++l) at_[l].set(prices[l]);
}

const Profile& Profiles::of(int32_t option) {
  Profile& profile = profiles_[option];
  if (!profile.bytes.empty()) return profile;
  const Option& o = problem_.options[option];
  // Of stripes, the first: it has the hottest row.
  const Curve& whole = problem_.tables[o.table];
  const Curve c = o.parts > 1 ? whole.stripe(0, static_cast<int64_t>(o.parts)) : whole;
  profile.total_bytes = c.rows.back() * o.bytes_per_row;
  for (const PricedClasses& at : at_) {
    const Split s = at.split(o, c);
    profile.bytes.push_back(static_cast<float>(s.fast_bytes));
    profile.seconds.push_back(static_cast<float>(s.seconds));
  }
  return profile;
}

Load::Load(int32_t levels, double fast_bytes, double total_bytes)
    : bytes_(levels, 0.0), sums_(levels, 0.0), fast_(fast_bytes), capacity_(total_bytes) {}

void Load::add(const Profile& piece) {
  for (size_t l = 0; l < bytes_.size(); ++l) {
    bytes_[l] += piece.bytes[l];
    sums_[l] += piece.seconds[l];
  }
  total_ += piece.total_bytes;
  settle();
}

void Load::remove(const Profile& piece) {
  for (size_t l = 0; l < bytes_.size(); ++l) {
    bytes_[l] -= piece.bytes[l];
    sums_[l] -= piece.seconds[l];
  }
  total_ -= piece.total_bytes;
  settle();
}

void Load::settle() {
  seconds_ = seconds_with(nullptr);
}

double Load::seconds_with(const Profile* more) const {
  const double infinity = std::numeric_limits<double>::infinity();
  const double total = total_ + (more ? more->total_bytes : 0);
  if (total > capacity_) return infinity;
  const auto bytes = [&](int32_t l) { return bytes_[l] + (more ? more->bytes[l] : 0.0f); };
  const auto seconds = [&](int32_t l) { return sums_[l] + (more ? more->seconds[l] : 0.0f); };
  const double room = fast_ * (1 + 1e-6) + 1;  // rounding of the profiles
  int32_t low = 0, high = static_cast<int32_t>(bytes_.size()) - 1;
  if (bytes(high) <= room) return seconds(high);
  if (bytes(low) > room) return infinity;  // pieces that must be fast
  while (high - low > 1) {
    const int32_t middle = (low + high) / 2;
    (bytes(middle) <= room ? low : high) = middle;
  }
  const double below = bytes(low), above = bytes(high);
  const double share = std::min((room - below) / (above - below), 1.0);
  return seconds(low) + share * (seconds(high) - seconds(low));
}

}  // namespace recsys_opt::planner
