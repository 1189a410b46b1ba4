#include "planner/solve.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace recsys_opt::planner {
namespace {

struct Placed {
  int32_t table;
  size_t piece;
};

Curve piece_rows(const Problem& p, const Option& o, size_t piece) {
  const Curve& whole = p.tables[o.table];
  return o.parts > 1 ? whole.stripe(static_cast<int64_t>(piece), static_cast<int64_t>(o.parts))
                     : whole;
}

// Fills one device: cells of all its pieces in the order of what a byte of them saves.
void split_device(const Problem& p, const Assignment& a, const std::vector<Placed>& pieces,
                  double fast_bytes, std::vector<std::vector<double>>* hot_rows) {
  struct Cell {
    double saving;
    uint32_t piece;
    double rows;
  };
  std::vector<Cell> cells;
  double room = fast_bytes;
  for (uint32_t i = 0; i < pieces.size(); ++i) {
    const Option& o = p.options[a.option[pieces[i].table]];
    double& hot = (*hot_rows)[pieces[i].table][pieces[i].piece];
    hot = 0;
    if (o.tiers == Tiers::kSlow) continue;
    if (o.tiers == Tiers::kFast) {
      const Curve whole = piece_rows(p, o, pieces[i].piece);
      hot = whole.rows.back();
      room -= hot * o.bytes_per_row;
      continue;
    }
    const Curve c = piece_rows(p, o, pieces[i].piece);
    for (int64_t k = 0; k < c.cells(); ++k) {
      cells.push_back({saving(o, c.rate[k]), i, c.rows[k + 1] - c.rows[k]});
    }
  }
  std::stable_sort(cells.begin(), cells.end(),
                   [](const Cell& x, const Cell& y) { return x.saving > y.saving; });
  for (const Cell& cell : cells) {
    const Option& o = p.options[a.option[pieces[cell.piece].table]];
    const double rows = std::min(cell.rows, std::max(room, 0.0) / o.bytes_per_row);
    (*hot_rows)[pieces[cell.piece].table][pieces[cell.piece].piece] += rows;
    room -= rows * o.bytes_per_row;
    if (rows < cell.rows) break;
  }
}

}  // namespace

std::vector<std::vector<double>> split_devices(const Problem& p, const Assignment& a) {
  std::vector<std::vector<Placed>> on(p.devices.count());
  std::vector<std::vector<double>> hot(a.devices.size());
  for (size_t t = 0; t < a.devices.size(); ++t) {
    hot[t].resize(a.devices[t].size());
    for (size_t i = 0; i < a.devices[t].size(); ++i) {
      on[a.devices[t][i]].push_back({static_cast<int32_t>(t), i});
    }
  }
  for (size_t d = 0; d < on.size(); ++d) split_device(p, a, on[d], p.devices.fast_bytes[d], &hot);
  return hot;
}

Solution solve(const Problem& p, const Limits& limits) {
  const double infinity = std::numeric_limits<double>::infinity();
  const std::vector<double> least = least_seconds(p);
  Bound bound = pooled_bound(p, least, infinity);
  Solution solution;
  Search search(p, least, bound.price, bound.seconds, limits.seed);
  search.construct(bound.seconds, true);
  search.construct(bound.seconds, false);
  if (std::isfinite(search.best().seconds)) {
    const auto enough = [&] { return bound.seconds * (1 + limits.gap); };
    search.improve({limits.trials / 4, enough()});
    if (search.best().seconds > enough()) bound = pooled_bound(p, least, search.best().seconds);
    solution.pooled = bound.seconds;
    if (search.best().seconds > enough() && limits.rounds > 0) {
      bound = pattern_bound(p, least, bound, search.best().seconds, limits.rounds);
    }
    search.improve({limits.trials - limits.trials / 4, enough()});
    bound.seconds = std::min(bound.seconds, search.best().seconds);
  }
  solution.assignment = search.best();
  solution.bound = bound.seconds;
  solution.price = bound.price;
  if (solution.assignment.unplaced < 0) solution.hot_rows = split_devices(p, solution.assignment);
  return solution;
}

}  // namespace recsys_opt::planner
