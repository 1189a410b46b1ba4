// pybind11 module `_machine`: the highest rates that this machine reaches.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "machine/ceilings.h"

namespace py = pybind11;
using namespace recsys_opt::machine;

namespace {

void check(int threads, double seconds) {
  if (threads < 1 || threads > 4096) {
    throw std::invalid_argument("threads = " + std::to_string(threads) + "; it must be 1 to 4096");
  }
  if (!(seconds > 0)) throw std::invalid_argument("seconds must be above 0");
}

}  // namespace

PYBIND11_MODULE(_machine, m) {
  m.doc() = "The highest rates that this machine reaches, measured";
  const auto threads = py::arg("threads");
  const auto seconds = py::arg("seconds");
  m.def(
      "fp32_flops_per_s",
      [](int n, double s) {
        check(n, s);
        const py::gil_scoped_release release;
        return fp32_flops_per_s(n, s);
      },
      threads, seconds);
  m.def(
      "bf16_flops_per_s",
      [](int n, double s) {
        check(n, s);
        const py::gil_scoped_release release;
        return bf16_flops_per_s(n, s);
      },
      threads, seconds);
  m.def(
      "read_bytes_per_s",
      [](int64_t bytes, int n, double s) {
        check(n, s);
        if (bytes / n < 256)
          throw std::invalid_argument("a thread needs at least 256 bytes to read");
        const py::gil_scoped_release release;
        return read_bytes_per_s(bytes, n, s);
      },
      py::arg("bytes"), threads, seconds);
  m.def(
      "gather_bytes_per_s",
      [](int64_t table_bytes, int64_t row_bytes, int n, double s) {
        check(n, s);
        if (row_bytes < 64 || row_bytes % 64 || table_bytes < row_bytes ||
            table_bytes / row_bytes >= (int64_t{1} << 31)) {
          throw std::invalid_argument(
              "row_bytes must be a multiple of 64, and the table have 1 to 2^31 - 1 rows");
        }
        const py::gil_scoped_release release;
        return gather_bytes_per_s(table_bytes, row_bytes, n, s);
      },
      py::arg("table_bytes"), py::arg("row_bytes"), threads, seconds);
}
