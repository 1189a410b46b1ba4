#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "serving/bindings.h"
#include "serving/simulator.h"

namespace py = pybind11;

namespace recsys_opt::serving {

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

template <class T>
std::vector<T> as_vector(const Array<T>& array, const char* what) {
  if (array.ndim() != 1) throw std::invalid_argument(std::string(what) + " must be a vector");
  return {array.data(), array.data() + array.size()};
}

template <class T>
py::array_t<T> as_array(const std::vector<T>& values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

template <class T>
py::array_t<T> as_matrix(const std::vector<T>& values, py::ssize_t rows) {
  const auto columns = static_cast<py::ssize_t>(values.size()) / rows;
  return py::array_t<T>({rows, columns}, values.data());
}

py::dict by_outcome(const int64_t* counts) {
  py::dict d;
  d["in_time"] = counts[static_cast<int>(Outcome::kInTime)];
  d["late"] = counts[static_cast<int>(Outcome::kLate)];
  d["dropped"] = counts[static_cast<int>(Outcome::kDropped)];
  d["rejected"] = counts[static_cast<int>(Outcome::kRejected)];
  return d;
}

py::dict timeline(const SimulationResult& r) {
  const auto bins = static_cast<py::ssize_t>(r.timeline.size());
  const auto paths = static_cast<py::ssize_t>(r.batches.size());
  py::array_t<int64_t> arrived(bins), waiting(bins), outcomes({bins, py::ssize_t{kOutcomes}}),
      path_samples({bins, paths});
  for (py::ssize_t i = 0; i < bins; ++i) {
    const Bin& bin = r.timeline[i];
    arrived.mutable_at(i) = bin.arrived;
    waiting.mutable_at(i) = bin.waiting;
    for (int o = 0; o < kOutcomes; ++o) outcomes.mutable_at(i, o) = bin.outcomes[o];
    for (py::ssize_t p = 0; p < paths; ++p) path_samples.mutable_at(i, p) = bin.path_samples[p];
  }
  py::dict d;
  d["arrived"] = arrived;
  d["waiting_samples"] = waiting;
  d["outcomes"] = outcomes;
  d["path_samples"] = path_samples;
  return d;
}

py::dict queries(const SimulationResult& r) {
  py::dict d;
  d["arrival"] = as_array(r.arrival);
  d["start"] = as_array(r.start);
  d["finish"] = as_array(r.finish);
  d["size"] = as_array(r.size);
  d["path"] = as_array(r.path);
  d["batch"] = as_array(r.batch);
  d["outcome"] = as_array(r.outcome);
  return d;
}

py::dict batches(const SimulationResult& r) {
  py::dict d;
  d["start"] = as_array(r.batch_start);
  d["seconds"] = as_array(r.batch_seconds);
  d["worker"] = as_array(r.batch_worker);
  d["path"] = as_array(r.batch_path);
  d["size"] = as_array(r.batch_size);
  return d;
}

}  // namespace

void bind_simulation(py::module_& m) {
  py::class_<SizeDistribution>(m, "SizeDistribution")
      .def(py::init([](const Array<int64_t>& values, const Array<double>& weights) {
             return SizeDistribution(as_vector(values, "values"), as_vector(weights, "weights"));
           }),
           py::arg("values"), py::arg("weights"))
      .def_property_readonly("mean", &SizeDistribution::mean);
  py::class_<Workload>(m, "Workload")
      .def_static(
          "poisson",
          [](double rate, const SizeDistribution& sizes) {
            return Workload({rate}, {1.0}, {}, {}, 0.0, sizes);
          },
          py::arg("rate"), py::arg("sizes"))
      .def_static(
          "mmpp",
          [](std::vector<double> rates, std::vector<double> dwell, const SizeDistribution& sizes) {
            return Workload(std::move(rates), std::move(dwell), {}, {}, 0.0, sizes);
          },
          py::arg("rates"), py::arg("dwell"), py::arg("sizes"))
      .def_static(
          "varying",
          [](std::vector<double> times, std::vector<double> rates, double period,
             const SizeDistribution& sizes) {
            return Workload({1.0}, {1.0}, std::move(times), std::move(rates), period, sizes);
          },
          py::arg("times"), py::arg("rates"), py::arg("period"), py::arg("sizes"))
      .def_static(
          "trace",
          [](const Array<double>& arrivals, const Array<int32_t>& sizes) {
            return Workload(as_vector(arrivals, "arrivals"), as_vector(sizes, "sizes"));
          },
          py::arg("arrivals"), py::arg("sizes"))
      .def_property_readonly("rate", &Workload::rate)
      .def_property_readonly("queries", [](const Workload& w) -> py::object {
        return w.recorded() ? py::object(py::int_(w.queries())) : py::none();
      });
  py::class_<SimulationResult>(m, "SimulationResult")
      .def_readonly("arrived", &SimulationResult::arrived)
      .def_readonly("arrived_samples", &SimulationResult::arrived_samples)
      .def_property_readonly("outcomes",
                             [](const SimulationResult& r) { return by_outcome(r.outcomes); })
      .def_property_readonly(
          "outcome_samples",
          [](const SimulationResult& r) { return by_outcome(r.outcome_samples); })
      .def_readonly("worth", &SimulationResult::worth)
      .def_readonly("worth_in_time", &SimulationResult::worth_in_time)
      .def_readonly("seconds", &SimulationResult::seconds)
      .def_readonly("events", &SimulationResult::events)
      .def_readonly("wait_seconds", &SimulationResult::wait)
      .def("percentile",
           [](const SimulationResult& r, double percent) {
             if (!(percent >= 0 && percent <= 100)) {
               throw std::out_of_range("percentile " + std::to_string(percent) +
                                       "; it must be in 0 .. 100");
             }
             return r.latency.quantile(percent / 100);
           })
      .def_property_readonly("mean_latency",
                             [](const SimulationResult& r) { return r.latency.mean(); })
      .def_property_readonly("max_latency",
                             [](const SimulationResult& r) { return r.latency.most(); })
      .def_property_readonly("busy", [](const SimulationResult& r) { return as_array(r.busy); })
      .def_property_readonly("batches",
                             [](const SimulationResult& r) { return as_array(r.batches); })
      .def_property_readonly("path_queries",
                             [](const SimulationResult& r) { return as_array(r.path_queries); })
      .def_property_readonly("path_samples",
                             [](const SimulationResult& r) { return as_array(r.path_samples); })
      .def_property_readonly("class_samples",
                             [](const SimulationResult& r) {
                               return as_matrix(r.class_samples,
                                                static_cast<py::ssize_t>(r.batches.size()));
                             })
      .def_property_readonly(
          "class_outcomes",
          [](const SimulationResult& r) { return as_matrix(r.class_outcomes, kOutcomes); })
      .def_property_readonly("timeline", &timeline)
      .def_property_readonly("queries", &queries)
      .def_property_readonly("batch_records", &batches);
  m.def(
      "simulate",
      [](std::shared_ptr<Fleet> fleet, std::shared_ptr<Policy> policy, const Workload& workload,
         double sla, int64_t queries, uint64_t seed, int64_t warmup, int64_t max_waiting,
         const std::vector<std::tuple<double, int32_t, double>>& events, double overhead,
         double sample_overhead, double answer_overhead, double wake, double turnaround, double bin,
         bool record,
         const std::vector<std::pair<std::vector<double>, std::vector<double>>>& recorded,
         const Array<int32_t>& batch_path, const Array<int32_t>& batch_size,
         const Array<double>& batch_seconds, std::shared_ptr<Fleet> times) {
        SimulationOptions options;
        options.sla = sla;
        options.queries = workload.recorded() ? std::min(queries, workload.queries()) : queries;
        options.seed = seed;
        options.warmup = warmup;
        options.max_waiting = max_waiting;
        options.overhead = overhead;
        options.sample_overhead = sample_overhead;
        options.answer_overhead = answer_overhead;
        options.wake = wake;
        options.turnaround = turnaround;
        options.batches = {as_vector(batch_path, "batch_path"), as_vector(batch_size, "batch_size"),
                           as_vector(batch_seconds, "batch_seconds")};
        options.times = times.get();
        options.bin = bin;
        options.record = record;
        for (const auto& [time, device, factor] : events) {
          options.events.push_back({time, device, factor});
        }
        for (const auto& [starts, ratios] : recorded) {
          if (starts.size() != ratios.size()) {
            throw std::invalid_argument("recorded times need as many ratios as starts");
          }
          options.recorded.push_back({starts, ratios});
        }
        const py::gil_scoped_release release;
        return simulate(*fleet, *policy, workload, options);
      },
      py::arg("fleet"), py::arg("policy"), py::arg("workload"), py::kw_only(), py::arg("sla"),
      py::arg("queries"), py::arg("seed") = 0, py::arg("warmup") = 0,
      py::arg("max_waiting") = std::numeric_limits<int64_t>::max() / 2,
      py::arg("events") = std::vector<std::tuple<double, int32_t, double>>(),
      py::arg("overhead") = 0.0, py::arg("sample_overhead") = 0.0, py::arg("answer_overhead") = 0.0,
      py::arg("wake") = 0.0, py::arg("turnaround") = 0.0, py::arg("bin") = 0.0,
      py::arg("record") = false,
      py::arg("recorded") = std::vector<std::pair<std::vector<double>, std::vector<double>>>(),
      py::arg("batch_path") = Array<int32_t>(0), py::arg("batch_size") = Array<int32_t>(0),
      py::arg("batch_seconds") = Array<double>(0), py::arg("times") = std::shared_ptr<Fleet>());
}

}  // namespace recsys_opt::serving
