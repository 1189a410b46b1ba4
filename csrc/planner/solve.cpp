#include "planner/solve.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace recsys_opt::planner {
namespace {

constexpr size_t kFew = 64;  // tables
constexpr int64_t kRuns = 32;

}  // namespace

std::vector<std::vector<double>> split_devices(const Problem& p, const Assignment& a) {
  return split_devices(p, a.option, a.devices, [&](int32_t o, size_t piece) {
    const Option& option = p.options[o];
    const Curve& whole = p.tables[option.table];
    const auto stripes = static_cast<int64_t>(option.parts);
    return stripes > 1 ? whole.stripe(static_cast<int64_t>(piece) % stripes, stripes) : whole;
  });
}

Solution solve(const Problem& p, const Limits& limits) {
  const LeastSeconds least(p);
  Bound bound = pooled_bound(p, least);
  Solution solution;
  Search search(p, least, bound, limits.seed);
  search.construct(bound.seconds, true);
  search.construct(bound.seconds, false);
  if (std::isfinite(search.best().seconds)) {
    const auto enough = [&] { return bound.seconds * (1 + limits.gap); };
    search.improve({limits.trials / 4, enough(), limits.poll});
    solution.pooled = bound.seconds;
    const auto raise = [&] {
      if (search.best().seconds > enough() && limits.rounds > 0)
        bound = pattern_bound(p, least, bound, search.best().seconds, limits.rounds, limits.poll);
    };
    raise();
    const double known = search.best().seconds;
    // With few tables one annealing ends in a valley as often as not.
    const int64_t runs = p.tables.size() <= kFew ? kRuns : 1;
    for (int64_t run = 0; run < runs; ++run) {
      search.improve({(limits.trials - limits.trials / 4) / runs, enough(), limits.poll});
    }
    if (search.best().seconds < known) raise();  // fewer ways to cut tables are left
    bound.seconds = std::min(bound.seconds, search.best().seconds);
  }
  solution.assignment = search.best();
  solution.bound = bound.seconds;
  solution.price = bound.price;
  if (solution.assignment.unplaced < 0) solution.hot_rows = split_devices(p, solution.assignment);
  return solution;
}

}  // namespace recsys_opt::planner
