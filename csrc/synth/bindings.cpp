// pybind11 module `_synth`: Criteo-like rows, and lookup traces of many tables.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cerrno>
#include <stdexcept>
#include <string>
#include <system_error>

#include "synth/generator.h"
#include "synth/text.h"
#include "synth/trace.h"

namespace py = pybind11;
using namespace recsys_opt::synth;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

template <class T>
std::vector<T> values(const py::dict& from, const char* key) {
  if (!from.contains(key)) return {};
  const auto array = from[key].cast<Array<T>>();
  return {array.data(), array.data() + array.size()};
}

template <class T>
T value(const py::dict& from, const char* key, T otherwise) {
  return from.contains(key) ? from[key].cast<T>() : otherwise;
}

void require(bool holds, const std::string& what) {
  if (!holds) throw std::invalid_argument("synth: " + what);
}

DenseColumn dense_column(const py::dict& from, size_t sparse_columns) {
  DenseColumn column;
  column.quantiles = values<int32_t>(from, "quantiles");
  column.effects = values<float>(from, "effects");
  require(column.quantiles.size() == kQuantiles + 1 && column.effects.size() == kQuantiles,
          "an integer column needs " + std::to_string(kQuantiles + 1) + " quantiles and " +
              std::to_string(kQuantiles) + " effects");
  column.missing_effect = value(from, "missing_effect", 0.0f);
  const auto loadings = values<float>(from, "loadings");
  require(loadings.size() == kFactors,
          "an integer column needs " + std::to_string(kFactors) + " loadings");
  std::copy(loadings.begin(), loadings.end(), column.loadings.begin());
  column.noise = value(from, "noise", 1.0f);
  column.tied_to = value(from, "tied_to", -1);
  require(column.tied_to < static_cast<int>(sparse_columns), "tied_to is not a sparse column");
  column.tie = value(from, "tie", 0.0f);
  return column;
}

SparseColumn sparse_column(const py::dict& from) {
  SparseColumn column;
  column.num_embeddings = from["num_embeddings"].cast<uint32_t>();
  column.shift = value(from, "never_missing", false) ? 1 : 0;
  column.ids = column.num_embeddings - 1 + column.shift;
  require(column.num_embeddings >= 1 && column.ids >= 1,
          "num_embeddings must leave room for an id beside 'missing'");
  const auto first = values<uint32_t>(from, "first");
  const auto width = values<uint32_t>(from, "width");
  const auto mass = values<double>(from, "mass");
  require(!mass.empty() && first.size() == mass.size() && width.size() == mass.size(),
          "first, width and mass must be as long as each other, and not empty");
  for (size_t i = 0; i < mass.size(); ++i) {
    require(width[i] > 0 && first[i] > 0, "a cell is empty or holds id 0");
    column.cells.push_back({first[i], width[i]});
  }
  column.marginal = StepTable(mass);
  column.partner_odds = values<float>(from, "partner_odds");
  require(column.partner_odds.size() <= mass.size() && column.partner_odds.size() % 2 == 0,
          "partner_odds goes in pairs, at most one per cell");
  column.fleeting = value(from, "fleeting", 0.0);
  column.window = value(from, "window", 1.0);
  column.effect = value(from, "effect", 0.0f);
  column.interaction = value(from, "interaction", 0.0f);
  column.parent = value(from, "parent", -1);
  if (column.parent < 0) return column;
  column.strength = from["strength"].cast<double>();
  column.assigned = values<int32_t>(from, "assigned");
  for (const int32_t cell : column.assigned)
    require(cell >= kUnlinked && cell < static_cast<int32_t>(mass.size()) &&
                (cell < 0 || width[cell] == 1),
            "assigned names a cell that is not there, or not a single id");
  column.place = values<double>(from, "place");
  column.place_step = values<double>(from, "place_step");
  column.kept_rare = value(from, "kept_rare", 1.0);
  column.scatter_end = value(from, "scatter_end", 1.0);
  const auto residual = values<double>(from, "residual");
  require(residual.size() == mass.size(), "residual must be as long as mass");
  column.residual = StepTable(residual);
  return column;
}

Generator make_generator(int64_t total_rows, uint64_t seed, const std::vector<py::dict>& dense,
                         const std::vector<py::dict>& sparse, const Array<uint64_t>& patterns,
                         const Array<double>& pattern_mass, float bias) {
  require(total_rows >= 1,
          "total_rows = " + std::to_string(total_rows) + "; it must be at least 1");
  require(dense.size() <= kMaxDense && sparse.size() <= kMaxSparse,
          "at most " + std::to_string(kMaxDense) + " integer and " + std::to_string(kMaxSparse) +
              " categorical columns");
  std::vector<DenseColumn> dense_columns;
  for (const py::dict& d : dense) dense_columns.push_back(dense_column(d, sparse.size()));
  std::vector<SparseColumn> sparse_columns;
  for (const py::dict& s : sparse) sparse_columns.push_back(sparse_column(s));
  for (const SparseColumn& column : sparse_columns) {
    if (column.parent < 0) continue;
    require(column.parent < static_cast<int>(sparse_columns.size()), "parent is not a column");
    const size_t cells = sparse_columns[column.parent].cells.size();
    require(column.assigned.size() == cells && column.place.size() == cells &&
                column.place_step.size() == cells,
            "assigned, place and place_step must have one entry per cell of the parent");
  }
  require(patterns.size() > 0 && patterns.size() == pattern_mass.size(),
          "patterns and pattern_mass must be as long as each other, and not empty");
  std::vector<Pattern> all;
  for (py::ssize_t i = 0; i < patterns.size(); ++i) all.push_back({patterns.data()[i]});
  StepTable table({pattern_mass.data(), pattern_mass.data() + pattern_mass.size()});
  return Generator(total_rows, seed, std::move(dense_columns), std::move(sparse_columns),
                   std::move(all), std::move(table), bias);
}

void check_range(const Generator& generator, int64_t start, int64_t stop, int threads) {
  if (start < 0 || start > stop || stop > generator.total_rows())
    throw py::value_error("rows " + std::to_string(start) + " to " + std::to_string(stop) +
                          " are not within the " + std::to_string(generator.total_rows()) +
                          " rows of this generator");
  if (threads < 1)
    throw py::value_error("threads = " + std::to_string(threads) + "; it must be at least 1");
}

// A new array and the pointer to fill it by.
template <class T>
py::array_t<T> allocate(int64_t rows, int64_t columns, T** data) {
  py::array_t<T> array({rows, columns});
  *data = array.mutable_data();
  return array;
}

py::dict make_rows(const Generator& generator, int64_t start, int64_t stop, int threads) {
  check_range(generator, start, stop, threads);
  const int64_t n = stop - start;
  RowsOut out;
  py::dict result;
  result["dense"] = allocate(n, generator.dense_columns(), &out.dense);
  result["sparse"] = allocate(n, generator.sparse_columns(), &out.sparse);
  result["labels"] = allocate(n, 1, &out.labels);
  result["probabilities"] = allocate(n, 1, &out.probabilities);
  result["integers"] = allocate(n, generator.dense_columns(), &out.integers);
  {
    const py::gil_scoped_release released;
    generator.rows(start, stop, threads, out);
  }
  return result;
}

py::tuple write_rows(const Generator& generator, int64_t start, int64_t stop, int threads,
                     std::array<int, 3> files, std::array<int64_t, 3> offsets) {
  check_range(generator, start, stop, threads);
  Scores scores;
  try {
    const py::gil_scoped_release released;
    scores = generator.write(start, stop, threads,
                             {files[0], files[1], files[2], offsets[0], offsets[1], offsets[2]});
  } catch (const std::system_error& error) {
    errno = error.code().value();
    PyErr_SetFromErrno(PyExc_OSError);
    throw py::error_already_set();
  }
  return py::make_tuple(py::array_t<int64_t>(kBins, scores.positives.data()),
                        py::array_t<int64_t>(kBins, scores.negatives.data()));
}

py::bytes rows_text(const Array<int32_t>& labels, const Array<int32_t>& integers,
                    const Array<int32_t>& sparse, const std::vector<bool>& never_missing) {
  require(integers.ndim() == 2 && sparse.ndim() == 2 && labels.size() == integers.shape(0) &&
              labels.size() == sparse.shape(0),
          "labels [n, 1], integers [n, dense] and sparse [n, columns] must have as many rows");
  require(sparse.shape(1) == static_cast<py::ssize_t>(never_missing.size()),
          "never_missing must have one entry per column");
  const RowsIn rows{labels.data(), integers.data(),   sparse.data(),
                    labels.size(), integers.shape(1), never_missing};
  std::string text;
  {
    const py::gil_scoped_release released;
    text = criteo_text(rows);
  }
  return py::bytes(text);
}

void check_count(int64_t count, const char* what) {
  if (count < 0)
    throw py::value_error(std::string(what) + " = " + std::to_string(count) +
                          "; it must not be negative");
}

py::array_t<int32_t> trace_lengths(const TraceTable& table, int64_t batch, int64_t samples) {
  check_count(samples, "samples");
  py::array_t<int32_t> out(samples);
  int32_t* data = out.mutable_data();
  const py::gil_scoped_release released;
  table.lengths(batch, samples, data);
  return out;
}

py::array_t<int64_t> trace_values(const TraceTable& table, int64_t batch, int64_t count) {
  check_count(count, "count");
  py::array_t<int64_t> out(count);
  int64_t* data = out.mutable_data();
  const py::gil_scoped_release released;
  table.values(batch, count, data);
  return out;
}

std::vector<int64_t> trace_reuse(const Array<int64_t>& values, int64_t rows) {
  check_count(rows, "rows");
  const int64_t* data = values.data();
  const int64_t count = values.size();
  const py::gil_scoped_release released;
  return reuse_histogram(data, count, rows);
}

}  // namespace

PYBIND11_MODULE(_synth, m) {
  m.doc() =
      "Criteo-like rows and lookup traces, each row and lookup a pure function of seed and place";
  m.attr("QUANTILES") = kQuantiles;
  m.attr("FACTORS") = kFactors;
  m.attr("LATENT") = kLatent;
  m.attr("MAX_DENSE") = kMaxDense;
  m.attr("LOGIT_LIMIT") = kLogitLimit;
  m.attr("MISSING") = kMissing;
  m.attr("IN_ORDER") = kInOrder;
  m.attr("SCATTERED") = kScattered;
  m.attr("UNLINKED") = kUnlinked;
  py::class_<Generator>(m, "Generator")
      .def(py::init(&make_generator), py::arg("total_rows"), py::arg("seed"), py::kw_only(),
           py::arg("dense"), py::arg("sparse"), py::arg("patterns"), py::arg("pattern_mass"),
           py::arg("bias"))
      .def("rows", &make_rows, py::arg("start"), py::arg("stop"), py::arg("threads"))
      .def("write", &write_rows, py::arg("start"), py::arg("stop"), py::arg("threads"),
           py::arg("files"), py::arg("offsets"));
  py::class_<TraceTable>(m, "TraceTable")
      .def(py::init<int64_t, uint64_t, uint64_t, const std::vector<int64_t>&,
                    const std::vector<double>&, double, double>(),
           py::arg("rows"), py::arg("seed"), py::arg("table"), py::kw_only(), py::arg("width"),
           py::arg("mass"), py::arg("coverage"), py::arg("pooling_factor"))
      .def("lengths", &trace_lengths, py::arg("batch"), py::arg("samples"))
      .def("values", &trace_values, py::arg("batch"), py::arg("count"));
  m.def("criteo_text", &rows_text, py::arg("labels"), py::arg("integers"), py::arg("sparse"),
        py::arg("never_missing"));
  m.def("reuse_histogram", &trace_reuse, py::arg("values"), py::arg("rows"));
}
