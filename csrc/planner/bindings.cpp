// pybind11 module `_planner`: arrays in, a plan and its bound out. recsys_opt/planner/problem.py
// makes the arrays.
#include "planner/bindings.h"

#include <algorithm>
#include <cmath>

#include "planner/assignment.h"
#include "planner/solve.h"

namespace py = pybind11;
using namespace recsys_opt::planner;

namespace recsys_opt::planner {

Problem problem_of(const Array<int64_t>& cell_offsets, const Array<double>& cell_rows,
                   const Array<double>& cell_lookups, const py::dict& options,
                   const std::vector<std::vector<int32_t>>& pinned, int32_t nodes, int32_t per_node,
                   const std::vector<double>& fast_bytes, const std::vector<double>& total_bytes) {
  Problem p;
  const auto tables = static_cast<size_t>(cell_offsets.size() - 1);
  for (size_t t = 0; t < tables; ++t) {
    const int64_t begin = cell_offsets.data()[t], end = cell_offsets.data()[t + 1];
    if (begin < 0 || end <= begin || end > cell_rows.size() || end > cell_lookups.size()) {
      throw std::invalid_argument("planner: the cells of table " + std::to_string(t) +
                                  " are out of range");
    }
    p.tables.emplace_back(cell_rows.data() + begin, cell_lookups.data() + begin, end - begin);
  }
  const auto count = static_cast<size_t>(options["table"].cast<Array<int32_t>>().size());
  const auto table = column<int32_t>(options, "table", count);
  const auto place = column<int32_t>(options, "place", count);
  const auto pieces = column<int32_t>(options, "pieces", count);
  const auto tiers = column<int32_t>(options, "tiers", count);
  const auto parts = column<double>(options, "parts", count);
  const auto bytes_per_row = column<double>(options, "bytes_per_row", count);
  const auto read_fast = column<double>(options, "read_fast", count);
  const auto read_slow = column<double>(options, "read_slow", count);
  const auto update_fast = column<double>(options, "update_fast", count);
  const auto update_slow = column<double>(options, "update_slow", count);
  const auto communication = column<double>(options, "communication", count);
  const auto cost_class = column<int32_t>(options, "cost_class", count);
  p.first_option.assign(tables + 1, 0);
  for (size_t o = 0; o < count; ++o) {
    if (table[o] < 0 || static_cast<size_t>(table[o]) >= tables || (o && table[o] < table[o - 1])) {
      throw std::invalid_argument("planner: options are not in the order of tables");
    }
    p.options.push_back({table[o], static_cast<Place>(place[o]), pieces[o],
                         static_cast<Tiers>(tiers[o]), parts[o], bytes_per_row[o], read_fast[o],
                         read_slow[o], update_fast[o], update_slow[o], communication[o],
                         cost_class[o]});
    p.first_option[table[o] + 1] = static_cast<int32_t>(o + 1);
  }
  for (size_t t = 0; t < tables; ++t) {
    if (p.first_option[t + 1] <= p.first_option[t]) {
      throw std::invalid_argument("planner: table " + std::to_string(t) + " has no option");
    }
  }
  p.pinned = pinned;
  p.devices = {nodes, per_node, fast_bytes, total_bytes};
  if (p.pinned.size() != tables || fast_bytes.size() != static_cast<size_t>(p.devices.count()) ||
      total_bytes.size() != fast_bytes.size()) {
    throw std::invalid_argument("planner: pinned, fast_bytes or total_bytes has the wrong length");
  }
  return p;
}

}  // namespace recsys_opt::planner

namespace {

py::dict solve_arrays(const Array<int64_t>& cell_offsets, const Array<double>& cell_rows,
                      const Array<double>& cell_lookups, const py::dict& options,
                      const std::vector<std::vector<int32_t>>& pinned, int32_t nodes,
                      int32_t per_node, const std::vector<double>& fast_bytes,
                      const std::vector<double>& total_bytes, int64_t trials, int32_t rounds,
                      double gap, uint64_t seed) {
  const Problem problem = problem_of(cell_offsets, cell_rows, cell_lookups, options, pinned, nodes,
                                     per_node, fast_bytes, total_bytes);
  Solution solution;
  {
    py::gil_scoped_release release;
    const auto poll = [] {  // ^C
      py::gil_scoped_acquire acquire;
      if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    };
    solution = solve(problem, {trials, rounds, gap, seed, poll});
  }
  py::dict result;
  result["unplaced"] = solution.assignment.unplaced;
  result["option"] = solution.assignment.option;
  result["devices"] = solution.assignment.devices;
  result["hot_rows"] = solution.hot_rows;
  result["seconds"] = solution.assignment.seconds;
  result["bound"] = solution.bound;
  result["pooled_bound"] = solution.pooled;
  result["price"] = solution.price;
  return result;
}

std::vector<int64_t> assign_array(const Array<double>& weight) {
  if (weight.ndim() != 2 || weight.shape(0) > weight.shape(1)) {
    throw std::invalid_argument("planner: weight must be [rows, columns] with rows <= columns");
  }
  const std::vector<double> values(weight.data(), weight.data() + weight.size());
  if (!std::all_of(values.begin(), values.end(), [](double v) { return std::isfinite(v); })) {
    throw std::invalid_argument("planner: weight must be finite");
  }
  return assign(values, weight.shape(0), weight.shape(1));
}

}  // namespace

PYBIND11_MODULE(_planner, m) {
  m.doc() = "Placing the rows of embedding tables: bound and search.";
  m.def("solve", &solve_arrays, py::arg("cell_offsets"), py::arg("cell_rows"),
        py::arg("cell_lookups"), py::arg("options"), py::arg("pinned"), py::arg("nodes"),
        py::arg("per_node"), py::arg("fast_bytes"), py::arg("total_bytes"), py::arg("trials"),
        py::arg("rounds"), py::arg("gap"), py::arg("seed"));
  bind_replan(m);
  m.def("assign", &assign_array, py::arg("weight"));
}
