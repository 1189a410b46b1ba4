// Files by descriptor, with errors that name the file, and .npy headers.
#pragma once
#include <sys/uio.h>

#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>

namespace criteo {

// A system call failed; becomes Python's OSError(errno, message, path).
struct FileError : std::runtime_error {
  FileError(int error_number, std::string file);
  int number;
  std::string path;
};

class File {
 public:
  static File for_reading(const std::string& path);
  static File for_writing(const std::string& path);  // made anew; readable too
  File(File&& other) noexcept;
  File& operator=(File&&) = delete;
  ~File();

  int64_t read(char* to, int64_t n);  // from the current position; 0 at the end
  void read_at(void* to, int64_t n, int64_t offset) const;  // all n bytes, or an error
  void write_at(const void* from, int64_t n, int64_t offset) const;
  void write_at(std::span<const iovec> pieces, int64_t offset) const;  // end to end

 private:
  File(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
  int fd_;
  std::string path_;
};

// Every header has this size, so that rows are written before their number is known.
inline constexpr int64_t kNpyHeaderBytes = 128;
std::string npy_header(const char* dtype, int64_t rows, int64_t columns);

}  // namespace criteo
