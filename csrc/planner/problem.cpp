#include "planner/problem.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace recsys_opt::planner {

Curve::Curve(const double* cell_rows, const double* cell_lookups, int64_t cells) {
  rate.reserve(cells);
  rows.push_back(0);
  lookups.push_back(0);
  distinct.push_back(0);
  for (int64_t i = 0; i < cells; ++i) {
    const double r = cell_lookups[i] / cell_rows[i];
    rate.push_back(r);
    rows.push_back(rows.back() + cell_rows[i]);
    lookups.push_back(lookups.back() + cell_lookups[i]);
    distinct.push_back(distinct.back() - cell_rows[i] * std::expm1(-r));
  }
}

Curve Curve::stripe(int64_t s, int64_t k) const {
  const auto below = [&](double rank) {  // ranks of the stripe below it
    return std::max(
        std::ceil((std::nearbyint(rank) - static_cast<double>(s)) / static_cast<double>(k)), 0.0);
  };
  std::vector<double> counts(rate.size());
  for (int64_t i = 0; i < cells(); ++i) counts[i] = below(rows[i + 1]) - below(rows[i]);
  return part(counts.data());
}

Curve Curve::part(const double* counts) const {
  Curve found(nullptr, nullptr, 0);
  for (int64_t i = 0; i < cells(); ++i) {
    const double n = counts[i];
    if (n <= 0) continue;
    found.rate.push_back(rate[i]);
    found.rows.push_back(found.rows.back() + n);
    found.lookups.push_back(found.lookups.back() + n * rate[i]);
    const double of_cell = n / (rows[i + 1] - rows[i]);
    found.distinct.push_back(found.distinct.back() + of_cell * (distinct[i + 1] - distinct[i]));
  }
  return found;
}

int64_t Curve::cells_at_least(double least) const {
  return std::partition_point(rate.begin(), rate.end(), [=](double r) { return r >= least; }) -
         rate.begin();
}

Split split_curve(const Curve& c, const Option& o, int64_t cells, double parts) {
  const double lookups = c.lookups.back(), distinct = c.distinct.back();
  const double seconds =
      c.lookups[cells] * o.read_fast + (lookups - c.lookups[cells]) * o.read_slow +
      c.distinct[cells] * o.update_fast + (distinct - c.distinct[cells]) * o.update_slow;
  return {c.rows[cells] / parts * o.bytes_per_row, o.communication + seconds / parts};
}

double seconds_at_bytes(const Curve& c, const Option& o, double fast_bytes, double parts) {
  if (o.tiers == Tiers::kFast) return split_curve(c, o, c.cells(), parts).seconds;
  if (o.tiers == Tiers::kSlow) return split_curve(c, o, 0, parts).seconds;
  const double rows = std::min(fast_bytes / o.bytes_per_row * parts, c.rows.back());
  const int64_t cell = std::upper_bound(c.rows.begin(), c.rows.end(), rows) - c.rows.begin() - 1;
  const double whole = split_curve(c, o, cell, parts).seconds;
  if (cell >= c.cells()) return whole;
  const double in_cell = (rows - c.rows[cell]) / parts * o.bytes_per_row;
  return whole - in_cell * saving(o, c.rate[cell]);
}

double saving(const Option& o, double rate) {
  return (rate * (o.read_slow - o.read_fast) -
          std::expm1(-rate) * (o.update_slow - o.update_fast)) /
         o.bytes_per_row;
}

double rate_at_price(const Option& o, double price) {
  if (o.tiers == Tiers::kFast || price <= 0) return 0;
  const double infinity = std::numeric_limits<double>::infinity();
  const double read = o.read_slow - o.read_fast, update = o.update_slow - o.update_fast;
  const double wanted = price * o.bytes_per_row;
  if (o.tiers == Tiers::kSlow || std::isinf(price) || (read <= 0 && wanted >= update))
    return infinity;
  // rate * read + (1 - exp(-rate)) * update = wanted: the left side is concave and rises. Newton
  // from the left of the root, where the tangent lies above it, stays on the left.
  double rate = wanted / (read + update);
  for (int step = 0; step < 100; ++step) {
    const double miss = wanted - (rate * read - std::expm1(-rate) * update);
    const double more = miss / (read + std::exp(-rate) * update);
    if (!(more > rate * 1e-15)) break;
    rate += more;
  }
  return rate;
}

PricedClasses::PricedClasses(const Problem& problem) : problem_(problem) {
  for (const Option& o : problem.options) {
    if (o.cost_class >= static_cast<int32_t>(example_.size()))
      example_.resize(o.cost_class + 1, nullptr);
    if (o.tiers == Tiers::kSplit) example_[o.cost_class] = &o;
  }
  rate_.resize(example_.size());
}

void PricedClasses::set(double price) {
  price_ = price;
  for (size_t i = 0; i < example_.size(); ++i) {
    rate_[i] = example_[i] ? rate_at_price(*example_[i], price) : 0;
  }
}

Split PricedClasses::split(const Option& o) const {
  return split(o, problem_.tables[o.table], o.parts);
}

Split PricedClasses::split(const Option& o, const Curve& c, double parts) const {
  const int64_t cells = o.tiers == Tiers::kFast   ? c.cells()
                        : o.tiers == Tiers::kSlow ? 0
                                                  : c.cells_at_least(rate_[o.cost_class]);
  return split_curve(c, o, cells, parts);
}

}  // namespace recsys_opt::planner
