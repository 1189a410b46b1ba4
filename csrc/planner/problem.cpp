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

int64_t Curve::cells_at_least(double least) const {
  return std::partition_point(rate.begin(), rate.end(), [=](double r) { return r >= least; }) -
         rate.begin();
}

Split split_at_cell(const Problem& problem, const Option& o, int64_t cells) {
  const Curve& c = problem.tables[o.table];
  const double lookups = c.lookups.back(), distinct = c.distinct.back();
  const double seconds =
      c.lookups[cells] * o.read_fast + (lookups - c.lookups[cells]) * o.read_slow +
      c.distinct[cells] * o.update_fast + (distinct - c.distinct[cells]) * o.update_slow;
  return {c.rows[cells] / o.parts * o.bytes_per_row, o.communication + seconds / o.parts};
}

double seconds_at_bytes(const Problem& problem, const Option& o, double fast_bytes) {
  const Curve& c = problem.tables[o.table];
  if (o.tiers == Tiers::kFast) return split_at_cell(problem, o, c.cells()).seconds;
  if (o.tiers == Tiers::kSlow) return split_at_cell(problem, o, 0).seconds;
  const double rows = std::min(fast_bytes / o.bytes_per_row * o.parts, c.rows.back());
  const int64_t cell = std::upper_bound(c.rows.begin(), c.rows.end(), rows) - c.rows.begin() - 1;
  const double whole = split_at_cell(problem, o, cell).seconds;
  if (cell >= c.cells()) return whole;
  const double in_cell = (rows - c.rows[cell]) / o.parts * o.bytes_per_row;
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
  const Curve& c = problem_.tables[o.table];
  switch (o.tiers) {
    case Tiers::kFast:
      return split_at_cell(problem_, o, c.cells());
    case Tiers::kSlow:
      return split_at_cell(problem_, o, 0);
    case Tiers::kSplit:
      break;
  }
  return split_at_cell(problem_, o, c.cells_at_least(rate_[o.cost_class]));
}

}  // namespace recsys_opt::planner
