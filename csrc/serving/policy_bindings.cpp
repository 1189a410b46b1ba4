// Policies for Python, and policies from Python.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <set>
#include <stdexcept>
#include <string>

#include "serving/adaptive.h"
#include "serving/bindings.h"
#include "serving/policies.h"

namespace py = pybind11;

namespace recsys_opt::serving {

namespace {

// A policy written in Python; the interpreter's lock is taken for each of its answers.
class PythonPolicy : public Policy, public py::trampoline_self_life_support {
 public:
  void begin(const Core& core) override { PYBIND11_OVERRIDE(void, Policy, begin, std::cref(core)); }
  int32_t arrive(const Core& core, int32_t size, double deadline) override {
    PYBIND11_OVERRIDE_PURE(int32_t, Policy, arrive, std::cref(core), size, deadline);
  }
  Decision start(Core& core, int32_t worker) override {
    PYBIND11_OVERRIDE_PURE(Decision, Policy, start, std::ref(core), worker);
  }
};

// Options of make_policy, each used once.
class Options {
 public:
  Options(const std::string& policy, const Fleet& fleet, const py::kwargs& given)
      : policy_(policy), fleet_(fleet), given_(given) {}

  int32_t path(const char* name) {
    const py::object value = take(name);
    const auto text = py::str(value).cast<std::string>();
    for (std::size_t p = 0; p < fleet_.paths().size(); ++p) {
      if (fleet_.paths()[p].name == text) return static_cast<int32_t>(p);
    }
    std::string known;
    for (const Path& p : fleet_.paths()) known += (known.empty() ? "" : ", ") + p.name;
    throw std::invalid_argument("policy " + policy_ + ": " + name + " = " + text +
                                "; the paths are " + known);
  }
  int64_t whole(const char* name) {
    const py::object value = take(name);
    if (!py::isinstance<py::int_>(value)) {
      throw std::invalid_argument("policy " + policy_ + ": " + name + " = " +
                                  py::str(value).cast<std::string>() +
                                  "; it must be a whole number");
    }
    return value.cast<int64_t>();
  }
  bool flag(const char* name, bool otherwise) {
    used_.insert(name);
    return given_.contains(name) ? given_[name].cast<bool>() : otherwise;
  }
  void end() const {
    std::string known;
    for (const std::string& name : used_) known += (known.empty() ? "" : ", ") + name;
    for (const auto& [name, value] : given_) {
      const auto text = name.cast<std::string>();
      if (used_.count(text)) continue;
      throw std::invalid_argument("policy " + policy_ + " has no option " + text + "; it has " +
                                  (known.empty() ? "none" : known));
    }
  }

 private:
  py::object take(const char* name) {
    used_.insert(name);
    if (!given_.contains(name)) {
      throw std::invalid_argument("policy " + policy_ + " needs the option " + name);
    }
    return given_[name];
  }
  std::string policy_;
  const Fleet& fleet_;
  const py::kwargs& given_;
  std::set<std::string> used_;
};

std::shared_ptr<Policy> make_policy(const std::string& name, const Fleet& fleet, double sla,
                                    const py::kwargs& given) {
  Options options(name, fleet, given);
  std::shared_ptr<Policy> policy;
  if (!(sla > 0)) throw std::invalid_argument("policy " + name + ": the SLA must be positive");
  if (name == "static") {
    policy = std::make_shared<StaticPath>(options.path("path"));
  } else if (name == "threshold") {
    policy = std::make_shared<Threshold>(options.path("small"), options.path("large"),
                                         options.whole("size"));
  } else if (name == "mp-rec") {
    policy = std::make_shared<MPRec>();
  } else if (name == "earliest-finish") {
    policy = std::make_shared<EarliestFinish>();
  } else if (name == "priced") {
    policy = std::make_shared<Priced>();
  } else if (name == "adaptive") {
    policy = std::make_shared<Adaptive>(sla, options.flag("admit", true));
  } else {
    throw std::invalid_argument("there is no policy " + name +
                                "; there are static, threshold, mp-rec, earliest-finish, priced "
                                "and adaptive");
  }
  options.end();
  return policy;
}

const Lane& lane_at(const Core& core, int32_t lane) {
  if (lane < 0 || lane > core.shared_lane()) {
    throw std::out_of_range("there is no lane " + std::to_string(lane) + "; the last one is " +
                            std::to_string(core.shared_lane()));
  }
  return core.lane(lane);
}

void check_index(int32_t i, std::size_t count, const char* what) {
  if (i < 0 || i >= static_cast<int32_t>(count)) {
    throw std::out_of_range(std::string("there is no ") + what + " " + std::to_string(i));
  }
}

}  // namespace

void bind_policies(py::module_& m) {
  py::class_<Decision>(m, "Decision")
      .def(py::init([](int32_t path, int32_t lane, int64_t samples, double wake) {
             return Decision{path, lane, samples, wake};
           }),
           py::arg("path") = -1, py::arg("lane") = 0, py::arg("samples") = 0,
           py::arg("wake") = std::numeric_limits<double>::infinity())
      .def_readonly("path", &Decision::path)
      .def_readonly("lane", &Decision::lane)
      .def_readonly("samples", &Decision::samples)
      .def_readonly("wake", &Decision::wake);
  py::class_<Core>(m, "View")
      .def_property_readonly("now", &Core::now)
      .def_property_readonly("shared_lane", &Core::shared_lane)
      .def_property_readonly("waiting_samples", &Core::waiting_samples)
      .def_property_readonly("waiting_queries", &Core::waiting_queries)
      .def("lane_samples",
           [](const Core& core, int32_t lane) { return lane_at(core, lane).samples(); })
      .def("head",
           [](const Core& core, int32_t lane) -> py::object {
             const Lane& l = lane_at(core, lane);
             if (l.empty()) return py::none();
             const Query& query = core.query(l.head().slot);
             return py::make_tuple(l.head().count, query.arrival, query.deadline);
           })
      .def("give_up_head",
           [](Core& core, int32_t lane) {
             if (lane_at(core, lane).empty()) throw std::out_of_range("the lane is empty");
             core.give_up(core.lane(lane).head().slot);
           })
      .def("free_at",
           [](const Core& core, int32_t worker) {
             check_index(worker, core.fleet().workers(), "worker");
             return core.free_at(worker);
           })
      .def("backlog",
           [](const Core& core, int32_t device) {
             check_index(device, core.fleet().devices().size(), "device");
             return core.backlog(device);
           })
      .def("available",
           [](const Core& core, int32_t device) {
             check_index(device, core.fleet().devices().size(), "device");
             return core.available(device);
           })
      .def("expected", [](const Core& core, int32_t path, int64_t size) {
        check_index(path, core.fleet().paths().size(), "path");
        if (size < 1) throw std::out_of_range("size " + std::to_string(size));
        return core.expected(path, size);
      });
  py::classh<Policy, PythonPolicy>(m, "Policy")
      .def(py::init<>())
      .def("begin", &Policy::begin, py::arg("view"))
      .def("arrive", &Policy::arrive, py::arg("view"), py::arg("size"), py::arg("deadline"))
      .def("start", &Policy::start, py::arg("view"), py::arg("worker"));
  m.def("make_policy", &make_policy, py::arg("name"), py::arg("fleet"), py::arg("sla"));
}

}  // namespace recsys_opt::serving
