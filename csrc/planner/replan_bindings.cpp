#include <algorithm>
#include <utility>

#include "planner/bindings.h"
#include "planner/replan.h"

namespace py = pybind11;

namespace recsys_opt::planner {
namespace {

// recsys_opt/planner/moves.py says what the entries are.
Moves moves_of(const Problem& p, const py::dict& from) {
  Moves m;
  const size_t tables = p.tables.size(), options = p.options.size();
  m.old_option = column<int32_t>(from, "old_option", tables);
  m.old_devices = from["old_devices"].cast<std::vector<std::vector<int32_t>>>();
  m.bytes = column<double>(from, "bytes", options);
  if (m.old_devices.size() != tables) {
    throw std::invalid_argument("planner: old_devices has the wrong length");
  }
  for (size_t t = 0; t < tables; ++t) {
    const auto& on = m.old_devices[t];
    auto& piece = m.old_piece.emplace_back(p.devices.count(), -1);
    for (size_t j = 0; j < on.size(); ++j) {
      if (on[j] < 0 || on[j] >= p.devices.count()) {
        throw std::invalid_argument("planner: old_devices names device " + std::to_string(on[j]));
      }
      piece[on[j]] = static_cast<int32_t>(j);
    }
    const int32_t o = m.old_option[t];
    if (o >= 0 && (o < p.first_option[t] || o >= p.first_option[t + 1] ||
                   static_cast<size_t>(p.options[o].pieces) != on.size())) {
      throw std::invalid_argument("planner: old_option of table " + std::to_string(t) +
                                  " is none of its own");
    }
  }
  const auto kept = from["kept"].cast<std::vector<Array<double>>>();
  const auto dealt = from["dealt"].cast<std::vector<Array<double>>>();
  if (kept.size() != options || dealt.size() != options) {
    throw std::invalid_argument("planner: kept or dealt has the wrong length");
  }
  for (size_t o = 0; o < options; ++o) {
    const Option& option = p.options[o];
    const auto cells = static_cast<size_t>(p.tables[option.table].cells());
    m.kept.emplace_back(kept[o].data(), kept[o].data() + kept[o].size());
    m.dealt.emplace_back(dealt[o].data(), dealt[o].data() + dealt[o].size());
    const size_t pairs = static_cast<size_t>(option.pieces) * m.old_devices[option.table].size();
    const size_t rows = static_cast<size_t>(option.parts) * cells;
    if (m.kept[o].size() != pairs || (!m.dealt[o].empty() && m.dealt[o].size() != rows)) {
      throw std::invalid_argument("planner: kept or dealt of option " + std::to_string(o) +
                                  " has the wrong size");
    }
  }
  return m;
}

// A problem, and where its tables are now.
class Replanner {
 public:
  Replanner(const Array<int64_t>& cell_offsets, const Array<double>& cell_rows,
            const Array<double>& cell_lookups, const py::dict& options,
            const std::vector<std::vector<int32_t>>& pinned, int32_t nodes, int32_t per_node,
            const std::vector<double>& fast_bytes, const std::vector<double>& total_bytes,
            const py::dict& moves)
      : problem_(problem_of(cell_offsets, cell_rows, cell_lookups, options, pinned, nodes, per_node,
                            fast_bytes, total_bytes)),
        moves_(moves_of(problem_, moves)) {}

  // The plan of now, and the best within each limit; none where there is no room for that of now.
  py::list search(const std::vector<int32_t>& guide_option,
                  const std::vector<std::vector<int32_t>>& guide_devices,
                  const std::vector<double>& limits, const std::vector<int64_t>& trials,
                  double price, double bound, uint64_t seed) const {
    const size_t tables = problem_.tables.size();
    if (guide_option.size() != tables || guide_devices.size() != tables ||
        trials.size() != limits.size() || !std::is_sorted(limits.begin(), limits.end())) {
      throw std::invalid_argument("planner: guide, trials or limits has the wrong length or order");
    }
    for (size_t t = 0; t < tables; ++t) {
      const int32_t o = guide_option[t];
      const bool own = o >= problem_.first_option[t] && o < problem_.first_option[t + 1];
      if (!own || static_cast<size_t>(problem_.options[o].pieces) != guide_devices[t].size()) {
        throw std::invalid_argument("planner: guide_option of table " + std::to_string(t) +
                                    " is none of its own");
      }
      for (int32_t d : guide_devices[t]) {
        if (d < 0 || d >= problem_.devices.count()) {
          throw std::invalid_argument("planner: guide_devices names device " + std::to_string(d));
        }
      }
    }
    std::vector<Placement> found;
    std::vector<std::vector<std::vector<double>>> hot_rows;
    {
      py::gil_scoped_release release;
      Replan replan(problem_, moves_, price, bound, seed);
      const bool placed = replan.start();
      if (placed) found.push_back(replan.best());
      for (size_t l = 0; placed && l < limits.size(); ++l) {
        replan.follow({guide_option, guide_devices}, limits[l]);
        replan.improve(limits[l], trials[l]);
        found.push_back(replan.best());
      }
      const PieceRows rows = [this](int32_t option, size_t piece) {
        return piece_rows(problem_, moves_, option, piece);
      };
      for (const Placement& placement : found) {
        hot_rows.push_back(split_devices(problem_, placement.option, placement.devices, rows));
      }
    }
    py::list placements;
    for (size_t i = 0; i < found.size(); ++i) {
      py::dict one;
      one["option"] = found[i].option;
      one["devices"] = found[i].devices;
      one["hot_rows"] = hot_rows[i];
      one["moved_bytes"] = found[i].moved_bytes;
      placements.append(one);
    }
    return placements;
  }

  // Seconds, and the price of a byte of the fast tier.
  std::pair<double, double> free_bound() const {
    py::gil_scoped_release release;
    const Bound found = planner::free_bound(problem_, moves_);
    return {found.seconds, found.price};
  }

  double bound(double most_bytes, double price, double free_bound, double known) const {
    py::gil_scoped_release release;
    return limited_bound(problem_, moves_, price, most_bytes, free_bound, known);
  }

 private:
  Problem problem_;
  Moves moves_;
};

}  // namespace

void bind_replan(py::module_& m) {
  py::class_<Replanner>(m, "Replanner")
      .def(py::init<const Array<int64_t>&, const Array<double>&, const Array<double>&,
                    const py::dict&, const std::vector<std::vector<int32_t>>&, int32_t, int32_t,
                    const std::vector<double>&, const std::vector<double>&, const py::dict&>(),
           py::arg("cell_offsets"), py::arg("cell_rows"), py::arg("cell_lookups"),
           py::arg("options"), py::arg("pinned"), py::arg("nodes"), py::arg("per_node"),
           py::arg("fast_bytes"), py::arg("total_bytes"), py::arg("moves"))
      .def("search", &Replanner::search, py::arg("guide_option"), py::arg("guide_devices"),
           py::arg("limits"), py::arg("trials"), py::arg("price"), py::arg("bound"),
           py::arg("seed"))
      .def("free_bound", &Replanner::free_bound)
      .def("bound", &Replanner::bound, py::arg("most_bytes"), py::arg("price"),
           py::arg("free_bound"), py::arg("known"));
}

}  // namespace recsys_opt::planner
