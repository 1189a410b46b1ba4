#include "criteo/files.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace criteo {

FileError::FileError(int error_number, std::string file)
    : std::runtime_error(file + ": " + std::strerror(error_number)),
      number(error_number),
      path(std::move(file)) {}

File File::for_reading(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) throw FileError(errno, path);
  posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);
  return File(fd, path);
}

File File::for_writing(const std::string& path) {
  const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) throw FileError(errno, path);
  return File(fd, path);
}

File::File(File&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)), path_(std::move(other.path_)) {}

File::~File() {
  if (fd_ >= 0) close(fd_);
}

int64_t File::read(char* to, int64_t n) {
  for (;;) {
    const ssize_t got = ::read(fd_, to, static_cast<size_t>(n));
    if (got >= 0) return got;
    if (errno != EINTR) throw FileError(errno, path_);
  }
}

void File::read_at(void* to, int64_t n, int64_t offset) const {
  for (auto* p = static_cast<char*>(to); n > 0;) {
    const ssize_t got = pread(fd_, p, static_cast<size_t>(n), offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw FileError(errno, path_);
    if (got == 0) throw FileError(EIO, path_ + " (shorter than it must be)");
    p += got;
    n -= got;
    offset += got;
  }
}

void File::write_at(const void* from, int64_t n, int64_t offset) const {
  for (auto* p = static_cast<const char*>(from); n > 0;) {
    const ssize_t put = pwrite(fd_, p, static_cast<size_t>(n), offset);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) throw FileError(errno, path_);
    p += put;
    n -= put;
    offset += put;
  }
}

void File::write_at(std::span<const iovec> pieces, int64_t offset) const {
  ssize_t put;
  do put = pwritev(fd_, pieces.data(), static_cast<int>(pieces.size()), offset);
  while (put < 0 && errno == EINTR);
  if (put < 0) throw FileError(errno, path_);
  // What a short write left, piece by piece.
  for (const iovec& piece : pieces) {
    const auto size = static_cast<int64_t>(piece.iov_len);
    const int64_t written = std::min<int64_t>(put, size);
    write_at(static_cast<const char*>(piece.iov_base) + written, size - written, offset + written);
    put -= written;
    offset += size;
  }
}

std::string npy_header(const char* dtype, int64_t rows, int64_t columns) {
  std::string text = "{'descr': '" + std::string(dtype) + "', 'fortran_order': False, 'shape': (" +
                     std::to_string(rows) + ", " + std::to_string(columns) + "), }";
  constexpr int64_t kPrelude = 10;  // magic, version 1.0, length of the text
  text.resize(static_cast<size_t>(kNpyHeaderBytes - kPrelude - 1), ' ');
  text += '\n';
  const auto length = static_cast<uint16_t>(text.size());
  std::string header = "\x93NUMPY\x01";
  header += '\0';
  header += static_cast<char>(length & 0xff);
  header += static_cast<char>(length >> 8);
  return header + text;
}

}  // namespace criteo
