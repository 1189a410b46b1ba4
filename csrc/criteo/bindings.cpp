// pybind11 module: the Criteo reader.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "criteo/blocks.h"
#include "criteo/reader.h"
#include "criteo/vocabulary.h"
#include "criteo/xxh64.h"

namespace py = pybind11;

namespace {

using criteo::Counts;
using criteo::Meter;
using criteo::PartReader;
using criteo::Vocabulary;
using ReleaseGil = py::call_guard<py::gil_scoped_release>;

py::array_t<uint32_t> take_ranked(Counts& counts, int column, uint64_t min_count) {
  if (column < 0 || column >= criteo::kValues) throw py::index_error("column");
  auto* ranked = new std::vector<uint32_t>;
  const py::capsule owner(ranked, [](void* p) { delete static_cast<std::vector<uint32_t>*>(p); });
  {
    const py::gil_scoped_release release;
    *ranked = counts.take_ranked(column, min_count);
  }
  return py::array_t<uint32_t>(static_cast<py::ssize_t>(ranked->size()), ranked->data(), owner);
}

std::unique_ptr<Vocabulary> make_vocabulary(
    const std::vector<py::array_t<uint32_t, py::array::c_style>>& ranked, int threads) {
  std::vector<std::span<const uint32_t>> columns;
  for (const auto& column : ranked)
    columns.emplace_back(column.data(), static_cast<size_t>(column.size()));
  const py::gil_scoped_release release;
  return std::make_unique<Vocabulary>(columns, threads);
}

std::unique_ptr<PartReader> make_reader(bool labelled, const std::string& dense_transform,
                                        bool skip_bad, std::vector<uint32_t> cardinalities,
                                        std::string dense_path, std::string labels_path,
                                        std::string sparse_path, std::shared_ptr<Counts> counts,
                                        std::shared_ptr<Meter> meter, int threads,
                                        int64_t chunk_bytes) {
  if (dense_transform != "dlrm" && dense_transform != "torchrec")
    throw py::value_error("dense_transform is '" + dense_transform +
                          "'; it must be dlrm or torchrec");
  if (!cardinalities.empty() && cardinalities.size() != criteo::kValues)
    throw py::value_error("there are " + std::to_string(cardinalities.size()) +
                          " cardinalities, not " + std::to_string(criteo::kValues));
  if (chunk_bytes < 1) throw py::value_error("chunk_bytes is " + std::to_string(chunk_bytes));
  criteo::PartOptions options;
  options.labelled = labelled;
  options.transform =
      dense_transform == "dlrm" ? criteo::DenseTransform::kDlrm : criteo::DenseTransform::kRaw32;
  options.skip_bad = skip_bad;
  options.cardinalities = std::move(cardinalities);
  options.threads = threads;
  options.chunk_bytes = chunk_bytes;
  options.dense_path = std::move(dense_path);
  options.labels_path = std::move(labels_path);
  options.sparse_path = std::move(sparse_path);
  return std::make_unique<PartReader>(std::move(options), std::move(counts), std::move(meter));
}

bool feed(PartReader& reader, const py::bytes& block) {
  const std::string_view view = block;
  const py::gil_scoped_release release;  // `block` is held by the caller
  return reader.feed(std::string(view));
}

}  // namespace

PYBIND11_MODULE(_criteo, m) {
  m.doc() = "Reads Criteo click logs: text in, arrays out";
  py::register_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const criteo::FileError& error) {
      const py::object made = py::reinterpret_steal<py::object>(PyObject_CallFunction(
          PyExc_OSError, "iss", error.number, std::strerror(error.number), error.path.c_str()));
      if (made) PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(made.ptr())), made.ptr());
    }
  });
  m.attr("MISSING_ID") = criteo::kMissingId;
  m.attr("RARE_ID") = criteo::kRareId;
  m.attr("FIRST_ID") = criteo::kFirstId;

  py::class_<Meter, std::shared_ptr<Meter>>(m, "Meter")
      .def(py::init<>())
      .def_property_readonly("done", [](const Meter& meter) { return meter.done.load(); })
      .def_property_readonly("cancelled", [](const Meter& meter) { return meter.cancelled.load(); })
      .def(
          "advance", [](Meter& meter, int64_t amount) { meter.done += amount; }, py::arg("amount"))
      .def("cancel", [](Meter& meter) { meter.cancelled = true; });

  py::class_<Counts, std::shared_ptr<Counts>>(m, "Counts")
      .def(py::init<>())
      .def(
          "add_blocks",
          [](Counts& counts, const std::string& path, int threads, Meter& meter) {
            criteo::count_blocks(path, counts, threads, meter);
          },
          py::arg("path"), py::arg("threads"), py::arg("meter"), ReleaseGil())
      .def("take_ranked", &take_ranked, py::arg("column"), py::arg("min_count"))
      .def_property_readonly("distinct", &Counts::distinct)
      .def_property_readonly("table_bytes", &Counts::bytes);

  py::class_<Vocabulary>(m, "Vocabulary")
      .def(py::init(&make_vocabulary), py::arg("ranked"), py::arg("threads"))
      .def("map_blocks", &Vocabulary::map_blocks, py::arg("blocks_path"), py::arg("sparse_path"),
           py::arg("rows"), py::arg("threads"), py::arg("meter"), ReleaseGil());

  py::class_<criteo::BadLine>(m, "BadLine")
      .def_readonly("line", &criteo::BadLine::line)
      .def_property_readonly("found", [](const criteo::BadLine& bad) {
        return py::reinterpret_steal<py::str>(PyUnicode_DecodeLatin1(
            bad.found.data(), static_cast<py::ssize_t>(bad.found.size()), nullptr));
      });

  py::class_<criteo::PartResult>(m, "PartResult")
      .def_readonly("rows", &criteo::PartResult::rows)
      .def_readonly("lines", &criteo::PartResult::lines)
      .def_readonly("bad_lines", &criteo::PartResult::bad_lines)
      .def_readonly("bad", &criteo::PartResult::bad)
      .def_readonly("bytes", &criteo::PartResult::bytes)
      .def_readonly("hash", &criteo::PartResult::hash);

  py::class_<PartReader>(m, "PartReader")
      .def(py::init(&make_reader), py::kw_only(), py::arg("labelled"), py::arg("dense_transform"),
           py::arg("skip_bad"), py::arg("cardinalities"), py::arg("dense_path"),
           py::arg("labels_path"), py::arg("sparse_path"), py::arg("counts"), py::arg("meter"),
           py::arg("threads"), py::arg("chunk_bytes"))
      .def("read_file", &PartReader::read_file, py::arg("path"), ReleaseGil())
      .def("feed", &feed, py::arg("block"))
      .def("finish", &PartReader::finish, ReleaseGil());

  py::class_<criteo::Xxh64>(m, "Xxh64")
      .def(py::init<>())
      .def(
          "update",
          [](criteo::Xxh64& hash, const py::bytes& block) {
            const std::string_view view = block;
            const py::gil_scoped_release release;
            hash.update(view.data(), view.size());
          },
          py::arg("block"))
      .def("digest", &criteo::Xxh64::digest);
}
