// Generated rows as Criteo's text.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace recsys_opt::synth {

// Rows as `Generator::rows` makes them.
struct RowsIn {
  const int32_t* labels;    // [n]
  const int32_t* integers;  // [n, dense], kMissing where missing
  const int32_t* sparse;    // [n, never_missing.size()] ids
  int64_t rows;
  int64_t dense;
  std::vector<bool> never_missing;  // in other columns id 0 is "missing"
};

// A line a row: label, integers and values with tabs between, nothing where a value is missing. The
// value of an id is 8 hexadecimal digits that no other id of its column has.
std::string criteo_text(const RowsIn& rows);

}  // namespace recsys_opt::synth
