// pybind11 module `_replay`: where lookups go under a plan.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <limits>
#include <memory>
#include <stdexcept>
#include <string>

#include "replay/table_counter.h"

namespace py = pybind11;
using namespace recsys_opt::replay;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;

void require(bool holds, const std::string& what) {
  if (!holds) throw std::invalid_argument("replay: " + what);
}

template <class Id>
std::unique_ptr<TableCounter> make_counter(const Array<Id>& ranking, int64_t rows,
                                           const Array<int64_t>& hot_rows) {
  require(ranking.ndim() == 1 && rows >= 1, "ranking must be a vector of the rows of a table");
  require(hot_rows.ndim() == 2 && hot_rows.size() >= 1, "hot_rows must be [parts, stripes]");
  const int64_t parts = hot_rows.shape(0), stripes = hot_rows.shape(1);
  require(stripes * (parts + 1) < std::numeric_limits<uint32_t>::max(), "too many stripes");
  const Id* const ids = ranking.data();
  const int64_t* const hot = hot_rows.data();
  const int64_t ranked = ranking.size();
  const py::gil_scoped_release release;
  return std::make_unique<TableCounter>(ids, ranked, rows, stripes, parts, hot);
}

template <class Id>
int64_t count(TableCounter& counter, const Array<Id>& ids, const Array<int64_t>& bounds,
              Array<int64_t>& lookups, Array<int64_t>& distinct) {
  require(ids.ndim() == 1 && bounds.ndim() == 1 && bounds.size() >= 2,
          "ids and bounds must be vectors, bounds of one block at least");
  const int64_t blocks = bounds.size() - 1;
  for (const auto* out : {&lookups, &distinct}) {
    require(out->ndim() == 2 && out->shape(0) == blocks && out->shape(1) == counter.slots(),
            "lookups and distinct must be [blocks, slots]");
  }
  const int64_t* const bound = bounds.data();
  for (int64_t b = 0; b <= blocks; ++b) {
    require(bound[b] >= (b ? bound[b - 1] : 0) && bound[b] <= ids.size(),
            "bounds must ascend within the ids");
  }
  int64_t* const l = lookups.mutable_data();
  int64_t* const d = distinct.mutable_data();
  const Id* const id = ids.data();
  const py::gil_scoped_release release;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t bad = counter.count(id + bound[b], bound[b + 1] - bound[b],
                                      l + b * counter.slots(), d + b * counter.slots());
    if (bad >= 0) return bound[b] + bad;
  }
  return -1;
}

}  // namespace

PYBIND11_MODULE(_replay, m) {
  m.doc() = "Where lookups go under a plan";
  py::class_<TableCounter>(m, "TableCounter")
      .def(py::init(&make_counter<int32_t>), py::arg("ranking").noconvert(), py::arg("rows"),
           py::arg("hot_rows"))
      .def(py::init(&make_counter<int64_t>), py::arg("ranking").noconvert(), py::arg("rows"),
           py::arg("hot_rows"))
      .def_property_readonly("slots", &TableCounter::slots)
      .def("next_round", &TableCounter::next_round)
      .def("count", &count<int32_t>, py::arg("ids").noconvert(), py::arg("bounds"),
           py::arg("lookups").noconvert(), py::arg("distinct").noconvert())
      .def("count", &count<int64_t>, py::arg("ids").noconvert(), py::arg("bounds"),
           py::arg("lookups").noconvert(), py::arg("distinct").noconvert());
}
