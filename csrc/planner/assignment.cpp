#include "planner/assignment.h"

#include <algorithm>
#include <limits>

namespace recsys_opt::planner {

std::vector<int64_t> assign(const std::vector<double>& weight, int64_t rows, int64_t columns) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  // Costs are weights with the sign changed. Column 0 and row 0 are outside the problem: the row
  // that is being placed starts from column 0.
  std::vector<double> row_price(rows + 1, 0.0), column_price(columns + 1, 0.0);
  std::vector<int64_t> holder(columns + 1, 0), via(columns + 1);
  std::vector<double> distance(columns + 1);
  std::vector<char> settled(columns + 1);
  for (int64_t row = 1; row <= rows; ++row) {
    holder[0] = row;
    std::fill(distance.begin(), distance.end(), kInfinity);
    std::fill(settled.begin(), settled.end(), 0);
    int64_t at = 0;
    do {
      settled[at] = 1;
      const int64_t from = holder[at];
      const double* costs = weight.data() + (from - 1) * columns;
      double least = kInfinity;
      int64_t next = 0;
      for (int64_t c = 1; c <= columns; ++c) {
        if (settled[c]) continue;
        const double through = -costs[c - 1] - row_price[from] - column_price[c];
        if (through < distance[c]) {
          distance[c] = through;
          via[c] = at;
        }
        if (distance[c] < least) {
          least = distance[c];
          next = c;
        }
      }
      for (int64_t c = 0; c <= columns; ++c) {
        if (settled[c]) {
          row_price[holder[c]] += least;
          column_price[c] -= least;
        } else {
          distance[c] -= least;
        }
      }
      at = next;
    } while (holder[at] != 0);
    for (; at != 0; at = via[at]) holder[at] = holder[via[at]];
  }
  std::vector<int64_t> column_of(rows);
  for (int64_t c = 1; c <= columns; ++c) {
    if (holder[c] != 0) column_of[holder[c] - 1] = c - 1;
  }
  return column_of;
}

}  // namespace recsys_opt::planner
