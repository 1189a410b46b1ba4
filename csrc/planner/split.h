// How the fast tier of each device is shared by the pieces that are on it.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "planner/problem.h"

namespace recsys_opt::planner {

// The rows of a piece of an option.
using PieceRows = std::function<Curve(int32_t option, size_t piece)>;

// The best split of each device for pieces that are placed: [tables][pieces] rows in the fast tier,
// hottest first, not rounded. `option` [tables], `devices` [tables][pieces].
std::vector<std::vector<double>> split_devices(const Problem& problem,
                                               const std::vector<int32_t>& option,
                                               const std::vector<std::vector<int32_t>>& devices,
                                               const PieceRows& rows);

}  // namespace recsys_opt::planner
