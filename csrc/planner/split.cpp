#include "planner/split.h"

#include <algorithm>
#include <utility>

namespace recsys_opt::planner {
namespace {

struct Held {
  const Option* option;
  Curve rows;
  double* hot_rows;
};

// Fills one device: cells of all its pieces in the order of what a byte of them saves.
void split_device(const std::vector<Held>& pieces, double fast_bytes) {
  struct Cell {
    double saving;
    uint32_t piece;
    double rows;
  };
  std::vector<Cell> cells;
  double room = fast_bytes;
  for (uint32_t i = 0; i < pieces.size(); ++i) {
    const Option& o = *pieces[i].option;
    const Curve& c = pieces[i].rows;
    if (o.tiers == Tiers::kFast) {
      *pieces[i].hot_rows = c.rows.back();
      room -= c.rows.back() * o.bytes_per_row;
    }
    if (o.tiers != Tiers::kSplit) continue;
    for (int64_t k = 0; k < c.cells(); ++k) {
      cells.push_back({saving(o, c.rate[k]), i, c.rows[k + 1] - c.rows[k]});
    }
  }
  std::stable_sort(cells.begin(), cells.end(),
                   [](const Cell& x, const Cell& y) { return x.saving > y.saving; });
  for (const Cell& cell : cells) {
    const Held& piece = pieces[cell.piece];
    const double rows = std::min(cell.rows, std::max(room, 0.0) / piece.option->bytes_per_row);
    *piece.hot_rows += rows;
    room -= rows * piece.option->bytes_per_row;
    if (rows < cell.rows) break;
  }
}

}  // namespace

std::vector<std::vector<double>> split_devices(const Problem& p, const std::vector<int32_t>& option,
                                               const std::vector<std::vector<int32_t>>& devices,
                                               const PieceRows& rows) {
  std::vector<std::vector<std::pair<size_t, size_t>>> on(p.devices.count());  // (table, piece)
  std::vector<std::vector<double>> hot(devices.size());
  for (size_t t = 0; t < devices.size(); ++t) {
    hot[t].assign(devices[t].size(), 0.0);
    for (size_t i = 0; i < devices[t].size(); ++i) on[devices[t][i]].push_back({t, i});
  }
  std::vector<Held> held;
  for (size_t d = 0; d < on.size(); ++d) {
    held.clear();
    for (const auto& [t, i] : on[d]) {
      held.push_back({&p.options[option[t]], rows(option[t], i), &hot[t][i]});
    }
    split_device(held, p.devices.fast_bytes[d]);
  }
  return hot;
}

}  // namespace recsys_opt::planner
