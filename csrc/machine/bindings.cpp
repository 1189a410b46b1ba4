// pybind11 module `_machine`: the highest rates that this machine reaches.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "machine/ceilings.h"
#include "machine/rows.h"

namespace py = pybind11;
using namespace recsys_opt::machine;

namespace {

void check(int threads, double seconds) {
  if (threads < 1 || threads > 4096) {
    throw std::invalid_argument("threads = " + std::to_string(threads) + "; it must be 1 to 4096");
  }
  if (!(seconds > 0)) throw std::invalid_argument("seconds must be above 0");
}

// The bytes of a writable, contiguous buffer.
uint8_t* bytes_of(const py::buffer_info& memory) {
  if (memory.readonly || memory.ndim != 1 || memory.itemsize != 1 || memory.strides[0] != 1) {
    throw std::invalid_argument("memory must be a writable, contiguous buffer of bytes");
  }
  return static_cast<uint8_t*>(memory.ptr);
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
  m.def(
      "row_rate",
      [](const py::buffer& memory, int64_t row_bytes, int n, double s, bool update,
         bool mapped_file, uint64_t seed) {
        check(n, s);
        const py::buffer_info info = memory.request(/*writable=*/true);
        uint8_t* const bytes = bytes_of(info);
        if (row_bytes < 8 || row_bytes % 8 || info.size / n < row_bytes ||
            reinterpret_cast<uintptr_t>(bytes) % 8) {
          throw std::invalid_argument(
              "row_bytes must be a multiple of 8, and each thread have a row; memory must begin at "
              "a multiple of 8");
        }
        RowRate rate;
        {
          const py::gil_scoped_release release;
          rate = row_rate(bytes, info.size, row_bytes, n, s, update, mapped_file, seed);
        }
        return py::make_tuple(rate.rows_per_s, rate.rows);
      },
      py::arg("memory"), py::arg("row_bytes"), threads, seconds, py::kw_only(), py::arg("update"),
      py::arg("mapped_file"), py::arg("seed"),
      "(rows read a second, rows read): rows at random from a buffer of bytes; update: written "
      "back, too");
  m.def(
      "copy_bytes_per_s",
      [](const py::buffer& memory, int n, double s) {
        check(n, s);
        const py::buffer_info info = memory.request(/*writable=*/true);
        uint8_t* const bytes = bytes_of(info);
        if (info.size / n < 4096) throw std::invalid_argument("a thread needs at least 4096 bytes");
        const py::gil_scoped_release release;
        return copy_bytes_per_s(bytes, info.size, n, s);
      },
      py::arg("memory"), threads, seconds,
      "Bytes copied a second from one half of a buffer of bytes to the other");
}
