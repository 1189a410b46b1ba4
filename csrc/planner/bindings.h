// What the files of the pybind11 module `_planner` share: arrays as the solver wants them.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "planner/problem.h"

namespace recsys_opt::planner {

template <class T>
using Array = pybind11::array_t<T, pybind11::array::c_style | pybind11::array::forcecast>;

template <class T>
std::vector<T> column(const pybind11::dict& from, const char* key, size_t size) {
  const auto array = from[key].cast<Array<T>>();
  if (static_cast<size_t>(array.size()) != size) {
    throw std::invalid_argument(std::string("planner: ") + key + " has " +
                                std::to_string(array.size()) + " entries, expected " +
                                std::to_string(size));
  }
  return {array.data(), array.data() + size};
}

// The problem from what recsys_opt/planner/solve.py gives.
Problem problem_of(const Array<int64_t>& cell_offsets, const Array<double>& cell_rows,
                   const Array<double>& cell_lookups, const pybind11::dict& options,
                   const std::vector<std::vector<int32_t>>& pinned, int32_t nodes, int32_t per_node,
                   const std::vector<double>& fast_bytes, const std::vector<double>& total_bytes);

// replan_bindings.cpp
void bind_replan(pybind11::module_& m);

}  // namespace recsys_opt::planner
