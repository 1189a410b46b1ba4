#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <limits>
#include <memory>

#include "serving/bindings.h"
#include "serving/scheduler.h"

namespace py = pybind11;

namespace recsys_opt::serving {

namespace {

template <class T>
py::array_t<T> as_array(const std::vector<T>& values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

py::object take(Scheduler& scheduler, int32_t worker, double timeout) {
  Assignment batch;
  bool any;
  {
    const py::gil_scoped_release release;
    any = scheduler.take(worker, timeout, batch);
  }
  if (!any) return py::none();
  return py::cast(std::move(batch));
}

py::dict counts(const Scheduler& scheduler) {
  Counts counts;
  {
    const py::gil_scoped_release release;
    counts = scheduler.counts();
  }
  py::dict d;
  d["submitted"] = counts.submitted;
  d["rejected"] = counts.rejected;
  d["finished"] = counts.finished;
  d["given_up"] = counts.given_up;
  d["batches"] = counts.batches;
  d["failed_batches"] = counts.failed;
  d["waiting_queries"] = counts.waiting_queries;
  d["waiting_samples"] = counts.waiting_samples;
  d["running_batches"] = counts.running;
  return d;
}

}  // namespace

void bind_scheduler(py::module_& m) {
  using Unlocked = py::call_guard<py::gil_scoped_release>;
  py::class_<Assignment>(m, "Batch")
      .def_readonly("path", &Assignment::path)
      .def_readonly("size", &Assignment::size)
      .def_readonly("expected", &Assignment::expected)
      .def_readonly("queries", &Assignment::queries)
      .def_readonly("first", &Assignment::first)
      .def_readonly("count", &Assignment::count);
  py::class_<Answer>(m, "Finished")
      .def_readonly("query", &Answer::query)
      .def_readonly("size", &Answer::size)
      .def_readonly("accuracy", &Answer::accuracy)
      .def_readonly("arrival", &Answer::arrival)
      .def_readonly("deadline", &Answer::deadline);
  py::class_<Scheduler>(m, "Scheduler")
      .def(py::init([](std::shared_ptr<Fleet> fleet, std::shared_ptr<Policy> policy,
                       int64_t max_waiting) {
             return std::make_unique<Scheduler>(std::move(fleet), std::move(policy), max_waiting);
           }),
           py::arg("fleet"), py::arg("policy"), py::kw_only(),
           py::arg("max_waiting") = std::numeric_limits<int64_t>::max() / 2)
      .def("submit", &Scheduler::submit, py::arg("query"), py::arg("size"), py::arg("deadline"),
           Unlocked())
      .def("take", &take, py::arg("worker"), py::arg("timeout"))
      .def("done", &Scheduler::done, py::arg("worker"),
           py::arg("seconds") = std::numeric_limits<double>::quiet_NaN(), Unlocked())
      .def("failed", &Scheduler::failed, py::arg("worker"), Unlocked())
      .def("set_worker", &Scheduler::set_worker, py::arg("worker"), py::arg("available"),
           Unlocked())
      .def("drop", &Scheduler::drop, py::arg("query"), Unlocked())
      .def("dropped", &Scheduler::dropped, py::arg("timeout"), Unlocked())
      .def("close", &Scheduler::close, Unlocked())
      .def_property_readonly("closed", py::cpp_function(&Scheduler::closed, Unlocked()))
      .def_property_readonly("wake_at", py::cpp_function(&Scheduler::wake_at, Unlocked()))
      .def("slowness", &Scheduler::slowness, py::arg("device"), Unlocked())
      .def("statistics", &counts);
}

}  // namespace recsys_opt::serving
