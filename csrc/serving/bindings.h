// The parts of the pybind11 module `_serving`.
#pragma once

#include <pybind11/pybind11.h>

namespace recsys_opt::serving {

void bind_policies(pybind11::module_& m);
void bind_simulation(pybind11::module_& m);
void bind_scheduler(pybind11::module_& m);

}  // namespace recsys_opt::serving
