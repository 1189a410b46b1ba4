// pybind11 module `_access`: how often the rows of embedding tables are looked up.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <set>
#include <stdexcept>
#include <string>

#include "access/counters.h"
#include "access/curve.h"
#include "access/ranking.h"
#include "access/sampled.h"

namespace py = pybind11;
using namespace recsys_opt::access;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;

template <class T>
Array<T> array_of(const std::vector<T>& from) {
  return Array<T>(static_cast<py::ssize_t>(from.size()), from.data());
}

Ids ids_of(const py::array& array) {
  Ids ids;
  ids.wide = py::isinstance<py::array_t<int64_t>>(array);
  if (!ids.wide && !py::isinstance<py::array_t<int32_t>>(array))
    throw py::type_error("ids must be arrays of int32 or int64 in the machine's byte order");
  if (array.ndim() != 1) throw py::value_error("ids must be arrays of one dimension");
  ids.data = static_cast<const char*>(array.data());
  ids.stride = array.strides(0);
  ids.count = array.shape(0);
  return ids;
}

std::vector<Ids> all_ids(const std::vector<py::array>& arrays) {
  std::vector<Ids> ids;
  for (const py::array& array : arrays) ids.push_back(ids_of(array));
  return ids;
}

py::object place(const BadId& bad) {
  if (bad.table < 0) return py::none();
  return py::make_tuple(bad.table, bad.position, bad.id);
}

py::object count(const std::vector<Counters*>& tables, const std::vector<py::array>& arrays,
                 int threads) {
  if (tables.size() != arrays.size())
    throw py::value_error(std::to_string(tables.size()) + " tables and ids of " +
                          std::to_string(arrays.size()));
  if (std::set<Counters*>(tables.begin(), tables.end()).size() != tables.size())
    throw py::value_error("the same counters are given twice");
  const std::vector<Ids> ids = all_ids(arrays);
  BadId bad;
  {
    const py::gil_scoped_release released;
    bad = count_all(tables, ids, threads);
  }
  return place(bad);
}

py::tuple largest(const std::vector<py::array>& arrays) {
  const std::vector<Ids> ids = all_ids(arrays);
  BadId bad;
  std::vector<int64_t> found;
  {
    const py::gil_scoped_release released;
    found = largest_ids(ids, &bad);
  }
  return py::make_tuple(found, place(bad));
}

void add_counts(Counters& counters, const py::array& ids, const Array<uint64_t>& counts) {
  const Ids from = ids_of(ids);
  if (from.count != counts.size()) throw py::value_error("ids and counts differ in length");
  const auto* const add = counts.data();
  const py::gil_scoped_release released;
  for (int64_t i = 0; i < from.count; ++i) counters.add_count(from[i], add[i]);
}

Array<uint64_t> carried_pairs(const Counters& counters) {
  Array<uint64_t> out({static_cast<py::ssize_t>(counters.carried().size()), py::ssize_t{2}});
  uint64_t* at = out.mutable_data();
  for (const auto& [row, count] : counters.carried()) {
    *at++ = static_cast<uint64_t>(row);
    *at++ = count;
  }
  return out;
}

void restore(Counters& counters, const Array<uint32_t>& low, const Array<uint64_t>& carried,
             uint64_t lookups) {
  if (low.size() != counters.rows() || carried.ndim() != 2 || carried.shape(1) != 2)
    throw py::value_error("the state is not of a table of " + std::to_string(counters.rows()) +
                          " rows");
  std::map<int64_t, uint64_t> over;
  for (py::ssize_t i = 0; i < carried.shape(0); ++i)
    over[static_cast<int64_t>(carried.at(i, 0))] = carried.at(i, 1);
  counters.restore(low.data(), std::move(over), lookups);
}

py::array unpack_ranking(const Array<uint8_t>& packed, const Array<int64_t>& rows,
                         int64_t num_embeddings) {
  int64_t seen = 0;
  for (py::ssize_t i = 0; i < rows.size(); ++i) seen += rows.at(i);
  // Each id takes a byte or more: a damaged file cannot ask for much memory.
  if (seen < 0 || seen > packed.size())
    throw py::value_error("the packed rows are damaged: they end too early");
  const auto unpack = [&](auto id) -> py::array {
    Array<decltype(id)> out(seen);
    auto* const to = out.mutable_data();
    const py::gil_scoped_release released;
    unpack_ids(packed.data(), packed.size(), rows.data(), rows.size(), num_embeddings, to);
    return out;
  };
  return num_embeddings <= INT32_MAX ? unpack(int32_t{}) : unpack(int64_t{});
}

Array<uint8_t> pack_array(const Array<uint64_t>& numbers) {
  return array_of(pack_numbers(numbers.data(), numbers.size()));
}

Array<uint64_t> unpack_array(const Array<uint8_t>& packed, int64_t count) {
  if (count < 0 || count > packed.size())
    throw py::value_error("the packed rows are damaged: they end too early");
  Array<uint64_t> out(count);
  uint64_t* const to = out.mutable_data();
  const py::gil_scoped_release released;
  unpack_numbers(packed.data(), packed.size(), count, to);
  return out;
}

py::dict ranked(const Counters& early, const Counters& late) {
  Ranked found;
  {
    const py::gil_scoped_release released;
    found = rank_rows(early, late);
  }
  py::dict out;
  out["counts"] = array_of(found.counts);
  out["rows"] = array_of(found.rows);
  out["ids"] = array_of(found.ids);
  out["late"] = array_of(found.late);
  out["early_counts"] = array_of(found.early_counts);
  out["early_rows"] = array_of(found.early_rows);
  out["early_late"] = array_of(found.early_late);
  return out;
}

py::object count_sampled(SampledCounters& counters, const py::array& array, bool late) {
  const Ids ids = ids_of(array);
  int64_t bad;
  {
    const py::gil_scoped_release released;
    bad = counters.add(ids, late);
  }
  if (bad < 0) return py::none();
  return py::make_tuple(bad, ids[bad]);
}

py::dict known_rows(const SampledCounters& counters) {
  std::vector<SampledCounters::Row> rows;
  {
    const py::gil_scoped_release released;
    rows = counters.known();
  }
  const auto n = static_cast<py::ssize_t>(rows.size());
  Array<int64_t> ids(n);
  Array<uint64_t> early(n), late(n), least(n), estimate(n);
  Array<bool> sampled(n);
  for (py::ssize_t i = 0; i < n; ++i) {
    const SampledCounters::Row& row = rows[static_cast<size_t>(i)];
    ids.mutable_at(i) = row.id;
    early.mutable_at(i) = row.early;
    late.mutable_at(i) = row.late;
    least.mutable_at(i) = row.least;
    estimate.mutable_at(i) = counters.estimate(row);
    sampled.mutable_at(i) = counters.is_sampled(row.id);
  }
  py::dict out;
  out["ids"] = ids;
  out["early"] = early;
  out["late"] = late;
  out["least"] = least;
  out["estimate"] = estimate;
  out["sampled"] = sampled;
  return out;
}

void merge_sampled(SampledCounters& counters, int level, uint64_t offset, uint64_t early_lookups,
                   uint64_t late_lookups, const Array<int64_t>& ids, const Array<uint64_t>& early,
                   const Array<uint64_t>& late, const Array<uint64_t>& least) {
  if (early.size() != ids.size() || late.size() != ids.size() || least.size() != ids.size())
    throw py::value_error("ids, early, late and least differ in length");
  std::vector<SampledCounters::Row> rows;
  for (py::ssize_t i = 0; i < ids.size(); ++i)
    rows.push_back({ids.at(i), early.at(i), late.at(i), least.at(i)});
  const py::gil_scoped_release released;
  counters.merge(level, offset, early_lookups, late_lookups, rows);
}

Array<double> majorant(const Array<double>& x, const Array<double>& y) {
  if (x.size() != y.size()) throw py::value_error("x and y differ in length");
  return array_of(concave_majorant(x.data(), y.data(), x.size()));
}

py::tuple thinned(const Array<int64_t>& counts, const Array<int64_t>& rows, double late,
                  int64_t exact) {
  if (counts.size() != rows.size()) throw py::value_error("counts and rows differ in length");
  if (!(late > 0 && late < 1)) throw py::value_error("late must be between 0 and 1");
  const Thinned found = thin(counts.data(), rows.data(), counts.size(), late, exact);
  return py::make_tuple(array_of(found.rows), array_of(found.late));
}

}  // namespace

PYBIND11_MODULE(_access, m) {
  m.doc() = "How often the rows of embedding tables are looked up";
  m.attr("MAX_ROWS") = Counters::kMaxRows;
  py::class_<Counters>(m, "Counters")
      .def(py::init<int64_t, uint64_t>(), py::arg("rows"), py::arg("carry_at") = Counters::kCarryAt)
      .def_property_readonly("rows", &Counters::rows)
      .def_property_readonly("lookups", &Counters::lookups)
      .def_property_readonly("low",
                             [](const py::object& self) {
                               auto& counters = self.cast<Counters&>();
                               return py::array_t<uint32_t>(counters.rows(), counters.low(), self);
                             })
      .def_property_readonly("carried", &carried_pairs)
      .def("add_counts", &add_counts, py::arg("ids"), py::arg("counts"))
      .def("restore", &restore, py::arg("low"), py::arg("carried"), py::arg("lookups"));
  py::class_<SampledCounters>(m, "SampledCounters")
      .def(py::init<int64_t, int64_t, int64_t>(), py::arg("rows"), py::arg("sample_slots"),
           py::arg("head_slots"))
      .def_property_readonly("rows", &SampledCounters::rows)
      .def_property_readonly("level", &SampledCounters::level)
      .def_property_readonly("offset", &SampledCounters::offset)
      .def_property_readonly("head_rows", &SampledCounters::head_rows)
      .def("lookups", &SampledCounters::lookups, py::arg("late"))
      .def("add", &count_sampled, py::arg("ids"), py::arg("late"))
      .def("known", &known_rows)
      .def("merge", &merge_sampled, py::arg("level"), py::arg("offset"), py::arg("early_lookups"),
           py::arg("late_lookups"), py::arg("ids"), py::arg("early"), py::arg("late"),
           py::arg("least"));
  m.def("count", &count, py::arg("tables"), py::arg("ids"), py::arg("threads"));
  m.def("largest_ids", &largest, py::arg("ids"));
  m.def("ranked", &ranked, py::arg("early"), py::arg("late"));
  m.def("unpack_ranking", &unpack_ranking, py::arg("packed"), py::arg("rows"),
        py::arg("num_embeddings"));
  m.def("pack_numbers", &pack_array, py::arg("numbers"));
  m.def("unpack_numbers", &unpack_array, py::arg("packed"), py::arg("count"));
  m.def("concave_majorant", &majorant, py::arg("x"), py::arg("y"));
  m.def("thinned", &thinned, py::arg("counts"), py::arg("rows"), py::arg("late"), py::arg("exact"));
}
