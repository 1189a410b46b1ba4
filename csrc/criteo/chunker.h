// Cuts a stream of text into chunks of whole lines, in bounded memory, hashing what it reads.
#pragma once
#include <cstdint>
#include <functional>
#include <vector>

#include "criteo/row.h"
#include "criteo/xxh64.h"

namespace criteo {

// Reads up to n bytes to `to`; returns how many, 0 at the end. Throws on a fault.
using ByteSource = std::function<int64_t(char* to, int64_t n)>;

struct Chunk {
  int64_t sequence;        // 0, 1, 2, ... in stream order
  std::vector<char> text;  // capacity kept between uses; `size` bytes count, padding follows
  int64_t size;            // whole lines, the last byte is '\n'
  bool first_is_long;      // the first line was over kMaxLineBytes; only its "\n" is in `text`
};

// Not thread-safe: callers take turns under a lock.
class Chunker {
 public:
  Chunker(ByteSource source, int64_t chunk_bytes)
      : source_(std::move(source)), bytes_(chunk_bytes) {}

  // The next chunk; false at the end of the stream. A last line without '\n' is given one.
  bool next(Chunk& chunk);

  int64_t bytes_read() const { return bytes_read_; }
  uint64_t hash() const { return hash_.digest(); }

 private:
  int64_t fill(char* to, int64_t n);
  void skip_long_line();

  ByteSource source_;
  const int64_t bytes_;
  std::vector<char> carry_;        // text that is read but not handed out: the start of a line,
  bool carry_is_one_line_ = true;  // or, after a long line, any text
  bool ended_ = false;
  int64_t sequence_ = 0;
  int64_t bytes_read_ = 0;
  Xxh64 hash_;
};

}  // namespace criteo
