// pybind11 module `_replay`: where lookups go under a plan, or through a cache.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <limits>
#include <memory>
#include <stdexcept>
#include <string>

#include "replay/row_cache.h"
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

template <class Id>
void add_lookups(RowCaches& caches, const Array<Id>& ids, int64_t first, int64_t last,
                 int64_t base) {
  require(ids.ndim() == 1, "ids must be a vector");
  require(first <= last && base >= 0 && base + (last - first) <= caches.rows(),
          "the ids from first to last must have rows from base on");
  const Id* const id = ids.data();
  const int64_t count = ids.size();
  const py::gil_scoped_release release;
  caches.add(id, count, first, last, base);
}

py::array_t<int64_t> end_batch(RowCaches& caches) {
  std::array<CacheTraffic, 2> found;
  {
    const py::gil_scoped_release release;
    found = caches.end_batch();
  }
  py::array_t<int64_t> result({2, 6});
  auto to = result.mutable_unchecked<2>();
  for (py::ssize_t policy = 0; policy < 2; ++policy) {
    const CacheTraffic& t = found[static_cast<size_t>(policy)];
    py::ssize_t at = 0;
    for (const int64_t n :
         {t.lookups, t.rows, t.loads, t.evictions, t.direct_lookups, t.direct_rows}) {
      to(policy, at++) = n;
    }
  }
  return result;
}

}  // namespace

PYBIND11_MODULE(_replay, m) {
  m.doc() = "Where lookups go under a plan, or through a cache";
  m.attr("WAYS") = kWays;
  py::class_<RowCaches>(m, "RowCaches")
      .def(py::init<int64_t, int64_t>(), py::arg("rows"), py::arg("sets"),
           py::call_guard<py::gil_scoped_release>())
      .def("add", &add_lookups<int32_t>, py::arg("ids").noconvert(), py::arg("first"),
           py::arg("last"), py::arg("base"))
      .def("add", &add_lookups<int64_t>, py::arg("ids").noconvert(), py::arg("first"),
           py::arg("last"), py::arg("base"))
      .def("end_batch", &end_batch);
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
