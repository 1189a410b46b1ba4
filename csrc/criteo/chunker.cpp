#include "criteo/chunker.h"

#include <algorithm>
#include <cstring>

namespace criteo {

int64_t Chunker::fill(char* to, int64_t n) {
  int64_t got = 0;
  while (got < n && !ended_) {
    const int64_t read = source_(to + got, n - got);
    ended_ = read == 0;
    got += read;
  }
  hash_.update(to, static_cast<size_t>(got));
  bytes_read_ += got;
  return got;
}

bool Chunker::next(Chunk& chunk) {
  for (;;) {
    const auto carried = static_cast<int64_t>(carry_.size());
    chunk.first_is_long = carry_is_one_line_ && carried > kMaxLineBytes;
    if (chunk.first_is_long) {
      chunk.text.assign(1 + kPadding, '\n');
      chunk.size = 1;
      chunk.sequence = sequence_++;
      skip_long_line();
      return true;
    }
    chunk.text.resize(static_cast<size_t>(carried + bytes_ + 1 + kPadding));
    char* text = chunk.text.data();
    std::copy(carry_.begin(), carry_.end(), text);
    int64_t size = carried + fill(text + carried, bytes_);
    carry_.clear();
    if (size == 0) return false;
    if (ended_ && text[size - 1] != '\n') text[size++] = '\n';
    const auto* last = static_cast<const char*>(memrchr(text, '\n', static_cast<size_t>(size)));
    const int64_t whole = last == nullptr ? 0 : last - text + 1;
    carry_.assign(text + whole, text + size);
    carry_is_one_line_ = true;
    if (whole == 0) continue;  // one line longer than the chunk: read on, until it is too long
    chunk.size = whole;
    chunk.sequence = sequence_++;
    std::memset(text + whole, 0, kPadding);
    return true;
  }
}

// Drops the rest of a line that is too long; what follows its '\n' becomes the carry.
void Chunker::skip_long_line() {
  std::vector<char> block(static_cast<size_t>(std::max(bytes_, int64_t{1})));
  carry_.clear();
  carry_is_one_line_ = false;
  while (!ended_) {
    const int64_t got = fill(block.data(), static_cast<int64_t>(block.size()));
    const auto* end =
        static_cast<const char*>(memchr(block.data(), '\n', static_cast<size_t>(got)));
    if (end != nullptr) {
      carry_.assign(end + 1, static_cast<const char*>(block.data()) + got);
      break;
    }
  }
}

}  // namespace criteo
