// One part of a dataset: text in, arrays out. Threads parse chunks at the same time; each chunk's
// place in the output is settled in stream order.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "criteo/batch.h"
#include "criteo/chunker.h"
#include "criteo/files.h"
#include "criteo/vocabulary.h"

namespace criteo {

// Shared with Python: work done so far, and the wish to stop.
struct Meter {
  std::atomic<int64_t> done{0};
  std::atomic<bool> cancelled{false};
};

struct PartOptions {
  bool labelled = true;
  DenseTransform transform = DenseTransform::kDlrm;
  bool skip_bad = false;
  std::vector<uint32_t> cardinalities;  // hash to these; empty: write value blocks for a vocabulary
  int threads = 1;
  int64_t chunk_bytes = 1 << 20;
  std::string dense_path;
  std::string labels_path;  // unused without labels
  std::string sparse_path;  // ids as .npy, or value blocks
};

struct PartResult {
  int64_t rows = 0;
  int64_t lines = 0;
  int64_t bad_lines = 0;
  std::vector<BadLine> bad;
  int64_t bytes = 0;
  uint64_t hash = 0;  // XXH64 of the text
};

// Value blocks: { u64 rows, then kValues columns of `rows` u32, then `rows` u32 of
// Row::missing_values }, one per chunk, in stream order.
inline constexpr int64_t kBlockHeaderBytes = 8;
inline constexpr int64_t kBlockRowBytes = 4 * (kValues + 1);

class PartReader {
 public:
  // `counts` may be null: then nothing is counted.
  PartReader(PartOptions options, std::shared_ptr<Counts> counts, std::shared_ptr<Meter> meter);
  ~PartReader();

  // Either: the whole file, uncompressed. Meter::done advances by its bytes.
  void read_file(const std::string& path);
  // Or: the text, block by block. Returns false once the rest is of no use (a bad line, a fault).
  bool feed(std::string block);

  // Ends the text, waits, completes the files. With a bad line and not skip_bad, the files are of
  // no use.
  PartResult finish();

 private:
  void start(ByteSource source, bool metered);
  int64_t take_fed(char* to, int64_t n);
  void work();
  void settle_and_write(const Chunk& chunk, Batch& batch);
  void write_values(const Batch& batch, int64_t offset) const;
  void transform_raw_dense() const;
  void stop(std::exception_ptr error);
  bool stopped() const { return stopped_ || meter_->cancelled; }

  const PartOptions options_;
  const std::shared_ptr<Counts> counts_;
  const std::shared_ptr<Meter> meter_;
  std::vector<HashIds> hashes_;
  File dense_;
  std::unique_ptr<File> labels_;
  File sparse_;

  std::unique_ptr<Chunker> chunker_;
  std::mutex chunker_lock_;
  bool metered_ = false;
  std::vector<std::thread> threads_;

  std::mutex fed_lock_;
  std::condition_variable fed_changed_;
  std::deque<std::string> fed_;
  size_t fed_used_ = 0;  // bytes already taken of fed_.front()
  bool fed_ended_ = false;

  std::mutex lock_;  // what follows
  std::condition_variable turn_changed_;
  int64_t turn_ = 0;  // the sequence whose place is settled next
  int64_t sparse_offset_;
  int32_t minimum_;
  PartResult result_;
  std::exception_ptr error_;
  std::atomic<bool> stopped_{false};
};

}  // namespace criteo
