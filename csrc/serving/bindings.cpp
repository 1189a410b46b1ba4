// pybind11 module `_serving`: fleets, policies, the scheduler and its simulation.
#include "serving/bindings.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <memory>
#include <stdexcept>
#include <string>

#include "serving/fleet.h"

namespace py = pybind11;

namespace recsys_opt::serving {

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

int32_t add_path(Fleet& fleet, std::string name, int32_t device, double accuracy,
                 const Array<int64_t>& sizes, const Array<double>& quantiles) {
  if (sizes.ndim() != 1 || quantiles.ndim() != 2 || quantiles.shape(0) != sizes.shape(0)) {
    throw std::invalid_argument("path " + name + ": sizes must be [S] and quantiles [S, Q]");
  }
  return fleet.add_path(
      std::move(name), device, accuracy,
      ServiceTimes(sizes.data(), quantiles.data(), sizes.shape(0), quantiles.shape(1)));
}

const Path& path_at(const Fleet& fleet, int32_t path) {
  if (path < 0 || path >= static_cast<int32_t>(fleet.paths().size())) {
    throw std::out_of_range("there is no path " + std::to_string(path) + "; there are " +
                            std::to_string(fleet.paths().size()));
  }
  return fleet.paths()[path];
}

const ServiceTimes& times_at(const Fleet& fleet, int32_t path, int64_t size) {
  const ServiceTimes& times = path_at(fleet, path).times;
  if (size < 1 || size > times.max_size()) {
    throw std::out_of_range("size " + std::to_string(size) + "; path " + fleet.paths()[path].name +
                            " was profiled from 1 to " + std::to_string(times.max_size()));
  }
  return times;
}

}  // namespace

}  // namespace recsys_opt::serving

PYBIND11_MODULE(_serving, m) {
  using namespace recsys_opt::serving;
  m.doc() = "Query scheduling: fleets, policies, the scheduler and its simulation.";
  py::class_<Fleet, std::shared_ptr<Fleet>>(m, "Fleet")
      .def(py::init<>())
      .def("add_device", &Fleet::add_device, py::arg("name"), py::arg("workers"))
      .def("add_path", &add_path, py::arg("name"), py::arg("device"), py::arg("accuracy"),
           py::arg("sizes"), py::arg("quantiles"))
      .def_property_readonly("workers", &Fleet::workers)
      .def_property_readonly("devices",
                             [](const Fleet& f) {
                               std::vector<std::string> names;
                               for (const Device& d : f.devices()) names.push_back(d.name);
                               return names;
                             })
      .def_property_readonly("paths",
                             [](const Fleet& f) {
                               std::vector<std::string> names;
                               for (const Path& p : f.paths()) names.push_back(p.name);
                               return names;
                             })
      .def("device_of_worker",
           [](const Fleet& f, int32_t worker) {
             if (worker < 0 || worker >= f.workers()) {
               throw std::out_of_range("there is no worker " + std::to_string(worker));
             }
             return f.device_of(worker);
           })
      .def("device_of_path", [](const Fleet& f, int32_t path) { return path_at(f, path).device; })
      .def("accuracy", [](const Fleet& f, int32_t path) { return path_at(f, path).accuracy; })
      .def("max_size",
           [](const Fleet& f, int32_t path) { return path_at(f, path).times.max_size(); })
      .def("expected", [](const Fleet& f, int32_t path,
                          int64_t size) { return times_at(f, path, size).mean(size); })
      .def("quantile",
           [](const Fleet& f, int32_t path, int64_t size, double q) {
             if (!(q >= 0 && q <= 1)) {
               throw std::out_of_range("quantile " + std::to_string(q) + "; it must be in 0 .. 1");
             }
             return times_at(f, path, size).quantile(size, q);
           })
      .def("means", [](const Fleet& f, int32_t path) {
        const ServiceTimes& times = path_at(f, path).times;
        py::array_t<double> means(times.max_size());
        for (int64_t n = 1; n <= times.max_size(); ++n) means.mutable_at(n - 1) = times.mean(n);
        return means;
      });
  bind_policies(m);
  bind_simulation(m);
  bind_scheduler(m);
}
