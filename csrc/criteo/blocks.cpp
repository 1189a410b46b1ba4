#include "criteo/blocks.h"

#include <algorithm>
#include <exception>
#include <functional>
#include <optional>
#include <stdexcept>
#include <thread>

namespace criteo {
namespace {

// Runs `work` on `threads` threads; rethrows the first exception.
void run_threads(int threads, const std::function<void()>& work) {
  std::mutex lock;
  std::exception_ptr error;
  const auto guarded = [&] {
    try {
      work();
    } catch (...) {
      const std::lock_guard guard(lock);
      if (!error) error = std::current_exception();
    }
  };
  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i) others.emplace_back(guarded);
  guarded();
  for (std::thread& thread : others) thread.join();
  if (error) std::rethrow_exception(error);
}

struct Block {
  int64_t rows;
  int64_t first_row;
  std::vector<uint32_t> words;
  const uint32_t* column(int c) const { return words.data() + c * rows; }
  const uint32_t* missing() const { return column(kValues); }
};

// Hands out the blocks of a file, in order, to any number of threads.
class BlockFile {
 public:
  explicit BlockFile(const std::string& path) : path_(path), file_(File::for_reading(path)) {}

  bool next(Block& block) {
    const std::lock_guard guard(lock_);
    uint64_t rows;
    if (const int64_t got = read_all(reinterpret_cast<char*>(&rows), kBlockHeaderBytes);
        got != kBlockHeaderBytes) {
      if (got == 0) return false;
      damaged();
    }
    if (rows == 0 || rows > kMostRows) damaged();
    block.rows = static_cast<int64_t>(rows);
    block.first_row = rows_;
    block.words.resize(rows * (kValues + 1));
    const int64_t bytes = block.rows * kBlockRowBytes;
    if (read_all(reinterpret_cast<char*>(block.words.data()), bytes) != bytes) damaged();
    rows_ += block.rows;
    return true;
  }

  int64_t rows() const { return rows_; }

 private:
  static constexpr uint64_t kMostRows = 1u << 28;

  int64_t read_all(char* to, int64_t n) {
    int64_t got = 0;
    while (got < n) {
      const int64_t more = file_.read(to + got, n - got);
      if (more == 0) break;
      got += more;
    }
    return got;
  }

  [[noreturn]] void damaged() const {
    throw std::runtime_error(path_ + " is damaged after row " + std::to_string(rows_));
  }

  const std::string path_;
  File file_;
  std::mutex lock_;
  int64_t rows_ = 0;
};

}  // namespace

void count_blocks(const std::string& path, Counts& counts, int threads, Meter& meter) {
  BlockFile file(path);
  run_threads(threads, [&] {
    Block block;
    while (!meter.cancelled && file.next(block)) {
      counts.add(block.column(0), block.rows, block.missing(), block.rows, block.first_row);
      meter.done += block.rows;
    }
  });
}

Vocabulary::Vocabulary(const std::vector<std::span<const uint32_t>>& ranked, int threads) {
  if (ranked.size() != kValues)
    throw std::invalid_argument("a vocabulary has " + std::to_string(ranked.size()) +
                                " columns, not " + std::to_string(kValues));
  std::vector<std::optional<IdTable>> made(kValues);
  std::atomic<size_t> next{0};
  run_threads(threads, [&] {
    for (size_t c; (c = next++) < made.size();) made[c].emplace(ranked[c]);
  });
  for (std::optional<IdTable>& table : made) tables_.push_back(std::move(*table));
}

void Vocabulary::map_blocks(const std::string& blocks_path, const std::string& sparse_path,
                            int64_t rows, int threads, Meter& meter) const {
  constexpr int64_t kRows = 1024;  // rows whose ids stay in cache while the columns fill them
  BlockFile file(blocks_path);
  const File out = File::for_writing(sparse_path);
  const std::string header = npy_header("<i4", rows, kValues);
  out.write_at(header.data(), kNpyHeaderBytes, 0);
  run_threads(threads, [&] {
    Block block;
    std::vector<int32_t> ids;
    while (!meter.cancelled && file.next(block)) {
      ids.resize(static_cast<size_t>(block.rows) * kValues);
      for (int64_t begin = 0; begin < block.rows; begin += kRows) {
        const int64_t n = std::min(kRows, block.rows - begin);
        for (int c = 0; c < kValues; ++c)
          tables_[static_cast<size_t>(c)].map(block.column(c) + begin, block.missing() + begin, c,
                                              n, ids.data() + begin * kValues + c);
      }
      out.write_at(ids.data(), block.rows * kValues * 4,
                   kNpyHeaderBytes + block.first_row * kValues * 4);
      meter.done += block.rows;
    }
  });
  if (!meter.cancelled && file.rows() != rows)
    throw std::runtime_error(blocks_path + " holds " + std::to_string(file.rows()) + " rows, not " +
                             std::to_string(rows));
}

}  // namespace criteo
