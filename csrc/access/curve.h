// Curves of access: which share of the lookups the hottest rows take.
#pragma once

#include <cstdint>
#include <vector>

namespace recsys_opt::access {

// The least concave function that is nowhere below the points (x[i], y[i]), at x; x ascending.
// Its slopes are the isotonic regression of the slopes between the points.
std::vector<double> concave_majorant(const double* x, const double* y, int64_t count);

// What is to be expected where each lookup is put into the later part with probability `late`, by
// lookups b = 0, 1, ... in the earlier part.
struct Thinned {
  std::vector<double> rows;  // expected rows with b lookups in the earlier part
  std::vector<double> late;  // expected lookups of theirs in the later part
};

// counts, rows [runs]: rows that have so many lookups in both parts, counts descending. Of counts
// above `exact` all are taken to split as expected.
Thinned thin(const int64_t* counts, const int64_t* rows, int64_t runs, double late, int64_t exact);

}  // namespace recsys_opt::access
