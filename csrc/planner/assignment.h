// The assignment problem: every row gets a column of its own, for the largest sum of weights.
#pragma once

#include <cstdint>
#include <vector>

namespace recsys_opt::planner {

// The column of each row. `weight` is [rows, columns] with rows <= columns, finite. Shortest
// augmenting paths with potentials (Jonker & Volgenant 1987), in rows^2 * columns steps.
std::vector<int64_t> assign(const std::vector<double>& weight, int64_t rows, int64_t columns);

}  // namespace recsys_opt::planner
